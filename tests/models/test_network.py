"""Our layers against a model's own forward pass: states, gradients, and what is not computed or computed again."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import GPT2Config

from rlhf.models import PolicyModels, network
from rlhf.models.decoder import Angles, attention, turn
from rlhf.models.families import FAMILIES, decoder_of
from rlhf.models.features import Features, before_response, features_of, run_base
from rlhf.models.layers import compute_in_float32
from rlhf.models.network import Network, misfit
from rlhf.models.split import split
from rlhf.random import sampling_uniforms
from tests import helpers
from tests.helpers import (
    ARCHITECTURES,
    LAYERS,
    MODES,
    base_class,
    model_of,
    nudge,
    policy_logits,
    policy_models,
    random_rollouts,
    sample,
    tiny_model,
    value_settings,
)
from tests.sampling.test_fast import VARIANTS

ROLLOUTS = random_rollouts([5, 1, 3, 2], [4, 6, 1, 2])
PADDED = features_of(ROLLOUTS)
EVEN = features_of(random_rollouts([4, 4, 4], [6, 6, 6]))


# --- the same numbers ----------------------------------------------------------------------------------------------


def gradients_of(base: torch.nn.Module, states: Tensor, features: Features) -> dict[str, Tensor]:
    """Of a sum of squares over valid tokens."""
    base.zero_grad()
    states[features.mask[:, features.prompt_width :]].square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in base.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("variant", VARIANTS)
def test_states_and_gradients_are_those_of_the_models_own_forward_pass(variant):
    base = model_of(VARIANTS[variant]()).base_model.requires_grad_(True)
    run = Network(base)
    for features in (PADDED, EVEN):
        states, expected = run(features), before_response(run_base(base, features, None), features)
        assert run.fallback_reason == ""
        valid = features.mask[:, features.prompt_width :]
        torch.testing.assert_close(states[valid], expected[valid], atol=1e-5, rtol=1e-5)
        ours, theirs = gradients_of(base, states, features), gradients_of(base, expected, features)
        assert set(ours) == set(theirs) and len(theirs) > 10
        for name, gradient in theirs.items():
            assert (ours[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_top_goes_on_from_the_trunk(variant):
    base = model_of(VARIANTS[variant]()).base_model
    expected = before_response(run_base(base, PADDED, None), PADDED)
    valid = PADDED.mask[:, PADDED.prompt_width :]
    for last_k in (1, 2):
        trunk, top = split(base, last_k)
        with torch.no_grad():
            below, run = Network(trunk, whole=True), Network(top, top=True)
            hidden = below(PADDED)
            states = run(dataclasses.replace(PADDED, hidden=hidden))
        assert below.fallback_reason == run.fallback_reason == ""
        torch.testing.assert_close(
            hidden[PADDED.mask], run_base(trunk, PADDED, None)[PADDED.mask], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(states[valid], expected[valid], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("mode", "precision"), list(itertools.product(MODES, ("fp32", "bf16", "fp16"))))
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "frozen in bf16"])
def test_known_in_every_mode_and_precision_and_near_the_own_forward_pass(monkeypatch, mode, precision, dtype):
    model = tiny_model("llama", scale=0.1)
    if dtype is not None:
        compute_in_float32(model.to(dtype))
    models = policy_models(model, mode, precision=precision)
    assert models.fallback_reason == ""
    features = models.features(ROLLOUTS)

    def measured() -> list[Tensor]:
        with torch.no_grad():
            return [models.policy_hidden(features), models.reference_hidden(features), models.values(features)]

    ours = measured()
    monkeypatch.setattr(network, "misfit", lambda _: "asked for")
    assert models.fallback_reason == "asked for"
    close = 1e-5 if precision == "fp32" else 0.05
    for states, expected in zip(ours, measured(), strict=True):
        assert states.dtype == expected.dtype
        torch.testing.assert_close(states[ROLLOUTS.mask], expected[ROLLOUTS.mask], atol=close, rtol=close)


def test_a_texts_states_do_not_depend_on_how_much_padding_is_before_it():
    """Angles of far columns are rounded more coarsely than those of near ones."""
    config = ARCHITECTURES["llama"]()
    config.max_position_embeddings = 4096
    base = model_of(config).base_model
    alone, together = features_of(random_rollouts([6], [8])), features_of(random_rollouts([2000, 6], [8, 8]))
    ids = together.input_ids.clone()
    ids[1, together.prompt_width - 6 :] = alone.input_ids[0]
    run = Network(base)
    with torch.no_grad():
        torch.testing.assert_close(
            run(dataclasses.replace(together, input_ids=ids))[1], run(alone)[0], atol=1e-5, rtol=1e-5
        )


def test_a_mask_over_grouped_heads_needs_no_grouped_kernel(monkeypatch):
    torch.manual_seed(0)
    grouped, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: (grouped.append(k["enable_gqa"]), kernel(*a, **k))[1]
    )
    queries, keys, values = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    masked, unmasked = (attention(queries, keys, values, mask, 0.3) for mask in (causal[None, None], None))
    assert grouped == [False, True]
    torch.testing.assert_close(masked, unmasked)
    for head in range(4):  # two neighbours look at one group
        scores = (queries[:, head] @ keys[:, head // 2].transpose(1, 2) * 0.3).masked_fill(~causal, -torch.inf)
        torch.testing.assert_close(masked[:, head], scores.softmax(-1) @ values[:, head // 2])


def test_the_last_block_is_computed_for_the_response_alone(monkeypatch):
    base = tiny_model("llama").base_model
    run = Network(base)
    run(EVEN)
    columns = []
    mlp = type(base.layers[0].mlp)
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, hidden: (columns.append(hidden.shape[1]), plain(self, hidden))[1])
    run(EVEN)
    assert columns == [10] * (LAYERS - 1) + [6]


def test_nothing_is_masked_where_nothing_is_padded():
    seen = decoder_of(tiny_model("llama").base_model).masks(None, torch.device("cpu"), 5, slice(3, 5))
    assert seen[0] is None
    last = seen[LAYERS - 1]
    assert last is not None and last[0, 0].tolist() == [[True] * 4 + [False], [True] * 5]


# --- rotary positions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_angles_are_the_models_own_to_the_bit(variant):
    base: Any = model_of(VARIANTS[variant]()).base_model
    decoder = decoder_of(base)
    own = [module for name, module in base.named_modules() if name.endswith("rotary_emb")]
    if decoder.rotation is None:
        return
    if not own:
        pytest.skip("this version of transformers keeps its angles elsewhere")
    size = decoder.key_shape[1]
    for count in (1, 5, 33, 64):
        tables: list[Tensor] = [table[0] for table in own[0](torch.zeros(1), torch.arange(count)[None])]
        expected = (
            Angles.by_neighbours(*reversed(tables), size) if "gptj" in variant else Angles.by_halves(*tables, size)
        )
        angles = decoder.rotation(torch.arange(count))
        for table in ("cos", "up", "down"):
            assert torch.equal(getattr(angles, table), getattr(expected, table))


def slowly_turned(heads: Tensor, angles: list[float], pairs: list[tuple[int, int]]) -> Tensor:
    """Each pair as a complex number, one by one. (B, H, n, h); angles of each pair at position 1."""
    turned = heads.clone()
    for where in itertools.product(*(range(size) for size in heads.shape[:3])):
        for angle, (first, second) in zip(angles, pairs, strict=True):
            number = complex(float(heads[where][first]), float(heads[where][second]))
            number *= complex(math.cos(angle * where[2]), math.sin(angle * where[2]))
            turned[where][first], turned[where][second] = number.real, number.imag
    return turned


@pytest.mark.parametrize(
    ("kind", "pairs"), [("halves", [(0, 3), (1, 4), (2, 5)]), ("neighbours", [(0, 1), (2, 3), (4, 5)])]
)
@pytest.mark.parametrize("size", [6, 8], ids=["whole", "part of a head"])
def test_heads_turn_pair_by_pair(kind, pairs, size):
    by_pair = [1.0, 0.5, 0.1]
    angles = torch.arange(4.0)[:, None] * torch.tensor(by_pair)
    if kind == "halves":
        both = torch.cat((angles, angles), -1)
        rotation = Angles.by_halves(both.cos(), both.sin(), size)
    else:
        rotation = Angles.by_neighbours(angles.cos(), angles.sin(), size)
    torch.manual_seed(0)
    heads = torch.randn(2, 3, 4, size, requires_grad=True)
    expected = slowly_turned(heads.detach(), by_pair, pairs)
    for at in (rotation.first(4), rotation.at(torch.arange(4).expand(2, 4))):
        turned = turn(heads, at)
        torch.testing.assert_close(turned.detach(), expected)
        with torch.no_grad():
            assert torch.equal(turn(heads, at), turned)
        # Turning keeps products: the gradient of <turned, g> is g turned back.
        g = torch.randn(turned.shape)
        (gradient,) = torch.autograd.grad((turned * g).sum(), heads)
        torch.testing.assert_close((gradient * heads).sum(), (turned * g).sum())
        torch.testing.assert_close(turn(gradient, at).detach(), g)


def test_positions_of_each_row_of_its_own():
    angles = torch.arange(6.0)[:, None] * torch.tensor([1.0, 0.3, 1.0, 0.3])
    rotation = Angles.by_halves(angles.cos(), angles.sin(), 4)
    heads = torch.randn(2, 1, 2, 4)
    turned = turn(heads, rotation.at(torch.tensor([[3, 4], [0, 5]])))
    torch.testing.assert_close(turned[1, 0, 0], heads[1, 0, 0])
    wide = torch.zeros(1, 1, 6, 4)
    wide[0, 0, 3], wide[0, 0, 4], wide[0, 0, 5] = heads[0, 0, 0], heads[0, 0, 1], heads[1, 0, 1]
    expected = turn(wide, rotation.first(6))[0, 0]
    torch.testing.assert_close(torch.stack((turned[0, 0, 0], turned[0, 0, 1], turned[1, 0, 1])), expected[3:])


# --- what does not fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_our_layers_are_those_of_transformers(family):
    """Under the version that is installed; where this fails, runs go on by the model's own forward pass."""
    if line := helpers.misfit(base_class(family)):
        pytest.fail(f"{line}; mend rlhf/models/families.py", pytrace=False)


