"""Policy, reference and value network in every training mode and architecture: equal at first, then apart."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf.kl import exact_kl
from rlhf.masked import token_logprobs
from rlhf.models import PolicyModels
from rlhf.models.features import Features, features_of, run_base
from rlhf.models.loading import ModelError, load_pretrained, word_tokenizer
from rlhf.models.modes import split
from rlhf.models.saving import save_model, save_policy
from rlhf.precision import AUTOCAST
from tests.helpers import (
    ARCHITECTURES,
    LAYERS,
    MODES,
    hidden_and_values,
    nudge,
    plain_logprobs,
    policy_logits,
    policy_models,
    random_rollouts,
    reference_logits,
    tiny_model,
    trainable,
    unpadded,
    value_settings,
)

PROMPTS, RESPONSES = [5, 1, 3, 2], [4, 6, 1, 2]
MOST = [*(("gpt_neox", mode) for mode in MODES), ("llama", "lora"), ("gptj", "last_k"), ("gpt_neo", "last_k")]


def response_logprobs(models: PolicyModels, logits: Tensor, rollouts) -> list[Tensor]:
    """log pi of each response, without padding."""
    return [row[valid] for row, valid in zip(token_logprobs(logits, rollouts.response_ids), rollouts.mask, strict=True)]


def one_text(ids: Tensor, prompt_width: int) -> Features:
    """A (1, L) text without padding."""
    prompt, response = torch.tensor([prompt_width]), torch.tensor([ids.shape[1] - prompt_width])
    return Features(ids, torch.ones_like(ids, dtype=torch.bool), None, prompt_width, prompt, response)


def optimizer_step(models: PolicyModels, features: Features) -> None:
    """One AdamW step on some loss of policy and values, weight decay on, so that every trained tensor moves."""
    optimizer = torch.optim.AdamW(models.named_parameters().values(), lr=0.05, weight_decay=0.1)
    policy_logits(models, features).square().mean().backward()
    models.values(features).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_trunk_and_top_are_the_whole_model_to_the_bit(architecture):
    """GPT-Neo's middle block sees four tokens back; a cut through it must not move the window."""
    base = tiny_model(architecture).base_model
    features = features_of(random_rollouts(PROMPTS, RESPONSES))
    mask, whole = features.mask, run_base(base, features, None)
    shared = {parameter.data_ptr() for parameter in base.parameters()}
    for last_k in range(1, LAYERS + 1):
        trunk, top = split(base, last_k)
        hidden = run_base(trunk, features, None)
        assert torch.equal(run_base(top, features, hidden)[mask], whole[mask])
        assert last_k == LAYERS or (hidden - whole)[mask].abs().max() > 0.1
        assert {p.data_ptr() for half in (trunk, top) for p in half.parameters()} == shared  # nothing was copied


@pytest.mark.parametrize("last_k", [0, LAYERS + 1])
def test_a_cut_outside_of_the_model_is_refused(last_k):
    with pytest.raises(ValueError, match=r"model\.train\.last_k: "):
        split(tiny_model().base_model, last_k)


def test_a_cut_through_blocks_of_different_kinds_is_the_whole_model_too():
    """Qwen2 with a sliding window in its upper blocks looks a block's kind up by its place in the list."""
    config = ARCHITECTURES["qwen2"]()
    config.layer_types = ["full_attention", "sliding_attention", "sliding_attention"]
    config.sliding_window = 2
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config).eval().base_model
    ids = torch.arange(2, 14)[None]
    features = one_text(ids, 1)
    trunk, top = split(base, 2)
    with torch.no_grad():
        halves = run_base(top, features, run_base(trunk, features, None))
        assert torch.equal(halves, run_base(base, features, None))


