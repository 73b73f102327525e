"""Where each method comes to rest on a policy of six actions: expectations are enumerated, the rest is the project's
own losses. Some reach the optimum pi_b = pi_init exp(r / b) / Z, the others miss it by what theory says.

With what sampled held fixed, mu, the loss of sum_a mu_a w_a (u_a - c_a)^2 is at rest at the `lambert` policy, which is
anchor exp(c) where that sums to 1 alone; on policy it is at rest wherever w_a (u_a - c_a) is the same for all actions,
which for equal weights is anchor exp(c) / Z.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, root
from scipy.special import lambertw
from torch import Tensor

from rlhf.algorithms import Algorithm
from rlhf.algorithms.dar import dar_log_weights
from rlhf.algorithms.regression import quantile_advantages, soft_mean
from rlhf.batches import Totals, TrainingBatch
from tests.algorithms.made_up import algorithm, batch_of, gradient, settings

M, LAM = 6, 0.5
Q = torch.tensor([6, 1, 3, 4, 2, 4], dtype=torch.float64) / 20
"""The initial policy."""
MU = torch.tensor([2, 5, 1, 3, 6, 3], dtype=torch.float64) / 20
"""Another one that samples."""
R = torch.tensor([0.3, 1.1, -0.4, 0.9, -0.8, 0.2], dtype=torch.float64)
OPTIMUM = (Q.log() + R / LAM).softmax(0)
TWENTY = R.repeat_interleave((Q * 20).long())
"""Rewards of twenty responses of the initial policy, without noise."""

Rows = list[tuple[int, ...]]
"""Actions of a group, for every group that can be sampled."""


def groups(size: int) -> tuple[Rows, Callable[[Tensor], Tensor]]:
    """Every group of so many actions, and how likely each is under a policy."""
    rows = list(itertools.product(range(M), repeat=size))
    index = torch.tensor(rows)
    return rows, lambda mu: mu[index].prod(1)


def one_token(values: Tensor, actions: Tensor) -> Tensor:
    return values[actions][:, None]


def batch_of_groups(
    algo: Algorithm, actions: Tensor, old: Tensor, rewards: Tensor = R, references: Tensor | None = None
) -> TrainingBatch:
    """A response of one token for each action, sampled by exp(old)."""
    scores = one_token(rewards, actions)
    mask = torch.ones_like(scores, dtype=torch.bool)
    repeated = None if references is None else references.expand(len(actions), -1)
    return batch_of(algo, scores, mask, one_token(old, actions), one_token(Q.log(), actions), references=repeated)


def at_rest(field: Callable[[Tensor], Tensor], start: Tensor = Q) -> Tensor:
    """The policy at which the expected gradient over logits vanishes, found from `start`; one logit stays 0."""

    def function(free: np.ndarray) -> np.ndarray:
        logits = torch.cat([torch.from_numpy(free), torch.zeros(1, dtype=torch.float64)])
        return field(logits.log_softmax(0))[:-1].numpy()

    logits = (start.log() - start.log()[-1])[:-1].numpy()
    found = root(function, logits, method="hybr", tol=1e-12)
    assert np.abs(function(found.x)).max() < 1e-9, found.message
    return torch.cat([torch.from_numpy(found.x), torch.zeros(1, dtype=torch.float64)]).softmax(0)


def over_logits(logprobs: Tensor, actions: Tensor, weights: Tensor, slopes: Tensor) -> Tensor:
    """sum of weights x slopes x grad log pi(action): (M,)."""
    pulls = torch.zeros(M, dtype=torch.float64).index_add_(0, actions, weights * slopes)
    return pulls - pulls.sum() * logprobs.exp()


def expected_gradient(
    algo: Algorithm,
    *,
    mu: Tensor | None = None,
    size: int = 1,
    batch: Callable[[Tensor, Tensor], TrainingBatch] | None = None,
    likely: Callable[[Tensor], Tensor] | None = None,
    **more: Any,
) -> Callable[[Tensor], Tensor]:
    """log pi -> gradient of the algorithm's expected loss over groups that mu samples, or pi itself where mu is None.

    Args:
        batch: makes the minibatch of actions and of what sampled; as `batch_of_groups` by default.
        likely: probabilities of the groups, where they are not products.
    """
    rows, product = groups(size)
    actions = torch.tensor(rows).flatten()

    def field(logprobs: Tensor) -> Tensor:
        sampler = logprobs if mu is None else mu.log()
        made = batch_of_groups(algo, actions, sampler, **more) if batch is None else batch(actions, sampler)
        slopes = gradient(algo, made, one_token(logprobs, actions)).sum(1) * len(actions)
        pull = over_logits(logprobs, actions, (likely or product)(sampler.exp()).repeat_interleave(size), slopes)
        # On policy all of it vanishes where a policy is certain; the natural gradient does not.
        return pull / logprobs.exp() if mu is None else pull

    return field


def lambert(mu: Tensor, anchor: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """The minimiser of sum_a mu_a w_a (log pi_a - log anchor_a - c_a)^2 over policies, where anchor exp(c) sums to 1 or
    more."""
    scaled = (mu if weights is None else mu * weights).numpy()
    tilted = (anchor * targets.exp()).numpy()
    assert tilted.sum() >= 1 - 1e-12
    if tilted.sum() < 1 + 1e-12:
        return torch.from_numpy(tilted)

    def policy(kappa: float) -> np.ndarray:
        return scaled / kappa * lambertw(kappa * tilted / scaled).real

    kappa: Any = brentq(lambda kappa: policy(kappa).sum() - 1, 1e-9, 1e3, xtol=1e-14)
    return torch.from_numpy(policy(kappa))


def assert_policy(found: Tensor, expected: Tensor, least_miss: float = 0.0) -> None:
    """Equal to 1e-3 (1e-6 is what comes out), and apart from the optimum by at least so much in total variation."""
    assert (found - expected).abs().max() < 1e-6
    assert (found - OPTIMUM).abs().sum() / 2 >= least_miss


# --- what reaches the optimum, whatever sampled --------------------------------------------------------------------


@pytest.mark.parametrize("mu", [Q, MU], ids=["initial", "other"])
@pytest.mark.parametrize(("name", "size"), [("rebel", 2), ("tba", 2), ("tba", 3)])
def test_differences_within_a_group_need_no_partition_function(name, size, mu):
    algo = algorithm(name, lam=LAM, anchor="initial", group_size=size)
    assert_policy(at_rest(expected_gradient(algo, mu=mu, size=size)), OPTIMUM)


@pytest.mark.parametrize("mu", [Q, MU], ids=["initial", "other"])
def test_with_the_exact_value_a_star_po_reaches_the_optimum(mu):
    algo = algorithm("a_star_po", lam=LAM, reference_lam=None)
    assert_policy(at_rest(expected_gradient(algo, mu=mu, references=TWENTY)), OPTIMUM)


def test_dro_v_and_its_value_are_at_rest_together_at_the_optimum_whatever_sampled():
    algo = algorithm("dro_v", lam=LAM)
    best = soft_mean(TWENTY, LAM)
    actions = torch.arange(M)

    def batch(actions: Tensor, sampler: Tensor) -> TrainingBatch:
        made = batch_of_groups(algorithm("qrpo"), actions, sampler, references=TWENTY)
        values = best.expand(len(actions), 1)
        return dataclasses.replace(made, advantages=R[actions] - best, old_values=values)

    assert_policy(at_rest(expected_gradient(algo, mu=MU, batch=batch)), OPTIMUM)
    values = best.expand(M, 1).clone().requires_grad_()
    loss = algo.critic_loss(values, batch(actions, OPTIMUM.log()), Totals(torch.tensor(M), M))
    assert torch.autograd.grad(loss, values)[0].abs().max() < 1e-12


def test_dpo_with_the_labels_of_bradley_and_terry_reaches_the_optimum_and_ipo_that_of_its_preferences():
    first, second = torch.tensor(groups(2)[0]).T
    wins = torch.sigmoid(R[:, None] - R[None, :])
    for mu in (Q, MU):

        def likely(_: Tensor, mu: Tensor = mu) -> Tensor:
            return mu[first] * mu[second] * wins[first, second]

        dpo = at_rest(expected_gradient(algorithm("dpo", lam=LAM), mu=mu, size=2, likely=likely))
        assert_policy(dpo, OPTIMUM)
        ipo = at_rest(expected_gradient(algorithm("ipo", lam=LAM), mu=mu, size=2, likely=likely))
        assert_policy(ipo, (Q.log() + wins @ mu / LAM).softmax(0), 0.05)


# --- one batch to the end ------------------------------------------------------------------------------------------


def apa_batch(shift: float) -> Callable[[Tensor, Tensor], TrainingBatch]:
    """APA's minibatch with A = r - shift."""
    like = algorithm("qrpo")

    def batch(actions: Tensor, sampler: Tensor) -> TrainingBatch:
        made = batch_of_groups(like, actions, sampler, references=TWENTY)
        return dataclasses.replace(made, advantages=one_token(R - shift, actions))

    return batch


