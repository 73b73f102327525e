"""The optimum and best-of-n against a task whose responses can all be enumerated."""

import itertools

import numpy as np
import pytest
from scipy.optimize import brentq

from analysis.optimum import ReferenceSamples, best_of_n, tilted

PROMPTS, WORDS, LENGTH = 8, 5, 4  # word 0 ends a response


class Enumerated:
    """A random bigram policy and random rewards: every response with its probability."""

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        bigrams = draw.dirichlet(np.ones(WORDS), size=(PROMPTS, WORDS))
        responses = [
            word
            for length in range(1, LENGTH + 1)
            for word in itertools.product(range(WORDS), repeat=length)
            if 0 not in word[:-1] and (word[-1] == 0 or length == LENGTH)
        ]
        self.probabilities = np.ones((PROMPTS, len(responses)))
        for index, response in enumerate(responses):
            for last, word in zip((0, *response), response, strict=False):
                self.probabilities[:, index] *= bigrams[:, last, word]
        assert np.allclose(self.probabilities.sum(axis=1), 1.0)
        self.rewards = draw.normal(size=self.probabilities.shape)

    def sample(self, count: int, seed: int, probabilities: np.ndarray | None = None) -> np.ndarray:
        """(P, count) indices of responses."""
        draw = np.random.default_rng(seed)
        rows = self.probabilities if probabilities is None else probabilities
        return np.array([draw.choice(len(row), size=count, p=row / row.sum()) for row in rows])

    def tilt(self, temperature: float) -> np.ndarray:
        weights = self.probabilities * np.exp(self.rewards / temperature)
        return weights / weights.sum(axis=1, keepdims=True)

    def at(self, temperature: float) -> tuple[float, float]:
        """KL and reward of the tilted policy, means over prompts."""
        policy = self.tilt(temperature)
        kl = (policy * np.log(policy / self.probabilities)).sum(axis=1).mean()
        return float(kl), float((policy * self.rewards).sum(axis=1).mean())

    @property
    def baseline(self) -> float:
        return float((self.probabilities * self.rewards).sum(axis=1).mean())

    def gain(self, kl: float) -> float:
        temperature = float(np.exp(brentq(lambda log: self.at(np.exp(log))[0] - kl, -2.5, 8.0)))
        return self.at(temperature)[1] - self.baseline


@pytest.fixture(scope="module")
def task() -> Enumerated:
    return Enumerated(0)


def drawn(task: Enumerated, count: int, seed: int) -> ReferenceSamples:
    return ReferenceSamples(np.take_along_axis(task.rewards, task.sample(count, seed), axis=1))


def test_the_frontier_equals_enumeration_and_the_jackknife_takes_its_bias_away(task: Enumerated) -> None:
    budgets = np.array([0.5, 1.0, 1.5, 2.0])
    truth = np.array([task.gain(kl) for kl in budgets])
    draws = [drawn(task, 64, seed) for seed in range(40)]
    corrected = np.array([samples.optimum(budgets).gain for samples in draws])
    plain = np.array([[samples._whole.parts(kl).mean() for kl in budgets] for samples in draws])
    error = corrected.std(axis=0, ddof=1) / np.sqrt(len(draws))
    assert (np.abs(corrected.mean(axis=0) - truth) < 2.5 * error).all()
    assert (plain.mean(axis=0)[1:] < truth[1:] - error[1:]).all()
    # Without the correction more responses raise the estimate.
    more = np.array([[drawn(task, 256, seed)._whole.parts(kl).mean() for kl in budgets] for seed in range(12)])
    assert (more.mean(axis=0)[1:] > plain.mean(axis=0)[1:]).all()


@pytest.mark.parametrize("count", [64, 256])
def test_where_it_is_trusted_the_bias_is_below_a_hundredth(task: Enumerated, count: int) -> None:
    draws = [drawn(task, count, seed) for seed in range(40)]
    trusted = float(np.quantile([samples.trusted_kl for samples in draws], 0.05))
    assert 0.5 < trusted < np.log(count)
    draws = [samples for samples in draws if samples.trusted_kl >= trusted]
    gains = np.array([samples.optimum(np.array([trusted])).gain[0] for samples in draws])
    truth = task.gain(trusted)
    assert abs(gains.mean() - truth) < 0.01 * truth + 2.0 * gains.std(ddof=1) / np.sqrt(len(draws))


def test_one_draw_lies_within_two_standard_errors_of_the_responses(task: Enumerated) -> None:
    """The prompts are given, so that the noise is that of responses: measured over draws."""
    budgets = np.array([0.3, 1.0])
    draws = np.array([drawn(task, 1024, seed).optimum(budgets).gain for seed in range(20)])
    truth = np.array([task.gain(kl) for kl in budgets])
    inside = np.abs(draws - truth) <= 2.0 * draws.std(axis=0, ddof=1)
    assert inside.mean() >= 0.85


