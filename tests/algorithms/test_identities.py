"""What the methods have to do with each other: gradients on random tensors in float64, equal but for a constant."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.apa import apa_loss
from rlhf.batches import Totals
from rlhf.config import APAConfig
from rlhf.masked import response_sums
from tests.algorithms.made_up import algorithm, gradient, loss_of, numbers, settings

LAM = 0.7
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
LENGTHS = (3, 1, 5, 2, 4, 4, 2, 5)
SEEDS = pytest.mark.parametrize("seed", [0, 1])


def of(loss: Tensor, logprobs: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logprobs)[0]


@SEEDS
def test_apa_is_a_preset_of_the_regression_to_the_bit(seed):
    made = numbers(seed)
    apa = algorithm("apa", lam=LAM)
    preset = algorithm("dro", lam=LAM, anchor="initial", weight="one")
    for kind in (torch.float32, torch.float64):
        batches = [
            dataclasses.replace(made, **{k: v.to(kind) for k, v in vars(made).items() if k != "mask"}).batch(
                algo, values=made.old.to(kind)
            )
            for algo in (apa, preset)
        ]
        new = made.new.to(kind).requires_grad_()
        outputs = [loss_of(algo, batch, new) for algo, batch in zip((apa, preset), batches, strict=True)]
        assert torch.equal(outputs[0].loss, outputs[1].loss)
        assert torch.equal(of(outputs[0].loss, new), of(outputs[1].loss, new))
        assert outputs[0].metrics.keys() == outputs[1].metrics.keys()
        assert all(torch.equal(outputs[1].metrics[key], value) for key, value in outputs[0].metrics.items())
        critics = [
            algo.critic_loss(new, batch, Totals(made.mask.sum(), 8))
            for algo, batch in zip((apa, preset), batches, strict=True)
        ]
        assert torch.equal(*critics)


@SEEDS
def test_dro_is_half_lambda_of_apa_at_the_sampler_and_verls_formula(seed):
    made = numbers(seed)
    dro, apa = algorithm("dro", lam=LAM), algorithm("apa", lam=LAM, anchor="old")
    batch = made.batch(dro, values=made.old)
    torch.testing.assert_close(gradient(apa, batch, made.new), 2 / LAM * gradient(dro, batch, made.new), **CLOSE)
    new = made.new.clone().requires_grad_()
    u = new - made.old
    verl = torch.where(made.mask, -batch.advantages * new + LAM / 2 * u.square(), 0.0).sum() / made.mask.sum()
    torch.testing.assert_close(of(verl, new), gradient(dro, batch, made.new), **CLOSE)


@SEEDS
def test_prime_rls_loss_is_dro_of_twice_its_tau_but_for_the_ratio(seed):
    """-A rho + kl_tau log^2 rho: the same gradient where nothing has moved, from there on apart by -A (rho - 1)."""
    made, kl_tau = numbers(seed), 0.35
    dro = algorithm("dro", lam=2 * kl_tau)
    batch, tokens = made.batch(dro, values=made.old), made.mask.sum()
    assert batch.advantages is not None
    for at in (made.old, made.new):
        new = at.clone().requires_grad_()
        log_ratios = new - made.old
        terms = -batch.advantages * log_ratios.exp() + kl_tau * log_ratios.square()
        prime = of(torch.where(made.mask, terms, 0.0).sum() / tokens, new)
        apart = torch.where(made.mask, -batch.advantages * (log_ratios.detach().exp() - 1), 0.0) / tokens
        torch.testing.assert_close(prime, gradient(dro, batch, at) + apart, **CLOSE)
        assert bool(apart.any()) == (at is made.new)


def residuals(made, new: Tensor, anchor: Tensor) -> Tensor:
    """d = u - r / b of each response."""
    return response_sums(new - anchor, made.mask) - made.rewards.sum(1) / LAM


@SEEDS
def test_vargrad_with_a_mean_that_has_a_gradient_too_is_tba(seed):
    made, tba = numbers(seed), algorithm("tba", lam=LAM, group_size=4)
    new = made.new.clone().requires_grad_()
    groups = residuals(made, new, made.reference).view(-1, 4)
    errors = (groups - groups.mean(1, keepdim=True)).flatten()
    found = gradient(tba, made.batch(tba), made.new)
    torch.testing.assert_close(found, of(errors.square().mean(), new), **CLOSE)
    lengths = made.mask.sum(1)
    by_length = dataclasses.replace(tba.config, weight="half_lam_by_length")
    unequal = gradient(type(tba)(by_length, tba.settings), made.batch(tba), made.new)
    groups = residuals(made, new, made.reference).view(-1, 4)
    errors = (groups - groups.mean(1, keepdim=True)).flatten()
    live = of((LAM / 2 * errors.square() / lengths).mean(), new)
    assert (unequal - live).abs().max() > 1e-3  # with weights that differ in a group it is not


@SEEDS
@pytest.mark.parametrize("anchor", ["initial", "old"])
def test_rebel_is_four_times_vargrad_of_two(seed, anchor):
    made = numbers(seed)
    rebel, tba = algorithm("rebel", lam=LAM, anchor=anchor), algorithm("tba", lam=LAM, group_size=2, anchor=anchor)
    losses = [loss_of(algo, made.batch(algo), made.new).loss.item() for algo in (rebel, tba)]
    assert losses[0] == pytest.approx(4 * losses[1], rel=1e-12)
    torch.testing.assert_close(
        gradient(rebel, made.batch(rebel), made.new), 4 * gradient(tba, made.batch(tba), made.new), **CLOSE
    )


@SEEDS
def test_vargrad_is_the_mean_over_all_pairs_of_a_group(seed):
    made, tba = numbers(seed), algorithm("tba", lam=LAM, group_size=4)
    new = made.new.clone().requires_grad_()
    groups = residuals(made, new, made.reference).view(-1, 4)
    apart = (groups[:, :, None] - groups[:, None, :]).square().sum((1, 2)) / (4 * 3)
    expected = 2 * 4 / 3 * gradient(tba, made.batch(tba), made.new)
    torch.testing.assert_close(of(apart.mean(), new), expected, **CLOSE)


@SEEDS
def test_gvpos_gradient_is_vargrads(seed):
    made, tba = numbers(seed), algorithm("tba", lam=LAM, group_size=4)
    new = made.new.clone().requires_grad_()
    u = response_sums(new - made.reference, made.mask).view(-1, 4)
    rewards = made.rewards.sum(1).view(-1, 4)
    weights = (rewards - rewards.mean(1, keepdim=True)) - LAM * (u - u.mean(1, keepdim=True)).detach()
    gvpo = -(LAM * weights * response_sums(new, made.mask).view(-1, 4)).sum(1).mean() / 3
    expected = LAM**2 * 4 / (2 * 3) * gradient(tba, made.batch(tba), made.new)
    torch.testing.assert_close(of(gvpo, new), expected, **CLOSE)


@SEEDS
def test_pmd_mean_is_rloo_with_k2_to_the_sampler_by_length(seed):
    made = numbers(seed)
    pmd, rloo = algorithm("pmd_mean", lam=LAM), algorithm("rloo", group_size=4)
    batch, lengths = made.batch(pmd), made.mask.sum(1, keepdim=True)
    new = made.new.clone().requires_grad_()
    responses = response_sums(new, made.mask)
    k2 = (LAM * response_sums(new - made.old, made.mask).square() / 2).mean()
    reinforce = -(batch.advantages * responses).mean()
    torch.testing.assert_close(gradient(pmd, batch, made.new), of(reinforce + k2, new) / lengths, **CLOSE)
    at_rest = gradient(pmd, batch, made.old)
    torch.testing.assert_close(at_rest, gradient(rloo, made.batch(rloo), made.old) / lengths, **CLOSE)


@SEEDS
def test_grpo_without_std_clip_and_kl_is_rloo_where_nothing_has_moved(seed):
    made, rloo = numbers(seed), algorithm("rloo", group_size=4)
    kl = dataclasses.replace(settings("grpo").kl, coef=0.0)  # type: ignore[attr-defined]
    grpo = algorithm("grpo", std="none", ratio_clip=None, reduction="sum", kl=kl)
    expected = 3 / 4 * gradient(rloo, made.batch(rloo), made.old)
    torch.testing.assert_close(gradient(grpo, made.batch(grpo), made.old), expected, **CLOSE)


@SEEDS
def test_p3o_is_rloo_of_two_where_nothing_has_moved(seed):
    made, p3o, rloo = numbers(seed), algorithm("p3o"), algorithm("rloo", group_size=2)
    expected = gradient(rloo, made.batch(rloo), made.old)
    torch.testing.assert_close(gradient(p3o, made.batch(p3o), made.old), expected, **CLOSE)


@SEEDS
@pytest.mark.parametrize("name", ["a_star_po", "oapl", "qrpo"])
def test_weights_of_lambda_squared_are_the_same_square_in_units_of_reward(seed, name):
    made = numbers(seed)
    algo, one_form = (algorithm(name, lam=LAM, weight=weight) for weight in ("lam_squared", "one"))
    references = made.rewards[:, :4] if algo.config.reference_samples else None
    batch, anchor = made.batch(algo, references=references), algo.anchor(made.batch(algo, references=references))
    new = made.new.clone().requires_grad_()
    published = (LAM * response_sums(new - anchor, made.mask) - batch.advantages).square().mean()
    torch.testing.assert_close(gradient(algo, batch, made.new), of(published, new), **CLOSE)
    torch.testing.assert_close(gradient(algo, batch, made.new), LAM**2 * gradient(one_form, batch, made.new), **CLOSE)


def test_apas_own_function_stays_what_the_preset_is_compared_with():
    made, config = numbers(), settings("apa")
    assert isinstance(config, APAConfig)
    apa = algorithm("apa")
    batch = made.batch(apa, values=made.old)
    loss = apa_loss(made.new, made.reference, batch.advantages, made.mask, lam=config.lam)
    assert torch.equal(loss, loss_of(apa, batch, made.new).loss)