@pytest.mark.parametrize(("architecture", "mode"), MOST)
def test_at_first_policy_and_reference_agree_whole_and_in_chunks(architecture, mode):
    models = policy_models(tiny_model(architecture), mode, temperature=0.7)
    rollouts = random_rollouts(PROMPTS, RESPONSES)
    features = models.features(rollouts)
    with torch.no_grad():
        policy, reference = policy_logits(models, features), reference_logits(models, features)
        hidden, values = hidden_and_values(models, features)
        at = features.response_positions()
        chunked = models.policy_logprobs(hidden, rollouts.response_ids, at)
        initial = models.reference_logprobs(models.reference_hidden(features), rollouts.response_ids, at)
    assert torch.equal(policy[rollouts.mask], reference[rollouts.mask])
    assert torch.equal(policy[rollouts.mask], models.policy_head(hidden)[rollouts.mask])
    assert torch.equal(chunked, initial) and bool((chunked[~rollouts.mask] == 0).all())
    expected = token_logprobs(policy, rollouts.response_ids)
    torch.testing.assert_close(chunked[rollouts.mask], expected[rollouts.mask], atol=1e-5, rtol=1e-5)
    assert values.shape == rollouts.mask.shape


@pytest.mark.parametrize(("architecture", "mode"), MOST)
def test_values_are_of_the_state_before_each_token_and_do_not_see_padding(architecture, mode):
    models = policy_models(tiny_model(architecture), mode)
    together = random_rollouts(PROMPTS, RESPONSES)
    with torch.no_grad():
        values = models.values(models.features(together))
        for i in range(len(PROMPTS)):
            row = together.rows(torch.tensor([i]))
            width, length = PROMPTS[i], RESPONSES[i]
            ids = torch.cat([row.prompt_ids[:, -width:], row.response_ids[:, :length]], 1)
            hidden = run_base(tiny_model(architecture).base_model, one_text(ids, width), None)
            expected = models.value_head(hidden[0, width - 1 : -1]).squeeze(-1)
            torch.testing.assert_close(values[i, :length], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("architecture", "mode"), MOST)
def test_policy_and_value_network_share_no_trained_tensor_and_no_gradient(architecture, mode):
    models = policy_models(tiny_model(architecture), mode)
    nudge(models.named_parameters())
    policy, value = models.policy_parameters, models.value_parameters
    storages = [{p.untyped_storage().data_ptr() for p in group.values()} for group in (policy, value)]
    assert storages[0] and storages[1] and not storages[0] & storages[1]
    assert not set(policy) & set(value)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in models.named_parameters().values())
    features = models.features(random_rollouts(PROMPTS, RESPONSES))

    policy_logits(models, features)[:, :, 2].sum().backward()
    assert all(p.grad is None for p in value.values())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in policy.values())
    assert sum(bool((p.grad != 0).any()) for p in policy.values()) > 0.6 * len(policy)
    models.model.zero_grad()
    for parameter in models.named_parameters().values():
        parameter.grad = None
    models.values(features).sum().backward()
    assert all(p.grad is None for p in policy.values())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in value.values())
    assert sum(bool((p.grad != 0).any()) for p in value.values()) > 0.6 * len(value)


