"""The common budget, values by prompt, and the sentence that they make."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from analysis.compared import BudgetResult, Comparison, NotReached
from analysis.load import load_sweep
from analysis.replicates import spread
from analysis.summary import compare
from analysis.tables import spread_rows
from analysis.verdict import verdict
from tests.analysis.made_up import config, rows, write_run

PROMPTS = 40
DIFFICULTY = np.random.default_rng(0).normal(size=PROMPTS)


def run(
    folder: Path,
    algo: str,
    seed: int,
    slope: float,
    largest: float = 4.0,
    *,
    by_prompt: bool = True,
    reference: str | None = None,
    **changes: object,
) -> None:
    """Gain = slope * sqrt(KL) at each prompt, with noise of its own, to `largest` nats."""
    draw = np.random.default_rng(seed + 1000 * sum(map(ord, algo)))
    kl = np.linspace(0.0, np.sqrt(largest), 9) ** 2
    prompts = np.array([DIFFICULTY + slope * np.sqrt(k) + (k > 0) * draw.normal(0.0, 0.2, PROMPTS) for k in kl])
    made = rows(kl.tolist(), prompts[:, 0::2].mean(1).tolist(), prompts[:, 1::2].mean(1).tolist())
    place = write_run(folder, f"{algo}-s{seed}-{len(list(folder.glob('*')))}", config(algo, seed, **changes), made)
    if by_prompt:
        kept = [{"iteration": i, "reward": row.tolist()} for i, row in enumerate(prompts)]
        (place / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    if reference is not None:
        summary = json.loads((place / "summary.json").read_text())
        (place / "summary.json").write_text(json.dumps({**summary, "reference_samples": reference}))


def compared(folder: Path) -> Comparison:
    return compare(load_sweep(folder))


def test_the_budget_is_the_largest_kl_that_every_run_reached(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        run(tmp_path, "apa", seed, 0.5, largest=2.3456 + seed)
        run(tmp_path, "ppo", seed, 0.3, largest=9.0)
    comparison = compared(tmp_path)
    assert {setting.headline.kl_budget for setting in comparison.settings} == {2.34}
    for setting in comparison.settings:
        efficiency = setting.headline.kl_efficiency
        assert efficiency is not None and efficiency.method == "crossed"
        # The mean of slope * u over [0, sqrt K].
        slope = {"apa": 0.5, "ppo": 0.3}[setting.algo]
        assert efficiency.mean == pytest.approx(slope * np.sqrt(2.34) / 2, abs=0.05)
        assert efficiency.low is not None and efficiency.high is not None
        assert efficiency.low < slope * np.sqrt(2.34) / 2 < efficiency.high
    # Beyond what a run of it reached a setting has no value.
    apa, ppo = comparison.settings
    within, beyond = apa.budgets
    assert isinstance(within, BudgetResult) and within.kl_budget == 1.0
    assert beyond == NotReached(4.0, runs=1)
    assert all(isinstance(budget, BudgetResult) for budget in ppo.budgets)


def test_who_is_above_whom(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        for algo, slope in (("apa", 0.5), ("ppo", 0.5), ("awr", 0.2)):
            run(tmp_path, algo, seed, slope)
    found = verdict(compared(tmp_path))
    assert found.sentence.startswith("Within 4 nats, which every run reached: ")
    assert " are above awr. Not told apart: " in found.sentence
    assert found.detail.startswith("Differences (each interval for itself, p by Holm's method for all): ")
    assert found.detail.endswith("3 seeds each, 40 prompts.")
    told = {frozenset((pair.first.name, pair.second.name)): pair.told_apart for pair in found.pairs}
    assert told == {
        frozenset(("apa", "ppo")): False,
        frozenset(("apa", "awr")): True,
        frozenset(("ppo", "awr")): True,
    }
    for pair in found.pairs:
        assert pair.difference >= 0.0 and pair.low is not None and pair.low < pair.difference


def test_two_seeds_speak_for_these_runs_alone(tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tmp_path, "apa", seed, 0.5)
        run(tmp_path, "awr", seed, 0.2)
    comparison = compared(tmp_path)
    assert {setting.headline.kl_efficiency.method for setting in comparison.settings} == {"prompts"}
    found = verdict(comparison)
    assert "In these runs apa is above awr." in found.sentence and "these runs alone" in found.detail


def test_runs_without_numbers_of_prompts_have_intervals_over_seeds(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        run(tmp_path, "apa", seed, 0.5, by_prompt=seed != 1)
        run(tmp_path, "awr", seed, 0.2)
    comparison = compared(tmp_path)
    assert not comparison.crossed
    assert {setting.headline.kl_efficiency.method for setting in comparison.settings} == {"student_t"}
    assert "intervals over seeds alone" in verdict(comparison).detail
    assert any("kept no numbers of prompts: apa-s1-2." in note for note in comparison.notes)


@pytest.mark.parametrize("row", [{"iteration": [1]}, {"iteration": None, "reward": 3}])
def test_rows_of_prompts_that_are_none_are_passed_over(row: dict[str, object], tmp_path: Path) -> None:
    run(tmp_path, "apa", 0, 0.5)
    with (tmp_path / "apa-s0-0" / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert compared(tmp_path).crossed


@pytest.mark.parametrize("rewards", [[[1.0], [2.0]], [1.0, "x"], {}])
def test_prompts_without_numbers_leave_their_halves(rewards: object, tmp_path: Path) -> None:
    run(tmp_path, "apa", 0, 0.5)
    lines = [json.dumps({"iteration": i, "reward": rewards}) + "\n" for i in range(9)]
    (tmp_path / "apa-s0-0" / "evaluations.jsonl").write_text("".join(lines))
    found = compared(tmp_path)
    assert not found.crossed and found.settings[0].headline.kl_efficiency.mean == pytest.approx(0.5, abs=0.05)


def test_rows_without_iterations_are_compared_by_halves(tmp_path: Path) -> None:
    made = [{key: value for key, value in row.items() if key != "iteration"} for row in rows([0, 1], [0, 1], [0, 1])]
    write_run(tmp_path, "apa-s0", config("apa", 0), made)
    assert len(compared(tmp_path).settings) == 1


@pytest.mark.parametrize("damage", ["empty", "cut", "turned"])
def test_reference_samples_that_are_damaged_count_as_none(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "reference_samples" / "ref.npz"
    file.parent.mkdir()
    np.savez_compressed(file, reward=np.zeros((PROMPTS, 8)))
    whole = file.read_bytes()
    damaged = {"empty": b"", "cut": whole[:100], "turned": whole[:60] + bytes([whole[60] ^ 0xFF]) + whole[61:]}
    file.write_bytes(damaged[damage])
    run(tmp_path, "apa", 0, 0.5, reference="ref.npz")
    assert compared(tmp_path).reference is None


def test_the_least_kl_is_a_budget_all_the_same(tmp_path: Path) -> None:
    run(tmp_path, "apa", 0, 0.5, largest=1.239e-13)
    assert compared(tmp_path).settings[0].headline.kl_budget == 1.23e-13


def test_other_budgets_are_no_other_prompts(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        run(tmp_path, "apa", seed, 0.5, dataset__kl_budgets=[4.0])
        run(tmp_path, "ppo", seed, 0.3, dataset__kl_budgets=[2.0])
    comparison = compared(tmp_path)
    assert comparison.crossed and not any("one scale" in note for note in comparison.notes)


def test_no_width_is_no_certainty(tmp_path: Path) -> None:
    for algo, gain in (("apa", 1.0), ("ppo", 0.5)):
        folder = write_run(tmp_path, algo, config(algo, 0), rows([0, 4], [0, gain], [0, gain]))
        kept = [json.dumps({"iteration": i, "reward": [value] * 2}) + "\n" for i, value in enumerate((0, gain))]
        (folder / "evaluations.jsonl").write_text("".join(kept))
    (pair,) = verdict(compared(tmp_path)).pairs
    assert (pair.low, pair.high, pair.p_value, pair.told_apart) == (None, None, None, False)


def test_the_share_of_the_optimum_and_the_reference_baseline(tmp_path: Path) -> None:
    rewards = DIFFICULTY[:, None] + np.random.default_rng(1).normal(size=(PROMPTS, 512))
    (tmp_path / "reference_samples").mkdir()
    np.savez(tmp_path / "reference_samples" / "ref.npz", reward=rewards)
    for seed in (0, 1, 2):
        run(tmp_path, "apa", seed, 0.7, largest=1.0, reference="ref.npz")
    comparison = compared(tmp_path)
    assert comparison.reference is not None
    (apa,) = comparison.settings
    # Normal rewards: the optimum gains sqrt(2 K), so that the share is 0.7 / sqrt 2.
    assert apa.headline.share is not None
    assert apa.headline.share.mean == pytest.approx(0.7 / np.sqrt(2.0), abs=0.05)
    assert apa.headline.share.low < 0.7 / np.sqrt(2.0) < apa.headline.share.high  # type: ignore[operator]
    assert "% of what is possible" in verdict(comparison).sentence
    assert not any("carry the optimum" in note for note in comparison.notes)
    # Sixteen responses see little, and what they show is not to be trusted.
    np.savez(tmp_path / "reference_samples" / "ref.npz", reward=rewards[:, :16])
    assert any("shares of it lower" in note for note in compared(tmp_path).notes)
    # Another initial policy has other reference samples: none are shared.
    run(tmp_path, "ppo", 0, 0.5, reference="other.npz")
    assert compared(tmp_path).reference is None


def test_more_than_is_possible_is_an_alarm(tmp_path: Path) -> None:
    rewards = DIFFICULTY[:, None] + np.random.default_rng(1).normal(size=(PROMPTS, 256))
    (tmp_path / "reference_samples").mkdir()
    np.savez(tmp_path / "reference_samples" / "ref.npz", reward=rewards)
    for seed in (0, 1, 2):
        run(tmp_path, "apa", seed, 2.5, largest=1.0, reference="ref.npz")
        run(tmp_path, "ppo", seed, 0.7, largest=1.0, reference="ref.npz")
    (note,) = (note for note in compared(tmp_path).notes if "by more than noise" in note)
    assert note.startswith("apa is above the optimum")


def test_a_run_that_hardly_moved_does_not_set_the_budget(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        run(tmp_path, "apa", seed, 0.5)
        run(tmp_path, "ppo", seed, 0.0, largest=0.001)
    comparison = compared(tmp_path)
    assert {setting.headline.kl_budget for setting in comparison.settings} == {4.0}
    assert [setting.algo for setting in comparison.settings] == ["apa"]
    assert {run.record.algo for run in comparison.excluded} == {"ppo"}
    assert all("0.001 nats" in run.reason for run in comparison.excluded)


def test_which_run_holds_the_budget_down_is_said(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        run(tmp_path, "apa", seed, 0.5)
        run(tmp_path, "ppo", seed, 0.3, largest=0.012 if seed == 2 else 4.0)
    comparison = compared(tmp_path)
    (note,) = (note for note in comparison.notes if note.startswith("The budget is as small"))
    assert "because of ppo-s2-5, which" in note and note.endswith("all others reached 4 nats.")
    # A sweep over settings is meant to spend unlike KLs.
    run(tmp_path, "apa", 0, 0.5, algo__lam=2.0)
    assert not any(note.startswith("The budget is as small") for note in compared(tmp_path).notes)


def test_the_trimmed_mean_has_no_interval_over_seeds_beside_one_over_prompts(tmp_path: Path) -> None:
    for seed in range(10):
        run(tmp_path / "prompts", "apa", seed, 0.5)
        run(tmp_path / "seeds", "apa", seed, 0.5, by_prompt=False)
    found = [compared(tmp_path / name).settings[0].headline.iqm for name in ("prompts", "seeds")]
    assert [one is not None and one.low is not None for one in found] == [False, True]
    assert found[0] is not None and found[1] is not None and found[0].mean == pytest.approx(found[1].mean)


def test_runs_that_stayed_at_the_initial_policy_are_called_finished(tmp_path: Path) -> None:
    run(tmp_path, "apa", 0, 0.0, largest=0.0)
    said = verdict(compared(tmp_path)).sentence
    assert "has finished" in said and "optimization.learning_rate" in said


def other_prompts(run_folder: Path, name: str) -> None:
    """As if the run had evaluated these."""
    file = run_folder / "evaluations.jsonl"
    rows = [{**json.loads(line), "prompts": name} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_runs_of_other_prompts_are_not_paired_by_prompt(tmp_path: Path) -> None:
    for algo, seed in itertools.product(("apa", "ppo"), range(3)):
        run(tmp_path, algo, seed, 0.5)
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    other_prompts(folders[0], "first")
    assert compared(tmp_path).crossed  # the others do not say
    other_prompts(folders[1], "second")
    found = compared(tmp_path)
    assert not found.crossed and any("the prompts are not the same" in note for note in found.notes)


def test_the_initial_policy_is_that_of_the_reference_samples(tmp_path: Path) -> None:
    """For reward and gold alike, in gains as in what the table says of before."""
    for seed in range(2):
        run(tmp_path, "apa", seed, 0.5, reference="ref.npz")
    (tmp_path / "reference_samples").mkdir()
    bare = compared(tmp_path).settings[0].runs[0].evaluations
    prompts = bare.rewards.shape[1]
    for file in tmp_path.glob("*/evaluations.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({**row, "gold_reward": row["reward"]}) + "\n" for row in rows))
    for file in tmp_path.glob("*/metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        made = [{**row, "eval/gold_reward": row["eval/reward"]} if "eval/reward" in row else row for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in made))
    rewards = np.random.default_rng(0).normal(size=(prompts, 32))
    np.savez(tmp_path / "reference_samples" / "ref.npz", reward=rewards, gold_reward=rewards + 2.0)
    setting = compared(tmp_path).settings[0]
    points = setting.runs[0].evaluations
    assert points.gains[1:] == pytest.approx(points.rewards[1:] - rewards.mean(axis=1))
    assert points.gold_gains is not None and points.gold_rewards is not None
    assert points.gold_gains[1:] == pytest.approx(points.gold_rewards[1:] - rewards.mean(axis=1) - 2.0)
    assert setting.gold_before is not None
    assert setting.reward_before.mean == pytest.approx(rewards.mean())
    assert setting.gold_before.mean == pytest.approx(rewards.mean() + 2.0)


def test_sft_policies_and_reward_models_are_replicates(tmp_path: Path) -> None:
    """Not settings; each run is read against its own samples, and the interval is that of all that was drawn."""
    draw = np.random.default_rng(2)
    (tmp_path / "reference_samples").mkdir()
    grid = list(itertools.product(range(4), range(3), (0, 1)))
    lifts = {sft: 0.1 * (sft - 1.5) for sft in range(4)}
    for sft, reward in itertools.product(range(4), range(3)):
        # Reward models of other units: what is possible is as much larger as the gain.
        samples = DIFFICULTY[:, None] + (1.0 + reward) * draw.normal(size=(PROMPTS, 256))
        np.savez(tmp_path / "reference_samples" / f"{sft}{reward}.npz", reward=samples)
    for sft, reward, seed in grid:
        for algo, slope in (("apa", 0.7), ("awr", 0.4)):
            run(
                tmp_path,
                algo,
                seed,
                (slope + lifts[sft]) * (1.0 + reward),
                largest=1.0,
                reference=f"{sft}{reward}.npz",
                sft__seed=sft,
                reward_model__seed=reward,
                reward_model__normalize="none",
            )
    comparison = compared(tmp_path)
    apa, awr = comparison.settings
    assert (apa.label, awr.label, len(apa.runs)) == ("", "", len(grid))
    assert apa.headline.kl_efficiency.mean == pytest.approx(0.7 * 2.0 / 2.0, abs=0.06)
    assert apa.headline.share is not None
    assert apa.headline.share.mean == pytest.approx(0.7 / np.sqrt(2.0), abs=0.05)
    assert any("units of their own" in note for note in comparison.notes)
    found = verdict(comparison)
    drawn = "4 SFT policies \N{MULTIPLICATION SIGN} 3 reward models \N{MULTIPLICATION SIGN} 2 seeds each, 40 prompts"
    assert f"{drawn}; so few seeds speak" in found.detail
    (pair,) = found.pairs
    # The difference is 0.15, 0.3 and 0.45 by the three: too unlike to be told from 0.
    assert not pair.told_apart and pair.low is not None and pair.low < 0.3 < (pair.high or 0.0)
    # E(1) = (slope + lift) (1 + reward) / 2.
    expected = [2.0 * np.std(list(lifts.values()), ddof=1) / 2.0, 0.7 / 2.0]
    spreads = spread(apa, comparison.crossed)
    assert spreads is not None
    (sft_part, reward_part, seed_part), prompts_part = spreads.axes, spreads.prompts
    assert sft_part == pytest.approx(expected[0] ** 2, rel=0.3) and reward_part == pytest.approx(0.7**2 / 4, rel=0.15)
    assert None not in (seed_part, reward_part, prompts_part)
    assert (seed_part or 0.0) < 0.01 * (reward_part or 0.0)
    (row, _) = spread_rows(comparison)
    assert float(row["reward model"].rstrip("%")) > 80.0
    left = compare([one for one in load_sweep(tmp_path) if one.replicate[1] == 0])
    assert "4 SFT policies \N{MULTIPLICATION SIGN} 2 seeds" in verdict(left).detail
    assert left.settings[0].headline.kl_efficiency.mean == pytest.approx(0.35, abs=0.04)
    without = compare([one for one in load_sweep(tmp_path) if one.id != apa.runs[0].record.id])
    assert any("no usable run of seed 0 (sft.seed=0, reward_model.seed=0)" in note for note in without.notes)
    assert spread(without.settings[0], without.crossed) is None