def test_every_known_class_has_an_example():
    assert {base_class(family) for family in helpers.FAMILIES} == set(FAMILIES)


def assert_runs_by_itself(base: torch.nn.Module) -> str:
    run = Network(base)
    assert torch.equal(run(PADDED), before_response(run_base(base, PADDED, None), PADDED))
    return run.fallback_reason


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_what_moved_in_transformers_is_named_and_costs_speed_alone(family, monkeypatch):
    kind = base_class(family)
    known = FAMILIES[kind]
    paths = ("embedding", "blocks", "final_norm", "norm", "projections", "output", "mlp", "mlp_norm", "head_norms")
    for field in (*paths, "positions"):
        path: Any = getattr(known, field)
        if path:
            moved = (*path[:-1], "moved.away") if isinstance(path, tuple) else "moved.away"
            monkeypatch.setitem(FAMILIES, kind, dataclasses.replace(known, **{field: moved}))
            line = assert_runs_by_itself(helpers.any_model_of(helpers.FAMILIES[family]()).base_model)
            assert line.endswith(f" of transformers {transformers.__version__} has no module moved.away")
    monkeypatch.setitem(FAMILIES, kind, dataclasses.replace(known, parallel=lambda config: config.moved))
    line = assert_runs_by_itself(helpers.any_model_of(helpers.FAMILIES[family]()).base_model)
    assert line.startswith(f"{kind}: ") and "moved" in line