@pytest.mark.parametrize("mu", [Q, MU], ids=["initial", "other"])
def test_apa_misses_the_optimum_by_what_it_takes_z_for(mu):
    baseline = float(mu @ R)
    found = at_rest(expected_gradient(algorithm("apa", lam=LAM), mu=mu, batch=apa_batch(baseline)))
    assert_policy(found, lambert(mu, Q, (R - baseline) / LAM), 0.05)


def test_pmd_mean_is_a_mixture_of_kl_and_chi_square():
    pmd = algorithm("pmd_mean", lam=LAM, group_size=2)
    found = at_rest(expected_gradient(pmd, mu=Q, size=2))
    targets = (R - Q @ R) / LAM
    assert_policy(found, lambert(Q, Q, targets), 0.05)
    # The same policy maximises E c - KL(pi, q) - kappa / 2 chi2(pi, q), kappa = KL(q, pi).
    kappa = (Q * (Q.log() - found.log())).sum()
    slopes = targets - (found / Q).log() - kappa * found / Q
    assert (slopes - slopes.mean()).abs().max() < 1e-6


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", ["oapl", "pmd_partition"])
def test_a_groups_own_partition_function_bends_the_target(name, size):
    algo = algorithm(name, lam=LAM, group_size=size)
    rows, likely = groups(size)
    actions = torch.tensor(rows)
    found = at_rest(expected_gradient(algo, mu=Q, size=size))
    pool = R[actions] if name == "oapl" else R[actions[:, 1:]]
    targets = (R[actions[:, 0]] - soft_mean(pool, LAM)) / LAM
    weighted = likely(Q) * targets
    expected = torch.stack([weighted[actions[:, 0] == a].sum() for a in range(M)]) / Q
    if name == "oapl":
        assert bool((targets <= math.log(size) + 1e-12).all())  # no response may gain more than the group has
        assert found is not None and (rest_of(found, expected, Q) < 1e-6)
    else:
        assert_policy(found, lambert(Q, Q, expected), 0.01)


