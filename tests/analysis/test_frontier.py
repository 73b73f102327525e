"""Logs of other trainers, in every form, to the KL efficiency that is worked by hand; and what cannot be read."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.other_runs import OtherRun, to_records
from analysis.summary import compare
from tests.analysis.made_up import config, rows, write_run

KL, REWARD = (0.0, 1.0, 4.0), (1.0, 2.0, 2.5)
# Over u = sqrt(KL) the gain rises from 0 to 1 at u = 1 and on to 1.5 at u = 2: (1/2 + 5/4) / 2.
BY_HAND = 0.875
KEYS = ("--reward-key", "reward", "--kl-key", "kl", "--kl-unit")
NATS = (*KEYS, "nats/response")


def log(file: Path, *columns: Sequence[Any], header: str = "step,reward,kl") -> Path:
    file.parent.mkdir(exist_ok=True)
    lines = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    file.write_text("\n".join([header, *lines]) + "\n")
    return file


def frontier(tmp_path: Path, *arguments: object) -> dict[str, dict[str, str]]:
    """Of each algorithm the first row of kl_efficiency.csv: what every run reached."""
    assert main(["frontier", *map(str, arguments), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "frontier.svg").stat().st_size > 1000
    with (tmp_path / "out" / "kl_efficiency.csv").open() as file:
        return {row["algo"]: row for row in reversed(list(csv.DictReader(file)))}


def test_every_form_and_unit_has_the_value_worked_by_hand(tmp_path: Path) -> None:
    table = log(tmp_path / "ppo-s0.csv", (0, 10, 20), REWARD, KL)
    (found,) = frontier(tmp_path, table, *NATS).values()
    assert (found["algo"], found["kl_budget"], found["ci_low"]) == ("ppo", "4.0", "")
    assert float(found["kl_efficiency"]) == pytest.approx(BY_HAND)

    nested = [
        {"step": 5, "data": {"reward": reward, "kl": kl / length, "tokens": length}} | {"step": place}
        for place, (reward, kl, length) in enumerate(zip(REWARD, KL, (10, 20, 40), strict=True))
    ]
    lines = tmp_path / "grpo.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in nested) + '{"step": 3, "da')
    keys = ("--reward-key", "data.reward", "--kl-key", "data.kl", "--length-key", "data.tokens")
    found = frontier(tmp_path, lines, *keys, "--kl-unit", "nats/token")["grpo"]
    assert float(found["kl_efficiency"]) == pytest.approx(BY_HAND)

    # Evaluations in rows of their own, KL in bits.
    history = [{"step": place, "reward": reward, "loss": 0.1} for place, reward in enumerate(REWARD)]
    history += [{"step": place, "kl": kl / math.log(2.0)} for place, kl in enumerate(KL)]
    state = tmp_path / "rloo" / "trainer_state.json"
    state.parent.mkdir()
    state.write_text(json.dumps({"epoch": 1.0, "log_history": history}))
    found = frontier(tmp_path, state, *KEYS, "bits/response")["rloo"]
    assert float(found["kl_efficiency"]) == pytest.approx(BY_HAND)


def test_exports_of_wandb_are_joined_and_runs_of_one_name_are_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scales = {"ppo-seed1": 0.8, "ppo-seed2": 1.0, "ppo-seed3": 1.2, "grpo": 2.0}
    for metric, values in (("eval/reward", REWARD), ("eval/kl", KL)):
        columns: list[Sequence[float]] = [(0, 10, 20)]
        for scale in scales.values():
            drawn = [1.0 + scale * (one - 1.0) for one in values] if metric == "eval/reward" else values
            columns += [drawn, [0.0] * 3, [9.0] * 3]
        header = ",".join(f'"{run} - {metric}{end}"' for run in scales for end in ("", "__MIN", "__MAX"))
        log(tmp_path / "wb" / f"{metric[5:]}.csv", *columns, header=f'"Step",{header}')
    keys = ("--reward-key", "eval/reward", "--kl-key", "eval/kl", "--kl-unit", "nats/response")
    found = frontier(tmp_path, tmp_path / "wb", *keys)
    ppo = {name: float(found["ppo"][name]) for name in ("seeds", "kl_efficiency", "ci_low", "ci_high")}
    # Student's t of two degrees of freedom; the standard deviation is a fifth of the value.
    half = 4.302653 * 0.2 * BY_HAND / math.sqrt(3.0)
    assert ppo == pytest.approx(
        {"seeds": 3, "kl_efficiency": BY_HAND, "ci_low": BY_HAND - half, "ci_high": BY_HAND + half}
    )
    assert float(found["grpo"]["kl_efficiency"]) == pytest.approx(2.0 * BY_HAND)
    assert "95 % interval over seeds (Student t)" in capsys.readouterr().out


def test_of_averaged_rows_the_best_is_chosen_on_one_half_and_scored_on_the_other(tmp_path: Path) -> None:
    table = log(tmp_path / "a.csv", range(6), (0.9, 1.1, 2.4, 1.6, 2.0, 3.0), (0, 0, 1, 1, 4, 4))
    # Even rows gain 0, 1.5, 1.1, odd ones 0, 0.5, 1.9. Chosen by the odd: (0.75 + 1.3) / 2; by the even, whose best
    # lies at KL 1: (0.25 + 0.5) / 2.
    found = frontier(tmp_path, table, *NATS, "--average", "2")["a"]
    assert float(found["kl_efficiency"]) == pytest.approx((1.025 + 0.375) / 2)
    assert float(found["reward_before"]) == 1.0


def test_noise_of_single_batches_is_no_gain() -> None:
    # Reward 0.5 sqrt(KL) with the noise of a batch: within 4 nats E is 0.5.
    draw, u = np.random.default_rng(0), np.linspace(0.0, 2.0, 400)
    runs = [OtherRun("a", str(seed), Path("log.csv")) for seed in range(8)]
    for run in runs:
        rewards = 0.5 * u + draw.normal(0.0, 0.3, len(u))
        run.rows = pd.DataFrame({"step": np.arange(400.0), "kl": u**2, "reward": rewards})
    found = [compare(to_records(runs, average, 0.0)).settings[0].headline for average in (None, 1)]
    averaged, single = (at.kl_efficiency.mean / np.sqrt(at.kl_budget) * 2.0 for at in found)
    assert 0.4 < averaged < 0.5 and single > 0.9


def test_what_is_tolerated_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Out of order, one step twice, one without a reward: the value is that of the rows in order.
    first = log(tmp_path / "x.csv", (20, 0, 10, 10, 15), (2.5, 1.0, 7.0, 2.0, "NaN"), (4.0, 0.0, 1.0, 1.0, 2.0))
    # No row of the initial policy.
    second = log(tmp_path / "y.csv", (10, 20), REWARD[1:], KL[1:])
    found = frontier(tmp_path, f"apa={first}", f"ppo={second}", *NATS)
    assert float(found["apa"]["kl_efficiency"]) == pytest.approx(BY_HAND)
    said = capsys.readouterr().out
    for words in ("not in order", "1 rows are of a step that came before", "1 of 4 steps", "--initial-reward"):
        assert words in said
    found = frontier(tmp_path, second, *NATS, "--initial-reward", "1")
    assert float(found["y"]["kl_efficiency"]) == pytest.approx(BY_HAND)


def test_runs_of_this_program_stand_beside_them(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "mine", f"apa-s{seed}", config("apa", seed), rows(KL, REWARD))
    table = log(tmp_path / "trl.csv", (0, 10, 20), REWARD, KL)
    found = frontier(tmp_path, tmp_path / "mine", table, *NATS)
    assert {name: float(row["kl_efficiency"]) for name, row in found.items()} == pytest.approx(
        {"mine: apa": BY_HAND, "trl": BY_HAND}
    )


GOOD = "step,reward,kl\n0,1,0\n1,2,1\n"


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("a.csv", GOOD, (), "--reward-key: name a column"),
        ("a.csv", GOOD, KEYS[:4], "--kl-unit"),
        ("a.csv", GOOD, ("--reward-key", "kl", *NATS[2:]), "--kl-key"),
        ("a.csv", GOOD, (*KEYS, "nats"), "--kl-unit"),
        ("a.csv", GOOD, (*KEYS, "nats/token"), "--length-key"),
        ("a.csv", GOOD, (*NATS, "--length-key", "kl"), "--length-key"),
        ("a.csv", GOOD, (*KEYS, "nats/token", "--length-key", "kl"), "not above 0"),
        ("a.csv", GOOD, (*NATS, "--average", "0"), "--average"),
        ("a.csv", GOOD, (*NATS, "--average", "2"), "--average"),
        ("a.csv", GOOD, (*NATS, "--initial-reward", "nan"), "--initial-reward"),
        ("a.csv", GOOD, (*NATS, "--step-key", "stp"), "did you mean step"),
        ("a.csv", GOOD.replace("reward", "rewards"), NATS, "did you mean rewards"),
        ("a.csv", GOOD.replace("2,1", "2,much"), NATS, "kl of row 2 is no number: much"),
        ("a.csv", GOOD.replace("2,1", "2,-1"), NATS, "none is below 0"),
        ("a.csv", GOOD.replace("2,1", "2,NaN"), NATS, "needs two steps"),
        ("a.csv", GOOD.replace("1,2,1", "1,2,1,5"), NATS, "no table in CSV"),
        ("a.csv", GOOD.replace("step", "kl"), NATS, "no table in CSV"),
        ("a.csv", "Step,r - kl\n0,0\n1,1\n", NATS, "r has no reward"),
        ("a.csv", "", NATS, "has no rows"),
        ("a.csv", b"\x00\xff\xfe\x9f" * 50, NATS, "no table in CSV"),
        ("a.jsonl", b"\x00\xff\xfe\x9f" * 50, NATS, "no JSON object"),
        ("a.jsonl", '{"kl": 1}\n[]\n{"kl": 2}\n', NATS, "line 2"),
        ("a.jsonl", '{"kl": 1e999, "reward": %s}\n' % ("9" * 400), NATS, "too large"),
        ("a.json", "[1, 2]", NATS, "than objects"),
        ("a.json", "[" * 100_000, NATS, "no JSON object"),
        ("a.wandb", GOOD, NATS, "ends in .csv"),
        ("a.csv", None, NATS, "no such file"),
        ("folder/a.txt", GOOD, NATS, "holds neither"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | bytes | None,
    options: Sequence[str],
    words: str,
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    source = file.parent if name.startswith("folder") else file
    assert main(["frontier", str(source), *options, "--output", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert not (tmp_path / "out").exists()


def test_options_of_logs_without_a_log_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "mine", "apa-s0", config("apa", 0), rows(KL, REWARD))
    assert main(["frontier", str(tmp_path / "mine"), "--kl-unit", "nats/response"]) == 2
    assert "--kl-unit" in capsys.readouterr().err
    assert main(["frontier", f"mine={tmp_path / 'mine'}"]) == 2
    assert "leave out mine=" in capsys.readouterr().err
