"""Theorem 1 of the paper on a tabular policy, with the project's own losses.

A loss is a mean over tokens, so that a population loss is a batch in which every (state, action) occurs as often as
pi_old visits it: pi_old has probabilities n / 10. Advantages are raw, not whitened.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rlhf.algorithms.apa import apa_loss
from rlhf.algorithms.awr import awr_loss
from rlhf.random import generator

STATES, ACTIONS, LAM = 2, 4, 0.5
COUNTS = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
"""pi_old(a|s) in tenths; both states equally often."""
OTHER_COUNTS = torch.tensor([[7, 1, 1, 1], [1, 1, 1, 7]])


def random_logprobs(seed: int) -> Tensor:
    noise = torch.randn(STATES, ACTIONS, generator=generator(seed, "tabular policy"), dtype=torch.float64)
    return noise.log_softmax(-1)


def advantages_with_z_1(initial: Tensor) -> Tensor:
    """Random ones, shifted in each state so that sum_a pi_init(a|s) exp(A / lambda) = 1."""
    raw = torch.randn(STATES, ACTIONS, generator=generator(5, "advantages"), dtype=torch.float64)
    return raw - LAM * (initial + raw / LAM).logsumexp(-1, keepdim=True)


def population(counts: Tensor) -> tuple[Tensor, Tensor]:
    """States and actions of a batch that holds every pair as often as pi_old visits it, (1, T) each."""
    pairs = [(s, a) for s in range(STATES) for a in range(ACTIONS) for _ in range(int(counts[s, a]))]
    states, actions = torch.tensor(pairs).T
    return states[None], actions[None]


def gradient_descent(loss_of, steps: int, rate: float = 1.0) -> Tensor:
    """log pi after plain gradient descent on tabular logits from a uniform policy."""
    logits = torch.zeros(STATES, ACTIONS, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss_of(logits.log_softmax(-1)), logits)
        with torch.no_grad():
            logits -= rate * gradient
    return logits.detach().log_softmax(-1)


def apa_minimiser(initial: Tensor, advantages: Tensor, counts: Tensor, steps: int = 1500) -> Tensor:
    states, actions = population(counts)
    mask = torch.ones_like(states, dtype=torch.bool)
    anchor, adv = initial[states, actions], advantages[states, actions]
    return gradient_descent(lambda logprobs: apa_loss(logprobs[states, actions], anchor, adv, mask, lam=LAM), steps)


def test_with_z_1_gradient_descent_on_apa_reaches_the_best_policy_whatever_sampled():
    initial = random_logprobs(1)
    advantages = advantages_with_z_1(initial)
    best = initial + advantages / LAM
    assert torch.allclose(best.exp().sum(-1), torch.ones(STATES, dtype=torch.float64))
    for counts in (COUNTS, OTHER_COUNTS):
        assert (apa_minimiser(initial, advantages, counts) - best).abs().max() < 1e-8
    assert (initial - best).abs().max() > 1  # far from where it is anchored


def test_apa_says_nothing_about_actions_that_pi_old_never_takes_beyond_their_sum():
    initial = random_logprobs(1)
    advantages = advantages_with_z_1(initial)
    best = initial + advantages / LAM
    counts = torch.tensor([[5, 5, 0, 0], [4, 3, 2, 1]])
    found = apa_minimiser(initial, advantages, counts)
    assert (found - best)[0, :2].abs().max() < 1e-8 and (found - best)[1].abs().max() < 1e-8
    assert (found - best)[0, 2:].abs().max() > 0.1


def test_without_z_1_apas_minimiser_is_not_the_best_policy_and_moves_with_pi_old():
    initial = random_logprobs(1)
    advantages = advantages_with_z_1(initial) + torch.tensor([[0.5], [-0.5]], dtype=torch.float64)  # Z = e, 1 / e
    best = (initial + advantages / LAM).log_softmax(-1)
    found, other = (apa_minimiser(initial, advantages, counts) for counts in (COUNTS, OTHER_COUNTS))
    for policy in (found, other):
        assert (policy - best).abs().amax(-1).min() > 0.1  # in both states
    assert (found - other).abs().amax(-1).min() > 0.1
    # Both are minima: longer descent changes nothing.
    assert (apa_minimiser(initial, advantages, COUNTS, steps=2000) - found).abs().max() < 1e-8


def empirical_minimisers(n: int, repetitions: int, initial: Tensor, advantages: Tensor) -> Tensor:
    """log pi that minimises APA's loss on n sampled tokens with noisy advantages; (repetitions, STATES, ACTIONS).

    A row of the batch is a repetition, with a policy of its own; the rows of a mean do not touch each other.
    """
    draws = generator(n, "noisy samples")
    old = (COUNTS / 10).double()
    states = torch.randint(STATES, (repetitions, n), generator=draws)
    actions = old[states.flatten()].multinomial(1, generator=draws).view(repetitions, n)
    noise = torch.randn(repetitions, n, generator=draws, dtype=torch.float64) * 0.5
    anchor, noisy = initial[states, actions], advantages[states, actions] + noise
    mask = torch.ones_like(states, dtype=torch.bool)
    pairs = states * ACTIONS + actions
    logits = torch.zeros(repetitions, STATES, ACTIONS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=60, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logprobs = logits.log_softmax(-1).flatten(1).gather(1, pairs)
        loss = repetitions * apa_loss(logprobs, anchor, noisy, mask, lam=LAM)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return logits.detach().log_softmax(-1)


def test_with_n_noisy_samples_the_squared_error_falls_as_1_over_n():
    initial = random_logprobs(1)
    advantages = advantages_with_z_1(initial)
    best, old = initial + advantages / LAM, (COUNTS / 10).double()
    sizes, errors = [100, 1_000, 10_000, 100_000], []
    for n in sizes:
        found = empirical_minimisers(n, 16, initial, advantages)
        errors.append(float(((found - best).square() * old).sum(-1).mean()))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    # 16 repetitions of 2 x 3 free parameters: an error is known to sqrt(2 / 96) = 14%, the slope to about 0.03.
    assert -1.12 < slope < -0.88, (slope, errors)
    # The bound's constant: error <= d log(n L / delta) / n with noise of one nat.
    assert all(e < STATES * (ACTIONS - 1) * math.log(n / 0.05) / n for e, n in zip(errors, sizes, strict=True))


def test_awrs_population_minimiser_is_pi_old_reweighted():
    advantages = torch.randn(STATES, ACTIONS, generator=generator(9, "advantages"), dtype=torch.float64) / 2
    minimisers = []
    for counts in (COUNTS, OTHER_COUNTS):
        states, actions = population(counts)
        mask, adv = torch.ones_like(states, dtype=torch.bool), advantages[states, actions]
        found = gradient_descent(
            lambda logprobs, s=states, a=actions, m=mask, adv=adv: awr_loss(logprobs[s, a], adv, m, lam=LAM),
            3000,
            rate=1.5,
        )
        old = (counts / 10).double().log()
        torch.testing.assert_close(found, (old + advantages / LAM).log_softmax(-1), atol=1e-6, rtol=0)
        minimisers.append(found)
    assert (minimisers[0] - minimisers[1]).abs().max() > 0.1  # its anchor is pi_old, unlike APA's