def rest_of(policy: Tensor, targets: Tensor, mu: Tensor) -> float:
    """How far mu (c - u) is from a multiple of the policy, which it is where the square is at rest."""
    pulls = mu * (targets - (policy / Q).log())
    return float((pulls - pulls.sum() * policy).abs().max())


@pytest.mark.parametrize("ratio", [2.0, 0.5])
def test_a_star_po_with_another_temperature_of_its_value(ratio):
    algo = algorithm("a_star_po", lam=LAM, reference_lam=ratio * LAM)
    if ratio > 1:  # Z > 1: the loss on what the initial policy sampled has one place of rest
        missed = lambert(Q, Q, (R - soft_mean(TWENTY, ratio * LAM)) / LAM)
        assert expected_gradient(algo, mu=Q, references=TWENTY)(missed.log()).abs().max() < 1e-9
        assert (missed - OPTIMUM).abs().sum() / 2 > 0.02
    on_policy = at_rest(expected_gradient(algo, references=TWENTY))
    assert_policy(on_policy, OPTIMUM)  # harmless where the policy itself samples


@pytest.mark.parametrize("quantile", ["identity", "log"])
def test_qrpo_is_at_rest_at_the_tilt_by_quantiles(quantile):
    algo = algorithm("qrpo", lam=LAM, quantile=quantile)
    found = at_rest(expected_gradient(algo, mu=Q, references=TWENTY))
    shares = (R[:, None] > TWENTY).double().mean(1) + (R[:, None] == TWENTY).double().mean(1) / 2
    tilt = shares if quantile == "identity" else shares.log()
    log_z = {"identity": math.log(LAM * (math.exp(1 / LAM) - 1)), "log": math.log(LAM / (1 + LAM))}[quantile]
    assert rest_of(found, tilt / LAM - log_z, Q) < 1e-9
    assert (found - (Q.log() + tilt / LAM).softmax(0)).abs().max() < 0.05  # ties: Z is that of a continuous reward


