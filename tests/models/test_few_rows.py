"""Products of few rows are nn.Linear's, whatever the layout of what comes in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rlhf.models import few_rows
from rlhf.models.few_rows import LEAST, ROWS, FewRowsLinear, for_few_rows, sampling_head
from rlhf.models.held import HeldLinear
from rlhf.sampling.choose import unfit
from tests.helpers import MODES, nudge, policy_models, tiny_model
from tests.sampling.test_fast import LENGTHS, both


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, ROWS[0] - 1, ROWS[0], ROWS[-1], ROWS[-1] + 1])
@pytest.mark.parametrize("apart", [False, True], ids=["rows together", "rows apart"])
def test_a_product_is_that_of_the_layer(bias, rows, apart):
    torch.manual_seed(0)
    layer = nn.Linear(300, 400, bias=bias)
    assert layer.weight.numel() >= LEAST
    given = torch.randn(300, rows).t().unsqueeze(1) if apart else torch.randn(rows, 1, 300)
    with torch.no_grad():
        found = for_few_rows(layer)(given)
    assert found.shape == (rows, 1, 400)
    torch.testing.assert_close(found, F.linear(given, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)


def test_the_weight_is_the_left_factor_for_few_rows_of_large_matrices_alone(monkeypatch):
    products = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda left, right: (products.append(left.shape), mm(left, right))[1])
    large, small = for_few_rows(nn.Linear(300, 400)), for_few_rows(nn.Linear(30, 40))
    with torch.no_grad():
        for rows in (7, 8, 48, 49):
            large(torch.randn(rows, 300))
            small(torch.randn(rows, 30))
    assert products == [(400, 300), (400, 300)]


def test_a_twin_shares_every_tensor_and_leaves_the_model_as_it_was():
    base = tiny_model("llama").base_model
    kinds = [type(module) for module in base.modules()]
    twin = for_few_rows(base)
    assert [type(module) for module in base.modules()] == kinds
    shared = dict(base.named_parameters())
    assert {name: id(p) for name, p in twin.named_parameters()} == {name: id(p) for name, p in shared.items()}
    assert sum(type(module) is FewRowsLinear for module in twin.modules()) == 7 * 3


def test_layers_of_other_kinds_and_types_are_left_alone():
    class Other(nn.Linear):
        pass

    other, short = Other(3, 4), nn.Linear(3, 4).to(torch.bfloat16)
    assert for_few_rows(other) is other and for_few_rows(short) is short


def test_a_head_held_in_fewer_bits_is_one_too():
    head = HeldLinear(300, 400).to(torch.bfloat16)
    twin = sampling_head(head)
    assert type(twin) is FewRowsLinear and twin.weight.dtype == torch.float32
    given = torch.randn(8, 300)
    with torch.no_grad():
        torch.testing.assert_close(twin(given), F.linear(given, head.weight.float(), head.bias.float()))
    assert type(head) is HeldLinear and head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("mode", MODES)
def test_the_fast_sampler_draws_what_the_plain_one_does(monkeypatch, mode):
    monkeypatch.setattr(few_rows, "LEAST", 0)
    products = []
    mm = torch.mm
    models = policy_models(tiny_model("llama"), mode)
    nudge(models.named_parameters())
    with models.sampling() as sampler:
        assert unfit(sampler.model) == ""
        monkeypatch.setattr(torch, "mm", lambda left, right: (products.append(right.shape[1]), mm(left, right))[1])
        both(sampler)
    assert products.count(len(LENGTHS)) >= 7 * 3  # until a response has ended
