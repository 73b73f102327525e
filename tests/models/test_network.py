"""Our layers against a model's own forward pass: states, gradients, and what is not computed."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config

from rlhf.models import network
from rlhf.models.families import decoder_of
from rlhf.models.features import Features, before_response, features_of, run_base
from rlhf.models.network import Network
from rlhf.models.rotation import Rotation, turn
from rlhf.models.split import split
from tests.helpers import ARCHITECTURES, LAYERS, model_of, random_rollouts, tiny_model

PADDED = features_of(random_rollouts([5, 1, 3, 2], [4, 6, 1, 2]))
EVEN = features_of(random_rollouts([4, 4, 4], [6, 6, 6]))


def gradients(base: torch.nn.Module, states: Tensor, features: Features) -> dict[str, Tensor]:
    """Of a sum of squares over valid tokens."""
    base.zero_grad()
    valid = features.mask[:, features.prompt_width :]
    states[valid].square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in base.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("features", [PADDED, EVEN], ids=["padded", "even"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_and_gradients_are_those_of_the_models_own_forward_pass(architecture, features):
    base = tiny_model(architecture).base_model.requires_grad_(True)
    run = Network(base)
    found, expected = run(features, None), before_response(run_base(base, features, None), features)
    assert run._decoder is not None, "not known"
    valid = features.mask[:, features.prompt_width :]
    torch.testing.assert_close(found[valid], expected[valid], atol=1e-5, rtol=1e-5)
    ours, own = gradients(base, found, features), gradients(base, expected, features)
    assert set(ours) == set(own) and len(own) > 10
    for name, gradient in own.items():
        assert (ours[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize(("architecture", "last_k"), list(itertools.product(ARCHITECTURES, (1, 2))))
def test_a_top_goes_on_from_the_trunk(architecture, last_k):
    base = tiny_model(architecture).base_model
    trunk, top = split(base, last_k)
    with torch.no_grad():
        hidden = run_base(trunk, PADDED, None)
        run = Network(top)
        found, expected = run(PADDED, hidden), before_response(run_base(base, PADDED, None), PADDED)
    assert run._decoder is not None, "not known"
    valid = PADDED.mask[:, PADDED.prompt_width :]
    torch.testing.assert_close(found[valid], expected[valid], atol=1e-5, rtol=1e-5)


def test_the_last_block_is_computed_for_the_response_alone(monkeypatch):
    base = tiny_model("llama").base_model
    run = Network(base)
    run(EVEN, None)
    columns = []
    mlp = type(base.layers[0].mlp)
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, hidden: (columns.append(hidden.shape[1]), plain(self, hidden))[1])
    run(EVEN, None)
    assert columns == [10] * (LAYERS - 1) + [6]


def test_nothing_is_masked_where_nothing_is_padded():
    decoder = decoder_of(tiny_model("llama").base_model)
    seen = decoder.seen(None, torch.device("cpu"), 5, slice(3, 5))
    assert seen(0) is None
    last = seen(LAYERS - 1)
    assert last is not None and last[0, 0].tolist() == [[True] * 4 + [False], [True] * 5]


def test_what_is_not_known_runs_its_own_forward_pass():
    gpt2 = model_of(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, vocab_size=23)).base_model
    run = Network(gpt2)
    assert torch.equal(run(PADDED, None), before_response(run_base(gpt2, PADDED, None), PADDED))
    assert run._decoder is None


def test_layers_that_compute_something_else_are_found_out(monkeypatch):
    base = tiny_model("llama").base_model
    block = type(base.layers[0])
    plain = block.forward
    monkeypatch.setattr(block, "forward", lambda self, *given, **named: 1.1 * plain(self, *given, **named))
    run = Network(base)
    assert torch.equal(run(PADDED, None), before_response(run_base(base, PADDED, None), PADDED))
    assert run._decoder is None


def test_a_model_is_tried_once(monkeypatch):
    tries = []
    known = network._known
    monkeypatch.setattr(network, "_known", lambda *given: (tries.append(1), known(*given))[1])
    run = Network(tiny_model().base_model)
    for features in (PADDED, EVEN, PADDED):
        run(features, None)
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