def test_qrpo_of_logs_targets_the_best_of_n():
    atoms, lam = 2000, 0.25
    rewards = torch.arange(atoms, dtype=torch.float64)
    advantages = quantile_advantages(rewards, rewards.expand(atoms, -1), lam, "log")
    target = (advantages / lam).exp() / atoms
    places = (rewards + 1) / atoms
    best_of_five = places**5 - (places - 1 / atoms) ** 5
    assert 1 + 1 / lam == 5 and (target - best_of_five).abs().sum() / 2 < 1e-3


# --- on policy -----------------------------------------------------------------------------------------------------


def test_apa_reaches_the_optimum_on_policy_and_whitened_that_of_another_temperature():
    apa = algorithm("apa", lam=LAM)
    assert_policy(at_rest(expected_gradient(apa, batch=apa_batch(3.0))), OPTIMUM)

    def whitened(actions: Tensor, sampler: Tensor) -> TrainingBatch:
        pi = sampler.exp()
        mean = pi @ R
        spread = (pi @ (R - mean).square()).sqrt()
        return dataclasses.replace(apa_batch(0.0)(actions, sampler), advantages=one_token((R - mean) / spread, actions))

    wide = algorithm("apa", lam=2.0)
    found = at_rest(expected_gradient(wide, batch=whitened))
    spread = (found @ (R - found @ R).square()).sqrt()
    assert_policy(found, (Q.log() + R / (2.0 * spread)).softmax(0), 0.05)


def length_batch(algo: Algorithm, lengths: Tensor) -> Callable[[Tensor, Tensor], TrainingBatch]:
    """Responses of these lengths, all of whose log-probability stands on the first token."""

    def batch(actions: Tensor, sampler: Tensor) -> TrainingBatch:
        mask = torch.arange(int(lengths.max())) < lengths[actions][:, None]
        first = torch.zeros(mask.shape, dtype=torch.float64)

        def put(values: Tensor) -> Tensor:
            return first.index_fill(1, torch.tensor([0]), 1.0) * values[actions][:, None]

        return batch_of(algo, put(R), mask, put(sampler), put(Q.log()))

    return batch


def test_weights_by_length_tilt_towards_long_responses():
    lengths = torch.tensor([4, 9, 2, 7, 3, 8])
    pmd = algorithm("pmd_mean", lam=LAM, anchor="initial", group_size=2)
    make = length_batch(pmd, lengths)
    rows, likely = groups(2)
    actions = torch.tensor(rows).flatten()

    def field(logprobs: Tensor) -> Tensor:
        batch = make(actions, logprobs)
        fresh = torch.zeros(batch.mask.shape, dtype=torch.float64)
        fresh[:, 0] = logprobs[actions]
        slopes = gradient(pmd, batch, fresh)[:, 0]
        return over_logits(logprobs, actions, likely(logprobs.exp()).repeat_interleave(2), slopes) / logprobs.exp()

    found = at_rest(field)
    targets = (R - found @ R) / LAM
    kappa = (targets - (found / Q).log()) / lengths
    assert (kappa - kappa.mean()).abs().max() < 1e-6 and kappa.mean() < 0  # u = c - kappa length
    assert found @ lengths.double() > OPTIMUM @ lengths.double() + 0.05


def penalised(sampler: Tensor, coef: float = LAM) -> Tensor:
    """r less k1 to the initial policy."""
    return R - coef * (sampler - Q.log())


def test_rloo_with_k1_in_the_reward_reaches_the_optimum():
    rloo = algorithm("rloo", group_size=2)

    def batch(actions: Tensor, sampler: Tensor) -> TrainingBatch:
        return batch_of_groups(rloo, actions, sampler, rewards=penalised(sampler))

    assert_policy(at_rest(expected_gradient(rloo, size=2, batch=batch)), OPTIMUM)


def grpo(estimator: str, coef: float) -> Algorithm:
    kl = dataclasses.replace(settings("grpo").kl, coef=coef, estimator=estimator)  # type: ignore[attr-defined]
    return algorithm("grpo", group_size=2, std="none", ratio_clip=None, kl=kl)


