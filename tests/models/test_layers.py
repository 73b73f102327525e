"""Frozen weights in fewer bits have the numbers of a float32 model with the same, rounded matrices; few rows."""

from __future__ import annotations

import copy
import importlib.util
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from rlhf.masked import token_logprobs
from rlhf.models import PolicyModels
from rlhf.models.layers import (
    FEW_ROWS,
    LARGE,
    FewRowsLinear,
    FrozenWeights,
    ShortEmbedding,
    ShortLinear,
    for_few_rows,
    sampling_head,
)
from rlhf.models.loading import ModelError, load_base, load_pretrained, moved, word_tokenizer
from rlhf.models.saving import save_model, save_policy
from rlhf.random import sampling_uniforms
from tests.config.composed import config
from tests.helpers import (
    ARCHITECTURES,
    EOS,
    PAD,
    SAMPLINGS,
    any_model_of,
    measure_all,
    nudge,
    plain_logprobs,
    policy_logits,
    policy_models,
    random_rollouts,
    reference_logits,
    sample,
    tiny_model,
    unpadded,
    value_settings,
)

PROMPTS, RESPONSES = [5, 1, 3, 2], [4, 6, 1, 2]
TOKENIZER = word_tokenizer([f"w{i}" for i in range(20)])
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Each architecture, and two of them in both modes.
EVERYWHERE = [*zip(ARCHITECTURES, itertools.cycle(["last_k", "lora"])), ("gpt_neox", "lora"), ("llama", "last_k")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each architecture, written once."""
    parent = tmp_path_factory.mktemp("held")
    return {name: save_model(any_model_of(ARCHITECTURES[name]()), TOKENIZER, parent / name) for name in ARCHITECTURES}


def rounded(architecture: str, dtype: torch.dtype) -> PreTrainedModel:
    """The float32 model whose weights all went through `dtype`, as those of a loaded one do."""
    model = tiny_model(architecture)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return model


def gradients(models: PolicyModels, rollouts) -> dict[str, torch.Tensor]:
    features = models.features(rollouts)
    logprobs = token_logprobs(policy_logits(models, features), rollouts.response_ids)
    (logprobs * rollouts.mask).sum().backward()
    (models.values(features) * rollouts.mask).square().sum().backward()
    return {name: p.grad for name, p in models.named_parameters().items() if p.grad is not None}


@pytest.mark.parametrize(
    ("architecture", "mode", "weights"),
    [*((name, mode, "bfloat16") for name, mode in EVERYWHERE), ("llama", "lora", "float16")],
)
def test_frozen_weights_give_the_numbers_of_the_rounded_model(architecture, mode, weights, folders):
    model, _ = load_pretrained(folders[architecture], FrozenWeights(weights))
    matrices = [m.weight.dtype for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    assert set(matrices) == {DTYPES[weights]}
    held, plain = policy_models(model, mode), policy_models(rounded(architecture, DTYPES[weights]), mode)
    assert all(p.dtype == torch.float32 for p in held.named_parameters().values())
    for name, parameter in held.named_parameters().items():  # adapters are drawn alike, norms are rounded alike
        parameter.data = plain.named_parameters()[name].data.clone()
    rollouts = random_rollouts(PROMPTS, RESPONSES)
    features = held.features(rollouts)
    with torch.no_grad():
        policy, reference = policy_logits(held, features), reference_logits(held, features)
        assert policy.dtype == torch.float32
        assert torch.equal(policy[rollouts.mask], reference[rollouts.mask])
        expected = policy_logits(plain, plain.features(rollouts))
    torch.testing.assert_close(policy[rollouts.mask], expected[rollouts.mask], atol=1e-6, rtol=1e-6)
    for part in (held, plain):
        nudge(part.named_parameters(), 0.1)
    mine, theirs = gradients(held, rollouts), gradients(plain, rollouts)
    assert set(mine) == set(theirs) and len(mine) > 4
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("mode", ["last_k", "lora"])
def test_the_first_ratio_is_one_and_nothing_frozen_grows(mode, precision, folders):
    model, _ = load_pretrained(folders["llama"], FrozenWeights("bfloat16"))
    frozen = [m for m in model.modules() if isinstance(m, ShortLinear | ShortEmbedding)]
    models = policy_models(model, mode, precision=precision)
    rollouts = random_rollouts(PROMPTS, RESPONSES)
    measured = measure_all(models, rollouts, 2, by_length=False)
    part = torch.tensor([2, 3])
    features = measured.features.rows(part).trimmed()
    states = models.policy_hidden(features)
    logprobs = models.policy_logprobs(states, features.tokens, features.response_positions())
    assert torch.equal(logprobs, measured.old_logprobs[part, : logprobs.shape[1]])
    assert torch.equal(measured.old_logprobs, measured.reference_logprobs)
    assert len(frozen) > 10 and all(module.weight.dtype == torch.bfloat16 for module in frozen)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(
    ("architecture", "mode", "merge"),
    [("gpt_neox", "last_k", False), ("gpt_neox", "lora", False), ("qwen2", "lora", True), ("gptj", "lora", False)],
)
def test_a_policy_of_frozen_weights_samples_and_is_saved_whole(architecture, mode, merge, sampling, folders, tmp_path):
    model, _ = load_pretrained(folders[architecture], FrozenWeights("bfloat16"))
    models = policy_models(model, mode, merge_adapters=merge)
    nudge(models.policy_parameters, 0.1)
    rollouts = random_rollouts(PROMPTS, RESPONSES)
    with models.sampling() as sampler:
        uniforms = sampling_uniforms(0, "test", 0, len(PROMPTS), 5)
        tokens, logprobs = sample(sampling, sampler, rollouts.prompt_ids, rollouts.prompt_mask, uniforms)
    save_policy(models, TOKENIZER, tmp_path / "final", "full")
    assert (tmp_path / "final" / "adapter_config.json").exists() == (mode == "lora" and not merge)
    # An adapter's base is read again in float32 unless it is held likewise.
    held = FrozenWeights("bfloat16") if mode == "lora" and not merge else FrozenWeights()
    loaded, _ = load_pretrained(tmp_path / "final", held)
    for row, prompt in enumerate(unpadded(rollouts.prompt_ids, rollouts.prompt_mask)):
        length = int((tokens[row] == EOS).int().argmax()) + 1 if bool((tokens[row] == EOS).any()) else 5
        response = tokens[row, :length].tolist()
        expected = plain_logprobs(loaded, prompt, response).float()
        # A merged adapter is rounded with its base where that is held in bfloat16.
        close = 2e-2 if held.weights == "bfloat16" else 1e-5
        torch.testing.assert_close(logprobs[row, :length], expected, atol=close, rtol=close)


def test_a_value_network_that_trains_everything_is_float32(folders):
    for mode in ("last_k", "lora"):
        model, _ = load_pretrained(folders["gpt_neox"], FrozenWeights("bfloat16"))
        models = policy_models(model, mode, value_settings(train="all"))
        assert {p.dtype for p in models.value_parameters.values()} == {torch.float32}
        models.values(models.features(random_rollouts(PROMPTS, RESPONSES))).sum().backward()


@pytest.mark.parametrize("name", ["gpt_neox", "qwen2"])
def test_a_loaded_model_is_moved_out_of_its_file(folders, name):
    """As safetensors are mapped, weights start anywhere; tied ones stay tied."""
    loaded, _ = load_pretrained(folders[name], FrozenWeights("float32"))
    before = {name: one.detach().clone() for name, one in loaded.named_parameters()}
    for parameter in loaded.parameters():  # as if the file's header were 40 bytes longer than a cache line
        place = torch.empty(parameter.numel() + 10)[10:].view_as(parameter)
        parameter.data = place.copy_(parameter.data)
        assert parameter.data_ptr() % 64
    model = moved(loaded, torch.device("cpu"))
    assert not any(one.data_ptr() % 64 for one in model.parameters())
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == model.config.tie_word_embeddings == (name == "qwen2")


def test_random_weights_are_held_too(tmp_path):
    model, _ = load_base(config("model=tiny").model, ["a", "b"], 16, tmp_path, FrozenWeights("bfloat16"))
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    whole, _ = load_base(config("model=tiny").model, ["a", "b"], 16, tmp_path)
    assert len(list(model.buffers())) > 0  # the angles of rotary positions
    for buffer, expected in zip(model.buffers(), whole.buffers(), strict=True):
        assert buffer.dtype == expected.dtype and torch.equal(buffer, expected)


def test_bitsandbytes_is_named_where_it_is_missing(folders, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(
        ModelError, match=r"^model\.frozen_weights: int8 needs .* bitsandbytes: pip install .*quantized"
    ):
        load_pretrained(folders["llama"], FrozenWeights("int8"))


# --- few rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, FEW_ROWS[0] - 1, FEW_ROWS[0], FEW_ROWS[-1], FEW_ROWS[-1] + 1])
@pytest.mark.parametrize("strided", [False, True], ids=["rows together", "rows strided"])
def test_a_product_is_that_of_the_layer(bias, rows, strided):
    torch.manual_seed(0)
    layer = nn.Linear(300, 400, bias=bias)
    assert layer.weight.numel() >= LARGE
    given = torch.randn(300, rows).t().unsqueeze(1) if strided else torch.randn(rows, 1, 300)
    with torch.no_grad():
        product = for_few_rows(layer)(given)
    assert product.shape == (rows, 1, 400)
    torch.testing.assert_close(product, F.linear(given, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)


def test_a_twin_shares_every_tensor_and_leaves_the_model_as_it_was():
    base = tiny_model("llama").base_model
    kinds = [type(module) for module in base.modules()]
    twin = for_few_rows(base)
    assert [type(module) for module in base.modules()] == kinds
    assert [id(parameter) for parameter in twin.parameters()] == [id(parameter) for parameter in base.parameters()]
    assert sum(type(module) is FewRowsLinear for module in twin.modules()) == 7 * 3


def test_a_head_of_fewer_bits_is_cast_once():
    head = ShortLinear(300, 400).to(torch.bfloat16)
    twin = sampling_head(head)
    assert type(twin) is FewRowsLinear and twin.weight.dtype == torch.float32
    given = torch.randn(8, 300)
    with torch.no_grad():
        torch.testing.assert_close(twin(given), F.linear(given, head.weight.float(), head.bias.float()))


# --- int8 and int4, by bitsandbytes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Wide enough for a block of 64 numbers, which int4 scales together."""
    pytest.importorskip("bitsandbytes")
    settings = LlamaConfig(
        vocab_size=23,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings)
    nudge(dict(model.named_parameters()), 0.1)
    for name, parameter in model.named_parameters():
        if "layernorm" in name:  # activations beyond 6, which bitsandbytes' own int8 treats by whole columns of a batch
            parameter.data *= 3
    return save_model(model, TOKENIZER, tmp_path_factory.mktemp("quantised") / "llama")


slow = pytest.mark.slow  # and not in the default tier, whose installation leaves bitsandbytes out


@slow
@pytest.mark.parametrize(("weights", "off"), [("int8", 0.02), ("int4", 0.3)])
def test_near_the_original_and_adapters_off_exactly_the_loaded_one(wide, weights, off):
    whole, _ = load_pretrained(wide)
    model, _ = load_pretrained(wide, FrozenWeights(weights))
    untouched = copy.deepcopy(model)
    models = policy_models(model, "lora")
    assert models.fallback_reason == ""
    rollouts = random_rollouts(PROMPTS, RESPONSES)
    features = models.features(rollouts)
    near = policy_logits(policy_models(whole, "lora"), features).detach()
    gaps = (reference_logits(models, features) - near)[rollouts.mask].abs()
    assert 0 < float(gaps.mean()) < off * float(near.abs().max())
    nudge(models.named_parameters(), 0.05)
    reference = reference_logits(models, features)
    assert torch.equal(reference, reference_logits(policy_models(untouched, "lora"), features))
    assert (policy_logits(models, features) - reference)[rollouts.mask].abs().max() > 0.05


@slow
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_text_does_not_depend_on_its_neighbours_and_fast_samples_as_plain(wide, weights):
    models = policy_models(load_pretrained(wide, FrozenWeights(weights))[0], "lora")
    rollouts = random_rollouts(PROMPTS, RESPONSES)
    nudge(models.named_parameters(), 0.05)
    with torch.no_grad():
        features = models.features(rollouts)
        together, alone = (policy_logits(models, features.rows(torch.tensor(r))) for r in ([0, 1, 2], [1]))
    torch.testing.assert_close(together[1], alone[0], atol=1e-5, rtol=1e-5)
    uniforms = sampling_uniforms(0, "test", 0, len(PROMPTS), 6)
    given = rollouts.prompt_ids, rollouts.prompt_mask, uniforms
    with models.sampling() as sampler:
        (tokens, logprobs), (plain, about) = (sample(sampling, sampler, *given) for sampling in ("fast", "plain"))
    assert torch.equal(tokens, plain)
    torch.testing.assert_close(logprobs, about, atol=1e-5, rtol=1e-5)


@slow
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_it_trains_and_is_saved_whole(wide, weights, tmp_path):
    model, _ = load_pretrained(wide, FrozenWeights(weights))
    models, rollouts = policy_models(model, "lora", merge_adapters=True), random_rollouts(PROMPTS, RESPONSES)
    nudge(models.named_parameters(), 0.05)
    found = gradients(models, rollouts)
    assert set(found) == set(models.named_parameters()) and all(bool(g.isfinite().all()) for g in found.values())
    with torch.no_grad():  # bitsandbytes repacks a weight at the first pass without a gradient
        policy_logits(models, models.features(rollouts))
    again = gradients(models, rollouts)
    assert all(torch.equal(found[name], again[name]) for name in found)
    save_policy(models, TOKENIZER, tmp_path / "final", "full")
    loaded, _ = load_pretrained(tmp_path / "final")
    with torch.no_grad():
        features = models.features(rollouts)
        expected = policy_logits(models, features)
        got = policy_logits(policy_models(loaded, "all"), features)
    torch.testing.assert_close(got[rollouts.mask], expected[rollouts.mask], atol=1e-4, rtol=1e-4)