@pytest.mark.parametrize(("architecture", "mode"), MOST)
def test_training_moves_policy_and_values_but_not_the_reference(architecture, mode):
    model = tiny_model(architecture)
    models = policy_models(model, mode)
    rollouts = random_rollouts(PROMPTS, RESPONSES)
    features = models.features(rollouts)
    with torch.no_grad():
        before = [policy_logits(models, features), reference_logits(models, features), models.values(features)]
    for _ in range(2):  # a LoRA adapter's first matrix has no gradient before the second one has moved
        optimizer_step(models, features)
    features = models.features(rollouts)  # the trunk included
    with torch.no_grad():
        after = [policy_logits(models, features), reference_logits(models, features), models.values(features)]
    mask = rollouts.mask
    assert torch.equal(before[1][mask], after[1][mask])
    assert (before[0] - after[0])[mask].abs().max() > 0.05
    assert (before[2] - after[2])[mask].abs().max() > 0.01


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt_neo", "qwen2"])
def test_last_k_leaves_embeddings_lower_blocks_and_head_unchanged(architecture):
    model = tiny_model(architecture)
    models = policy_models(model, "last_k", last_k=1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    features = models.features(random_rollouts(PROMPTS, RESPONSES))
    optimizer_step(models, features)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    trained = {id(p) for p in models.policy_parameters.values()}
    moved = {name for name, p in models.sampler.named_parameters() if id(p) in trained}
    assert moved and all(f".{LAYERS - 1}." in name or "norm" in name or "ln_f" in name for name in moved), moved
    changed = {n for n, p in models.sampler.named_parameters() if not torch.equal(p, before[n])}
    assert changed == moved


@pytest.mark.parametrize("mode", MODES)
def test_a_value_head_on_the_policy_trains_with_it(mode):
    models = policy_models(tiny_model(), mode, value_settings("head"))
    nudge(models.named_parameters())
    assert models.value_parameters == {} and models.value_on_policy
    assert {"value_head.weight", "value_head.bias"} < set(models.policy_parameters)
    features = models.features(random_rollouts(PROMPTS, RESPONSES))
    with torch.no_grad():
        hidden, values = hidden_and_values(models, features)
        assert torch.equal(models.policy_head(hidden), policy_logits(models, features))
        torch.testing.assert_close(values, models.values(features))
    hidden_and_values(models, features)[1].sum().backward()
    blocks = [p for name, p in models.policy_parameters.items() if not name.startswith("value_head")]
    with_gradient = [p for p in blocks if p.grad is not None and bool((p.grad != 0).any())]
    assert len(with_gradient) > 0.5 * len(blocks)


@pytest.mark.parametrize("mode", ["last_k", "lora"])
def test_a_value_network_that_trains_everything(mode):
    model = tiny_model()
    models = policy_models(model, mode, value_settings(train="all"))
    base = model.base_model.model if isinstance(model.base_model, PeftModel) else model.base_model
    matrices = sum(p.numel() for n, p in base.named_parameters() if "lora_" not in n)
    assert sum(p.numel() for n, p in models.value_parameters.items() if n.startswith("value.")) == matrices
    frozen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert not frozen & {p.untyped_storage().data_ptr() for p in models.value_parameters.values()}
    features = models.features(random_rollouts(PROMPTS, RESPONSES))
    models.values(features).sum().backward()
    embeddings = next(p for name, p in models.value_parameters.items() if "embed" in name)
    assert embeddings.grad is not None and bool((embeddings.grad != 0).any())
    assert all(p.grad is None for p in models.policy_parameters.values())


def test_temperature_divides_the_logits_of_policy_and_reference():
    rollouts = random_rollouts(PROMPTS, RESPONSES)
    hot, plain = (policy_models(tiny_model(), "last_k", temperature=t) for t in (2.0, 1.0))
    features = plain.features(rollouts)
    with torch.no_grad():
        torch.testing.assert_close(policy_logits(hot, features) * 2, policy_logits(plain, features))
        torch.testing.assert_close(reference_logits(hot, features) * 2, reference_logits(plain, features))


TOKENIZER = word_tokenizer([f"w{i}" for i in range(20)])  # VOCAB with its own three


def assert_is_the_policy(loaded: PreTrainedModel, models: PolicyModels) -> None:
    """The same logprobs from plain forwards of unpadded texts."""
    rollouts = random_rollouts(PROMPTS, RESPONSES)
    prompts = unpadded(rollouts.prompt_ids, rollouts.prompt_mask)
    responses = unpadded(rollouts.response_ids, rollouts.mask)
    with torch.no_grad():
        logits = policy_logits(models, models.features(rollouts))
    for row, prompt, response in zip(response_logprobs(models, logits, rollouts), prompts, responses, strict=True):
        expected = plain_logprobs(loaded.eval(), prompt, response).float()
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)


def trained_from(folder: Path, mode: str) -> PolicyModels:
    """Networks whose weights come from a folder, moved as if by training."""
    models = policy_models(load_pretrained(folder)[0], mode)
    nudge(models.policy_parameters)
    return models


