"""Our layers against a model's own forward pass: states, gradients, and what is not computed."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config

from rlhf.models import network
from rlhf.models.decoder import attention
from rlhf.models.families import decoder_of
from rlhf.models.features import Features, before_response, features_of, run_base
from rlhf.models.held import hold
from rlhf.models.network import Network
from rlhf.models.rotation import Rotation, turn
from rlhf.models.split import split
from rlhf.sampling import choose
from rlhf.sampling.choose import unfit
from tests.helpers import ARCHITECTURES, LAYERS, MODES, model_of, policy_models, random_rollouts, tiny_model
from tests.sampling.test_fast import VARIANTS

PADDED = features_of(random_rollouts([5, 1, 3, 2], [4, 6, 1, 2]))
EVEN = features_of(random_rollouts([4, 4, 4], [6, 6, 6]))


def gradients(base: torch.nn.Module, states: Tensor, features: Features) -> dict[str, Tensor]:
    """Of a sum of squares over valid tokens."""
    base.zero_grad()
    valid = features.mask[:, features.prompt_width :]
    states[valid].square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in base.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("features", [PADDED, EVEN], ids=["padded", "even"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_states_and_gradients_are_those_of_the_models_own_forward_pass(variant, features):
    base = model_of(VARIANTS[variant]()).base_model.requires_grad_(True)
    run = Network(base)
    found, expected = run(features), before_response(run_base(base, features, None), features)
    assert run.own_pass == ""
    valid = features.mask[:, features.prompt_width :]
    torch.testing.assert_close(found[valid], expected[valid], atol=1e-5, rtol=1e-5)
    ours, own = gradients(base, found, features), gradients(base, expected, features)
    assert set(ours) == set(own) and len(own) > 10
    for name, gradient in own.items():
        assert (ours[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize(("variant", "last_k"), list(itertools.product(VARIANTS, (1, 2))))
def test_a_top_goes_on_from_the_trunk(variant, last_k):
    base = model_of(VARIANTS[variant]()).base_model
    trunk, top = split(base, last_k)
    with torch.no_grad():
        below, run = Network(trunk, whole=True), Network(top, top=True)
        hidden = below(PADDED)
        found = run(dataclasses.replace(PADDED, hidden=hidden))
        expected = before_response(run_base(base, PADDED, None), PADDED)
    assert below.own_pass == run.own_pass == ""
    torch.testing.assert_close(hidden[PADDED.mask], run_base(trunk, PADDED, None)[PADDED.mask], atol=1e-5, rtol=1e-5)
    valid = PADDED.mask[:, PADDED.prompt_width :]
    torch.testing.assert_close(found[valid], expected[valid], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("mode", "precision"), list(itertools.product(MODES, ("fp32", "bf16", "fp16"))))
@pytest.mark.parametrize("held", [None, torch.bfloat16], ids=["float32", "held in bf16"])
def test_known_in_every_mode_and_precision_and_near_the_own_forward_pass(mode, precision, held):
    model = tiny_model("llama", scale=0.1)
    if held is not None:
        hold(model.to(held))
    models = policy_models(model, mode, precision=precision)
    assert models.own_pass == ""
    rollouts = random_rollouts([5, 1, 3, 2], [4, 6, 1, 2])
    features = models.features(rollouts)
    with torch.no_grad():
        found = [models.policy_hidden(features), models.reference_hidden(features), models.values(features)]
        for run in models._made:
            run._found = network._Layers(None, "asked for")
        assert models.own_pass == "asked for"
        expected = [models.policy_hidden(features), models.reference_hidden(features), models.values(features)]
    close = 1e-5 if precision == "fp32" else 0.05
    for ours, own in zip(found, expected, strict=True):
        assert ours.dtype == own.dtype
        torch.testing.assert_close(ours[rollouts.mask], own[rollouts.mask], atol=close, rtol=close)


def test_a_texts_states_do_not_depend_on_how_much_padding_is_before_it():
    """Angles of far columns are rounded more coarsely than those of near ones."""
    config = ARCHITECTURES["llama"]()
    config.max_position_embeddings = 4096
    base = model_of(config).base_model
    alone = features_of(random_rollouts([6], [8]))
    beside = features_of(random_rollouts([2000, 6], [8, 8]))
    place = beside.prompt_width - 6
    ids = beside.input_ids.clone()
    ids[1, place:] = alone.input_ids[0]
    run = Network(base)
    with torch.no_grad():
        padded, found = run(dataclasses.replace(beside, input_ids=ids))[1], run(alone)[0]
    torch.testing.assert_close(padded, found, atol=1e-5, rtol=1e-5)


def test_running_out_of_memory_while_trying_is_told(monkeypatch):
    """It says nothing of the architecture: another try may fit."""

    def out_of_memory(*_, **__) -> None:
        raise torch.OutOfMemoryError("of 80 GB")

    model = tiny_model()
    monkeypatch.setattr(network, "states", out_of_memory)
    monkeypatch.setattr(choose, "both_ways", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        _ = Network(model.base_model).own_pass
    with pytest.raises(torch.OutOfMemoryError):
        unfit(model)
    monkeypatch.undo()
    assert Network(model.base_model).own_pass == unfit(model) == ""


def test_what_is_put_together_in_another_way_is_told_in_a_line(monkeypatch):
    def no_such_block(*_, **__) -> None:
        raise IndexError

    monkeypatch.setattr(network, "states", no_such_block)
    assert Network(tiny_model().base_model).own_pass == "GPTNeoXModel: IndexError"


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
    decoder = decoder_of(tiny_model("llama").base_model)
    seen = decoder.masks(None, torch.device("cpu"), 5, slice(3, 5))
    assert seen(0) is None
    last = seen(LAYERS - 1)
    assert last is not None and last[0, 0].tolist() == [[True] * 4 + [False], [True] * 5]


def test_what_is_not_known_runs_its_own_forward_pass():
    gpt2 = model_of(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, vocab_size=23)).base_model
    run = Network(gpt2)
    assert torch.equal(run(PADDED), before_response(run_base(gpt2, PADDED, None), PADDED))
    assert run.own_pass


def test_layers_that_compute_something_else_are_found_out(monkeypatch):
    base = tiny_model("llama").base_model
    block = type(base.layers[0])
    plain = block.forward
    monkeypatch.setattr(block, "forward", lambda self, *given, **named: 1.1 * plain(self, *given, **named))
    run = Network(base)
    assert torch.equal(run(PADDED), before_response(run_base(base, PADDED, None), PADDED))
    assert run.own_pass


def test_a_model_is_tried_once(monkeypatch):
    tries = []
    known = network._layers_of
    monkeypatch.setattr(network, "_layers_of", lambda *given, **named: (tries.append(1), known(*given, **named))[1])
    run = Network(tiny_model().base_model)
    for features in (PADDED, EVEN, PADDED):
        run(features)
    assert tries == [1]


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
    ("kind", "pairs"),
    [
        ("halves", [(0, 3), (1, 4), (2, 5)]),
        ("neighbours", [(0, 1), (2, 3), (4, 5)]),
    ],
)
@pytest.mark.parametrize("size", [6, 8], ids=["whole", "part of a head"])
def test_heads_turn_pair_by_pair(kind, pairs, size):
    by_pair = [1.0, 0.5, 0.1]
    angles = torch.arange(4.0)[:, None] * torch.tensor(by_pair)
    if kind == "halves":
        both = torch.cat((angles, angles), -1)
        rotation = Rotation.by_halves(both.cos(), both.sin(), size)
    else:
        rotation = Rotation.by_neighbours(angles.cos(), angles.sin(), size)
    torch.manual_seed(0)
    heads = torch.randn(2, 3, 4, size, requires_grad=True)
    expected = slowly_turned(heads.detach(), by_pair, pairs)
    columns = torch.arange(4).expand(2, 4)
    for at in (rotation.first(4), rotation.of(columns)):
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
    rotation = Rotation.by_halves(angles.cos(), angles.sin(), 4)
    heads = torch.randn(2, 1, 2, 4)
    turned = turn(heads, rotation.of(torch.tensor([[3, 4], [0, 5]])))
    torch.testing.assert_close(turned[1, 0, 0], heads[1, 0, 0])
    wide = torch.zeros(1, 1, 6, 4)
    wide[0, 0, 3], wide[0, 0, 4], wide[0, 0, 5] = heads[0, 0, 0], heads[0, 0, 1], heads[1, 0, 1]
    expected = turn(wide, rotation.first(6))[0, 0]
    torch.testing.assert_close(torch.stack((turned[0, 0, 0], turned[0, 0, 1], turned[1, 0, 1])), expected[3:])
