"""Where methods come to rest on responses of two tokens out of three: those of whole responses reach the optimum, and
those that pull on each token by itself leave out what it makes later tokens cost in KL."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import root
from torch import Tensor

from rlhf.algorithms import Algorithm
from rlhf.batches import TrainingBatch
from rlhf.random import generator
from tests.algorithms.made_up import algorithm, batch_of, gradient, settings

LAM = 0.5
FIRST, SECOND = torch.tensor(list(itertools.product(range(3), repeat=2))).T
"""The tokens of all nine responses."""
REWARDS = torch.randn(9, generator=generator(0, "rewards of two tokens"), dtype=torch.float64)
INITIAL, OTHER = (
    torch.randn(4, 3, generator=generator(0, name), dtype=torch.float64).log_softmax(-1)
    for name in ("initial policy of two tokens", "another policy of two tokens")
)
"""log pi(token | state): before the first token, and after each of the three."""

Batch = Callable[[Algorithm, Tensor, Tensor], TrainingBatch]
"""(algorithm, rows among the nine responses, log policy that samples) -> minibatch."""


def of_responses(policy: Tensor) -> Tensor:
    """log pi of the tokens of all nine responses: (4, 3) -> (9, 2)."""
    return torch.stack([policy[0, FIRST], policy[1 + FIRST, SECOND]], 1)


def optimum() -> Tensor:
    """pi_init exp(r / lam) / Z as a policy of tokens."""
    joint = (of_responses(INITIAL).sum(1) + REWARDS / LAM).softmax(0).view(3, 3)
    return torch.cat([joint.sum(1)[None], joint / joint.sum(1, keepdim=True)])


def minibatch(algo: Algorithm, rows: Tensor, sampler: Tensor, rewards: Tensor = REWARDS) -> TrainingBatch:
    old, reference = of_responses(sampler)[rows], of_responses(INITIAL)[rows]
    scores = torch.stack([torch.zeros_like(rewards), rewards], 1)[rows]
    return batch_of(algo, scores, torch.ones_like(old, dtype=torch.bool), old, reference)


def at_rest(algo: Algorithm, batch: Batch = minibatch, *, mu: Tensor | None = None, size: int = 1) -> Tensor:
    """The policy at which the expected gradient vanishes, over groups that mu samples, or the policy itself."""
    groups = torch.tensor(list(itertools.product(range(9), repeat=size)))
    rows = groups.flatten()

    def function(free: np.ndarray) -> np.ndarray:
        policy = torch.cat([torch.from_numpy(free).view(4, 2), torch.zeros(4, 1, dtype=torch.float64)], 1)
        policy = policy.log_softmax(-1)
        sampler = policy if mu is None else mu
        likely = of_responses(sampler).sum(1).exp()[groups].prod(1).repeat_interleave(size)
        slopes = gradient(algo, batch(algo, rows, sampler), of_responses(policy)[rows]) * len(rows)
        pulls = torch.zeros(4, 3, dtype=torch.float64)
        pulls.index_put_((torch.zeros_like(rows), FIRST[rows]), likely * slopes[:, 0], accumulate=True)
        pulls.index_put_((1 + FIRST[rows], SECOND[rows]), likely * slopes[:, 1], accumulate=True)
        pulls -= pulls.sum(1, keepdim=True) * policy.exp()
        if mu is None:  # all of it vanishes where a policy is certain; differences of the natural gradient do not
            visits = torch.cat([torch.ones(1, dtype=torch.float64), policy[0].exp()])
            pulls = pulls / (visits[:, None] * policy.exp())
            pulls = pulls - pulls[:, 2:]
        return pulls[:, :2].flatten().numpy()

    found = root(function, (INITIAL[:, :2] - INITIAL[:, 2:]).flatten().numpy(), method="hybr", tol=1e-12)
    assert np.abs(function(found.x)).max() < 1e-9, found.message
    logits = torch.cat([torch.from_numpy(found.x).view(4, 2), torch.zeros(4, 1, dtype=torch.float64)], 1)
    return logits.softmax(-1)


def centred(algo: Algorithm, rows: Tensor, sampler: Tensor, penalty: float = 0.0) -> TrainingBatch:
    """Advantages of a group without end: R - E R, R less the penalty times k1 of the whole response."""
    logprobs = of_responses(sampler)
    rewards = REWARDS - penalty * (logprobs - of_responses(INITIAL)).sum(1)
    advantages = rewards - logprobs.sum(1).exp() @ rewards
    return dataclasses.replace(minibatch(algo, rows, sampler), advantages=advantages[rows])


def state_values(algo: Algorithm, rows: Tensor, sampler: Tensor) -> TrainingBatch:
    """A = Q - V of each token, exact and of the unpenalised reward."""
    table, policy = REWARDS.view(3, 3), sampler.exp()
    after = (policy[1:] * table).sum(1)
    advantages = torch.stack([after[FIRST] - policy[0] @ after, REWARDS - after[FIRST]], 1)
    made = minibatch(algorithm("rloo", group_size=3), torch.arange(9), sampler)
    made = dataclasses.replace(made, advantages=advantages)
    return made.rows(rows)


def exact_values(algo: Algorithm, rows: Tensor, sampler: Tensor) -> TrainingBatch:
    """A = r - V*, V* = lam log E exp(r / lam)."""
    v_star = LAM * (of_responses(INITIAL).sum(1) + REWARDS / LAM).logsumexp(0)
    like = minibatch(algorithm("rloo", group_size=3), torch.arange(9), sampler)
    return dataclasses.replace(like, advantages=REWARDS - v_star).rows(rows)


@pytest.mark.parametrize("mu", [None, INITIAL, OTHER], ids=["on policy", "initial", "other"])
@pytest.mark.parametrize("name", ["tba", "a_star_po"])
def test_squares_of_whole_responses_reach_the_optimum(name: str, mu: Tensor | None) -> None:
    if name == "tba":
        found = at_rest(algorithm("tba", lam=LAM, group_size=2), mu=mu, size=2)
    else:
        found = at_rest(algorithm("a_star_po", lam=LAM), exact_values, mu=mu)
    assert (found - optimum()).abs().max() < 1e-6


def test_a_penalty_in_the_reward_of_the_whole_response_reaches_the_optimum() -> None:
    found = at_rest(
        algorithm("rloo", group_size=3), lambda algo, rows, sampler: centred(algo, rows, sampler, penalty=LAM)
    )
    assert (found - optimum()).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["apa", "dro", "grpo"])
def test_a_pull_on_each_token_leaves_out_the_kl_of_later_ones(name: str) -> None:
    """At rest at pi_init exp(Q / lam) / Z with Q of the unpenalised reward: right in the last token, and in the first
    too large by exp(KL of what follows)."""
    if name == "grpo":
        kl = dataclasses.replace(settings("grpo").kl, coef=LAM, estimator="k2")  # type: ignore[attr-defined]
        algo = algorithm("grpo", std="none", ratio_clip=None, reduction="sum", group_size=3, kl=kl)
        found = at_rest(algo, centred)
    else:
        changes = {"anchor": "initial"} if name == "dro" else {}
        found = at_rest(algorithm(name, lam=LAM, **changes), state_values)
    best = optimum()
    assert (found[1:] - best[1:]).abs().max() < 1e-6
    kl_after = (best[1:] * (best[1:].log() - INITIAL[1:])).sum(1)
    predicted = (best[0].log() + kl_after).softmax(0)
    assert (found[0] - predicted).abs().max() < 1e-6
    values = (found[1:] * REWARDS.view(3, 3)).sum(1)
    torch.testing.assert_close(predicted, (INITIAL[0] + values / LAM).softmax(0))
    assert (found[0] - best[0]).abs().sum() / 2 > 0.01  # ten times what counts as reached