@pytest.mark.parametrize(("architecture", "mode"), [("gpt_neox", m) for m in MODES] + [("qwen2", "last_k")])
def test_the_saved_policy_is_the_trained_one(architecture, mode, tmp_path, monkeypatch):
    """Qwen2 here ties its embeddings, which a cut model must survive too."""
    save_model(tiny_model(architecture), TOKENIZER, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    models = trained_from(Path("base"), mode)
    save_policy(models, TOKENIZER, tmp_path / "final", "full")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for loaded in (load_pretrained(tmp_path / "final")[0], AutoModelForCausalLM.from_pretrained(tmp_path / "final")):
        assert_is_the_policy(loaded, models)


def test_a_lora_policy_is_saved_as_peft_reads_it(tmp_path):
    save_model(tiny_model(), TOKENIZER, tmp_path / "base")
    models = trained_from(tmp_path / "base", "lora")
    save_policy(models, TOKENIZER, tmp_path / "final", "full")
    assert not [path for path in (tmp_path / "final").iterdir() if path.is_dir()]
    assert (tmp_path / "final" / "adapter_model.safetensors").is_file()
    settings = json.loads((tmp_path / "final" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")
    assert settings["target_modules"] == sorted(settings["target_modules"])
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert_is_the_policy(PeftModel.from_pretrained(base, tmp_path / "final").merge_and_unload(), models)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=f"it is an adapter of {tmp_path / 'base'}, which is not there"):
        load_pretrained(tmp_path / "final")


@pytest.mark.parametrize("start", ["random weights", "an adapter"])
def test_a_lora_policy_without_a_base_on_disk_is_saved_whole(start, tmp_path):
    """Random weights lie nowhere, and what an adapter was merged into is no longer the base."""
    if start == "an adapter":
        save_model(tiny_model(), TOKENIZER, tmp_path / "base")
        save_policy(trained_from(tmp_path / "base", "lora"), TOKENIZER, tmp_path / "first", "full")
        models = trained_from(tmp_path / "first", "lora")
    else:
        models = policy_models(tiny_model(), "lora")
        nudge(models.policy_parameters)
    save_policy(models, TOKENIZER, tmp_path / "final", "full")
    assert not (tmp_path / "final" / "adapter_config.json").exists()
    assert_is_the_policy(load_pretrained(tmp_path / "final")[0], models)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("mode", MODES)
def test_logits_have_the_resolution_of_float32_whatever_the_precision(mode, precision):
    """A head that has hardly moved moves the KL as it does in float32."""
    rollouts, kls = random_rollouts(PROMPTS, RESPONSES), {}
    for computed in ("fp32", precision):
        models = policy_models(tiny_model(), mode, precision=computed)
        with torch.no_grad():
            features = models.features(rollouts)
            before = policy_logits(models, features)
            assert torch.equal(before, reference_logits(models, features))
            with models.sampling() as sampler:
                sampled = sampler.logits(run_base(sampler.model.base_model, features, None))
            models.language_head.weight[3] *= 1.02
            after = policy_logits(models, features)
        for logits in (before, sampled, after):
            assert logits.dtype == torch.float32
            assert computed == "fp32" or not torch.equal(logits, logits.to(AUTOCAST[precision]).float())
        kls[computed] = float(exact_kl(after, before)[rollouts.mask].sum())
    assert 1e-6 < kls["fp32"] < 1e-3 and kls[precision] == pytest.approx(kls["fp32"], rel=0.1)


@pytest.mark.parametrize(
    ("targets", "adapted", "tensors"),
    [
        (["query_key_value", "mlp.dense_4h_to_h"], {"query_key_value", "dense_4h_to_h"}, 12),
        (["gpt_neox.layers.1.attention.dense"], {"dense"}, 2),
    ],
)
def test_adapters_are_on_the_layers_that_are_named(targets, adapted, tensors):
    train = dataclasses.replace(trainable("lora"), lora_targets=targets)
    models = policy_models(tiny_model(), "lora", train=train)
    assert {name.partition(".lora_")[0].rpartition(".")[2] for name in models.policy_parameters} == adapted
    assert len(models.policy_parameters) == tensors


@pytest.mark.parametrize("wrong", ["lm_head", "queries"])
def test_adapters_on_the_language_head_or_on_nothing_are_refused(wrong):
    """Reference and policy share the head, which is not computed through an adapter."""
    train = dataclasses.replace(trainable("lora"), lora_targets=["query_key_value", wrong])
    with pytest.raises(ModelError, match=f"^model.train.lora_targets: {wrong} is no linear layer .* they have dense, "):
        policy_models(tiny_model(), "lora", train=train)
