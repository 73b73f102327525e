"""Our layers against a model's own forward pass: states, gradients, and what is not computed or computed again."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import GPT2Config

from rlhf.models import PolicyModels, network
from rlhf.models.decoder import Angles, turn
from rlhf.models.families import FAMILIES, decoder_of
from rlhf.models.features import Features, before_response, features_of, run_base
from rlhf.models.layers import compute_in_float32
from rlhf.models.modes import split
from rlhf.models.network import Network
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
        cos, sin = tables
        if "gptj" in variant:
            expected = Angles.of_pairs(sin, cos, size, halves=False)
        else:
            half = cos.shape[-1] // 2
            expected = Angles.of_pairs(cos[:, :half], sin[:, :half], size, halves=True)
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


@pytest.mark.parametrize(("halves", "pairs"), [(True, [(0, 3), (1, 4), (2, 5)]), (False, [(0, 1), (2, 3), (4, 5)])])
@pytest.mark.parametrize("size", [6, 8], ids=["whole", "part of a head"])
def test_heads_turn_pair_by_pair(halves, pairs, size):
    by_pair = [1.0, 0.5, 0.1]
    angles = torch.arange(4.0)[:, None] * torch.tensor(by_pair)
    rotation = Angles.of_pairs(angles.cos(), angles.sin(), size, halves=halves)
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
    for field in ("modules", "norms", "projections", "output", "mlp", "head_norms"):
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


def assert_same_gradients(architecture: str, mode: str, value: Any = None, *, together: bool = False) -> None:
    found = []
    for recompute in (False, True):
        models = policy_models(tiny_model(architecture), mode, value, recompute=recompute)
        nudge(models.named_parameters())
        found.append(gradients(models, together=together))
    kept, recomputed = found
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