def test_parts_have_the_gain_as_mean_and_the_covariance_form(task: Enumerated) -> None:
    samples = drawn(task, 512, 3)
    sheet = samples._whole
    policy = tilted(sheet.rewards, 0.7)
    omega = np.exp(sheet.rewards / 0.7 - policy.log_z[:, None])
    covariance = ((omega - 1.0) * (sheet.rewards - sheet.baseline[:, None])).mean(axis=1)
    assert np.allclose(policy.reward - sheet.baseline, covariance)
    kl = float(policy.kl.mean())
    assert sheet.parts(kl).mean() == pytest.approx(float((policy.reward - sheet.baseline).mean()), abs=2e-5)


def test_the_gain_is_concave_in_kl_and_ends_where_nothing_is_seen(task: Enumerated) -> None:
    samples = drawn(task, 256, 1)
    optimum = samples.optimum(np.linspace(0.0, 50.0, 200))
    assert optimum.kl[-1] < samples.largest_kl <= np.log(256)
    assert 0.0 < samples.trusted_kl < samples.largest_kl
    plain = np.array([samples._whole.parts(kl).mean() for kl in np.linspace(0.01, samples.largest_kl * 0.9, 30)])
    assert (np.diff(plain) > 0.0).all() and (np.diff(plain, 2) < 1e-6).all()
    assert samples.efficiency(samples.largest_kl + 1.0) is None


def test_efficiency_is_the_mean_over_the_root_of_kl(task: Enumerated) -> None:
    roots = np.linspace(0.0, 1.0, 201)
    truth = np.trapezoid([task.gain(root**2) if root > 0.01 else 0.0 for root in roots], roots)
    parts = drawn(task, 8192, 2).efficiency(1.0)
    assert parts is not None and parts.mean() == pytest.approx(truth, rel=0.03)


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_best_of_n_against_its_distribution(task: Enumerated, n: int) -> None:
    rounded = Enumerated(0)
    rounded.rewards = np.round(task.rewards)  # ties
    for one in (task, rounded):
        rewards, kls = [], []
        for probabilities, row in zip(one.probabilities, one.rewards, strict=True):
            values, places = np.unique(row, return_inverse=True)
            shares = np.bincount(places, probabilities)
            upto = np.cumsum(shares)
            chosen = upto**n - (upto - shares) ** n
            rewards.append((chosen * values).sum() - (probabilities * row).sum())
            kls.append((chosen * np.log(chosen / shares)).sum())
        samples = drawn(one, 4096, 5)
        found = best_of_n(samples.rewards, np.array([n]))
        assert found.gain.mean() == pytest.approx(np.mean(rewards), abs=0.02)
        assert found.kl[0] == pytest.approx(np.mean(kls), abs=0.02)
        assert found.kl[0] <= np.log(n) - (n - 1) / n + 1e-9


def test_best_of_n_is_the_mean_over_all_subsets_and_gold_follows_the_choice() -> None:
    rewards = np.array([[0.0, 3.0, 1.0, 1.0], [2.0, -1.0, 5.0, 0.5]])
    gold = np.array([[1.0, -2.0, 4.0, 6.0], [0.0, 1.0, 2.0, 3.0]])
    found = best_of_n(rewards, np.array([2]), gold)
    for prompt in range(2):
        pairs = list(itertools.combinations(range(4), 2))
        best = [max(pair, key=lambda i: rewards[prompt, i]) for pair in pairs]
        assert found.gain[0, prompt] == pytest.approx(rewards[prompt, best].mean() - rewards[prompt].mean())
        ties = [
            gold[prompt, list(pair)].mean() if len(set(rewards[prompt, list(pair)])) == 1 else gold[prompt, chosen]
            for pair, chosen in zip(pairs, best, strict=True)
        ]
        if prompt == 1:
            assert found.gold_gain is not None
            assert found.gold_gain[0, 1] == pytest.approx(np.mean(ties) - gold[1].mean())


def test_a_policy_below_the_optimum_lies_below_it(task: Enumerated) -> None:
    """Any other policy with that KL: one tilted by the reward with noise."""
    noisy = Enumerated(0)
    noisy.rewards = task.rewards + np.random.default_rng(1).normal(size=task.rewards.shape)
    policy = noisy.tilt(0.8)
    kl = float((policy * np.log(policy / task.probabilities)).sum(axis=1).mean())
    gain = float((policy * task.rewards).sum(axis=1).mean()) - task.baseline
    assert gain < task.gain(kl)


@pytest.mark.parametrize("rewards", [np.zeros((1, 8)), np.zeros((3, 2)), np.full((3, 8), np.nan)])
def test_too_little_is_refused(rewards: np.ndarray) -> None:
    with pytest.raises(ValueError, match="optimum"):
        ReferenceSamples(rewards)


def test_best_of_no_number_is_an_empty_table() -> None:
    """What a chart asks for where there are four responses."""
    found = best_of_n(np.zeros((3, 4)), np.arange(0))
    assert found.gain.shape == (0, 3) and found.kl.shape == (0,)