def test_what_is_not_known_runs_its_own_forward_pass():
    gpt2 = model_of(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, vocab_size=23)).base_model
    assert assert_runs_by_itself(gpt2).startswith("GPT2Model is not among GPTNeoXModel, ")


def test_layers_that_compute_something_else_are_found_out_once(monkeypatch):
    base = tiny_model("llama").base_model
    base.layers[0].register_forward_hook(lambda _module, _inputs, output: output * 1.05)
    tries, states = [], network.states
    monkeypatch.setattr(network, "states", lambda *a, **k: (tries.append(1), states(*a, **k))[1])
    for _ in range(2):
        line = assert_runs_by_itself(base)
        assert line == "LlamaModel computes something else than the layers it is known for"
    assert tries == [1]


def test_running_out_of_memory_while_trying_says_nothing_of_the_model(monkeypatch):
    """Another try may fit."""

    def out_of_memory(*_, **__) -> None:
        raise torch.OutOfMemoryError("of 80 GB")

    base = tiny_model().base_model
    monkeypatch.setattr(network, "states", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        misfit(base)
    monkeypatch.undo()
    assert misfit(base) == ""


# --- hardware.gradient_checkpointing -------------------------------------------------------------------------------


def gradients(models: PolicyModels, *, together: bool = False) -> dict[str, torch.Tensor]:
    features = models.features(ROLLOUTS)
    policy = policy_logits(models, features).square().mean()
    if together:
        (policy + models.values(features).square().mean()).backward()
    else:
        policy.backward()
        models.values(features).square().mean().backward()
    return {name: p.grad for name, p in models.named_parameters().items() if p.grad is not None}


def kept_and_recomputed(architecture: str, mode: str, value: Any = None) -> list[PolicyModels]:
    both = [policy_models(tiny_model(architecture), mode, value, recompute=recompute) for recompute in (False, True)]
    for models in both:
        nudge(models.named_parameters())
    return both


def assert_same_gradients(architecture: str, mode: str, value: Any = None, *, together: bool = False) -> None:
    kept, recomputed = (
        gradients(models, together=together) for models in kept_and_recomputed(architecture, mode, value)
    )
    assert set(kept) == set(recomputed) and len(kept) > 6
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_activations_computed_again_give_the_same_gradients(architecture):
    assert_same_gradients(architecture, "all")


@pytest.mark.parametrize("value", [value_settings("head"), value_settings(train="all"), value_settings()])
@pytest.mark.parametrize("mode", MODES)
def test_whatever_the_value_network_and_whichever_adapter_was_on_last(mode, value):
    """Both losses on one graph: with LoRA, the value adapter is on when the policy's blocks are computed again."""
    assert_same_gradients("llama", mode, value, together=True)


@pytest.mark.parametrize(("architecture", "mode"), [("gpt_neo", "all"), ("llama", "last_k"), ("gptj", "lora")])
def test_the_same_gradients_by_the_models_own_forward_pass(fallback_reason, architecture, mode):
    assert_same_gradients(architecture, mode, together=True)


@pytest.mark.parametrize("mode", MODES)
def test_blocks_are_computed_again_for_training_alone(mode, monkeypatch):
    models = policy_models(tiny_model("llama"), mode, last_k=2, recompute=True)
    calls: Counter[bool] = Counter()
    mlp = type(models.model.base_model.layers[0].mlp)
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda *a, **k: (calls.update([torch.is_grad_enabled()]), plain(*a, **k))[1])
    trained = 2 if mode == "last_k" else LAYERS
    features = models.features(ROLLOUTS)
    policy_logits(models, features)  # tried by now
    calls.clear()
    policy_logits(models, features).square().mean().backward()
    assert calls[True] == 2 * trained
    calls.clear()
    with torch.no_grad():
        policy_logits(models, features)
    assert calls == {False: trained}


@pytest.mark.parametrize("sampling", helpers.SAMPLINGS)
def test_the_sampler_keeps_its_cache(sampling):
    uniforms = sampling_uniforms(0, "test", 0, 4, 5)
    drawn = []
    for models in kept_and_recomputed("gpt_neox", "last_k"):
        with models.sampling() as sampler:
            drawn.append(sample(sampling, sampler, ROLLOUTS.prompt_ids, ROLLOUTS.prompt_mask, uniforms))
    assert torch.equal(drawn[0][0], drawn[1][0]) and torch.equal(drawn[0][1], drawn[1][1])