def centred(spread: Callable[[Tensor], float] = lambda pi: 1.0) -> Callable[[Tensor, Tensor], TrainingBatch]:
    """A minibatch whose advantages are of a group without end: (r - E r) / spread."""
    like = algorithm("rloo", group_size=2)

    def batch(actions: Tensor, sampler: Tensor) -> TrainingBatch:
        pi = sampler.exp()
        advantages = (R - pi @ R) / spread(pi)
        return dataclasses.replace(batch_of_groups(like, actions, sampler), advantages=advantages[actions])

    return batch


def test_k2_in_the_loss_of_grpo_holds_at_the_optimum_and_k3_at_a_rational_policy():
    assert_policy(at_rest(expected_gradient(grpo("k2", LAM), batch=centred())), OPTIMUM)
    found = at_rest(expected_gradient(grpo("k3", LAM), batch=centred()))
    nu: Any = brentq(lambda nu: float((LAM * Q / (nu - R)).sum()) - 1, float(R.max()) + 1e-9, 1e3, xtol=1e-14)
    assert_policy(found, LAM * Q / (nu - R), 0.05)


def test_grpos_standard_deviation_changes_the_temperature():
    def spread(pi: Tensor) -> float:
        return float((pi @ (R - pi @ R).square()).sqrt())

    found = at_rest(expected_gradient(grpo("k2", 2.0), batch=centred(spread)))
    assert_policy(found, (Q.log() + R / (2.0 * spread(found))).softmax(0), 0.05)


def test_k1_in_the_loss_and_k3_in_the_reward_hold_nothing():
    for policy in (Q, MU, OPTIMUM):
        with_k1, without = (expected_gradient(grpo("k1", c), batch=centred())(policy.log()) for c in (LAM, 0.0))
        torch.testing.assert_close(with_k1, without, rtol=0, atol=1e-12)
    # k3 in the reward: near pi_init no pull, and a rare response, whose penalty is large, is driven away further.
    rare = torch.tensor([0.3, 1e-3, 0.2, 0.2, 0.1, 0.199], dtype=torch.float64)
    rare = rare / rare.sum()
    penalty = torch.expm1(Q.log() - rare.log()) - (Q.log() - rare.log())
    pull = rare * (penalty - rare @ penalty)  # d E[penalty as a cost] / d logit
    assert pull[1] > 0  # descending on the cost lowers the logit of what is rare already
    kl_pull = rare * ((rare / Q).log() - rare @ (rare / Q).log())
    assert kl_pull[1] < 0  # where the KL itself would bring it back


# --- step after step -----------------------------------------------------------------------------------------------


def inner_solve(algo: Algorithm, sampler: Tensor, rewards: Tensor = R) -> Tensor:
    """The policy at rest on what `sampler` samples."""
    return at_rest(
        expected_gradient(
            algo, mu=sampler, size=2, batch=lambda actions, old: batch_of_groups(algo, actions, old, rewards=rewards)
        ),
        sampler,
    )


def test_exact_steps_anchored_at_the_sampler_walk_the_frontier():
    rebel, policy, steps = algorithm("rebel", lam=3.0), Q, 3
    for _ in range(steps):
        policy = inner_solve(rebel, policy)
    assert_policy(policy, (Q.log() + R / (3.0 / steps)).softmax(0))


def test_rebel_with_a_penalty_comes_to_rest_at_the_optimum():
    rebel, policy, distances = algorithm("rebel", lam=2 * LAM), Q, []
    for _ in range(10):
        policy = inner_solve(rebel, policy, penalised(policy.log()))
        distances.append(float((policy.log() - OPTIMUM.log()).abs().max()))
    assert distances[-1] < 1e-2
    assert distances[-1] / distances[-2] == pytest.approx(0.5, abs=0.05)  # 1 - eta beta


def dar_weights(policy: Tensor, alpha: float, beta: float) -> Tensor:
    return dar_log_weights((Q / policy).log(), R - policy @ R, lam=alpha, lam_old=beta).exp()


def test_dar_comes_to_rest_at_the_optimum():
    alpha, beta, policy = LAM, 1.5, MU
    for step in range(60):
        expected = policy * dar_weights(policy, alpha, beta)
        expected = expected / expected.sum()
        if step == 0:  # weighted cross entropy of one batch, by the project's own loss
            algo = algorithm("dar", lam=alpha, lam_old=beta, weight_clip=1e6, group_size=2)
            like = centred()
            assert (at_rest(expected_gradient(algo, mu=policy, batch=like)) - expected).abs().max() < 1e-6
        policy = expected
    assert_policy(policy, OPTIMUM)
