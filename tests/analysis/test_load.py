"""Run folders, whole and damaged, -> records; nothing dropped without a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis.evaluations import UnusableRunError, evaluations
from analysis.labels import label_configs
from analysis.load import SweepFolderError, label_runs, load_run, load_sweep, sample_pairs
from analysis.page_texts import counts
from analysis.summary import compare, samples_name
from tests.analysis.made_up import config, rows, write_run


def test_a_whole_run(tmp_path: Path) -> None:
    made = rows([0.0, 1.0], [0.1, 0.9])
    made.insert(1, {"step": 1, "iteration": 1, "samples": 32, "train/kl": -0.01})  # no evaluation in this row
    run = load_run(write_run(tmp_path, "apa-s3-0123abcd", config("apa", 3), made))
    assert (run.id, run.algo, run.seed, run.stage, run.sweep) == ("apa-s3-0123abcd", "apa", 3, "online", "made_up")
    assert (run.status, run.reason, run.notes, run.label) == ("finished", None, (), "")
    assert run.setting("dataset.kl_budgets") == [4.0, 1.0]
    assert run.setting("dataset.path", "unset") == "unset" and run.setting("no.such.key") is None
    np.testing.assert_array_equal(run.column("eval/kl"), [0.0, np.nan, 1.0])
    np.testing.assert_array_equal(run.column("train/kl"), [np.nan, -0.01, np.nan])
    points = evaluations(run)
    np.testing.assert_array_equal(points.samples, [0, 64])
    np.testing.assert_array_equal(points.reward_odd, [0.1, 0.9])  # eval/reward serves for both halves
    assert points.gold_reward is None and points.skipped == 0


def test_an_offline_run_is_compared_too_and_kept_apart_from_online_ones(tmp_path: Path) -> None:
    good = rows([0.0, 1.0], [0.1, 0.9])
    for sweep in ("offline", "both"):
        write_run(tmp_path / sweep, "awr-s0-1", config("awr", 0, stage__name="offline", algo__lam=2.0), good)
        write_run(tmp_path / sweep, "ilql-s0-2", config("ilql", 0, stage__name="offline"), good)
    write_run(tmp_path / "both", "awr-s0-3", config("awr", 0), good)
    write_run(tmp_path / "both", "evaluate-s0-4", config("awr", 0, stage__name="evaluate"), good[:1])
    alone, both = load_sweep(tmp_path / "offline"), load_sweep(tmp_path / "both")
    assert [(run.algo, run.label, run.stage) for run in alone] == [("awr", "", "offline"), ("ilql", "", "offline")]
    assert [run.algo for run in both] == ["awr offline", "awr", "", "ilql offline"]
    assert [run.label for run in both] == ["", "", "", ""]  # its lambda differs from that of another algorithm alone
    assert [run.algo for run in label_runs(both)] == [run.algo for run in both]
    summaries = compare(both)
    assert [setting.name for setting in summaries.settings] == ["awr", "awr offline", "ilql offline"]
    assert samples_name(summaries.settings) == "responses generated or trained on"
    assert samples_name(compare(alone).settings) == "responses trained on"
    assert samples_name(summaries.settings[:1]) == "responses generated"
    assert counts(summaries, "mine") == "mine: 4 runs, 3 compared, 0 left out, 1 of other stages (see runs.csv)."


def test_truncated_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    # Cut inside a two-byte character: the bytes are not even text.
    folder = write_run(tmp_path, "r", config("apa", 0), rows([0, 1], [0, 1]))
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 4, "note": "é'.encode()[:-1])
    run = load_run(folder)
    assert run.reason is None and len(run.metrics) == 2
    assert run.notes == ("the last line of metrics.jsonl is cut off and was left out",)


def test_nan_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    made = rows([0, 1, 2, 3], [0, 1, 2, 3])
    made[1]["eval/reward"] = float("nan")  # written as the token NaN
    made[2]["eval/kl"] = None
    run = load_run(write_run(tmp_path, "r", config("apa", 0), made))
    points = evaluations(run)
    np.testing.assert_array_equal(points.kl, [0, 3])
    assert points.skipped == 2


@pytest.mark.parametrize(
    ("kl", "reward", "message"),
    [
        ([float("nan"), 1, 2], [0, 1, 2], "no usable evaluation of the initial policy"),
        ([0, 1], [0, float("inf")], "no usable evaluation after the initial one"),
        ([float("nan")], [1], "no evaluation with a KL and a reward"),
    ],
)
def test_runs_whose_evaluations_cannot_be_compared(
    tmp_path: Path, kl: list[float], reward: list[float], message: str
) -> None:
    run = load_run(write_run(tmp_path, "r", config("apa", 0), rows(kl, reward)))
    with pytest.raises(UnusableRunError, match=message):
        evaluations(run)


def test_damage_becomes_a_reason(tmp_path: Path) -> None:
    good = rows([0, 1], [0, 1])
    write_run(tmp_path, "a_empty", config("apa", 0), [])
    write_run(tmp_path, "b_no_metrics", config("apa", 0), None)
    write_run(tmp_path, "c_no_summary", config("apa", 0), good, status=None)
    write_run(tmp_path, "d_failed", config("apa", 0), good, status="failed", error="Traceback\n  x\nOSError: disk full")
    write_run(tmp_path, "e_pruned", config("apa", 0), good, status="pruned")
    write_run(tmp_path, "f_no_config", None, good)
    write_run(tmp_path, "g_hole", config("apa", 0), good, tail='{"step"\n{"step": 9}\n')
    (write_run(tmp_path, "h_yaml", config("apa", 0), good) / "config.yaml").write_text("a: [1,\n")
    (write_run(tmp_path, "i_summary", config("apa", 0), good) / "summary.json").write_text('{"status": "fin')
    (write_run(tmp_path, "j_empty_config", config("apa", 0), good) / "config.yaml").write_text("")
    write_run(tmp_path, "k_no_seed", {"algo": {"name": "apa"}}, good)
    (tmp_path / "l_started").mkdir()
    (tmp_path / "l_started" / "lock.json").write_text("{}")
    (tmp_path / "logs").mkdir()  # not a run
    reasons = {run.id: run.reason for run in load_sweep(tmp_path)}
    unfinished = "no summary.json: still running, or killed; type the run's command again to resume it"
    assert reasons == {
        "a_empty": "metrics.jsonl is empty",
        "b_no_metrics": "metrics.jsonl is missing",
        "c_no_summary": unfinished,
        "d_failed": "failed: OSError: disk full",
        "e_pruned": "pruned",
        "f_no_config": "config.yaml is missing",
        "g_hole": "line 3 of metrics.jsonl is not a JSON object",
        "h_yaml": "config.yaml is not readable YAML",
        "i_summary": "summary.json is not readable JSON",
        "j_empty_config": "config.yaml is empty",
        "k_no_seed": "config.yaml lacks algo.name or seed",
        "l_started": unfinished,
    }


def test_folders_that_hold_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(SweepFolderError, match="no such folder"):
        load_sweep(tmp_path / "nonesuch")
    with pytest.raises(SweepFolderError, match="holds no run folders"):
        load_sweep(tmp_path)
    run = write_run(tmp_path, "r", config("apa", 0), rows([0, 1], [0, 1]))
    with pytest.raises(SweepFolderError, match=f"single run; give the sweep's folder, {tmp_path}"):
        load_sweep(run)


def test_labels_name_what_differs_within_an_algorithm(tmp_path: Path) -> None:
    good = rows([0, 1], [0, 1])
    for seed in (0, 1):
        write_run(tmp_path, f"apa-{seed}", config("apa", seed, algo__lam=0.1), good)
        write_run(tmp_path, f"apb-{seed}", config("apa", seed, algo__lam=1.0, output_dir="elsewhere"), good)
        write_run(tmp_path, f"ppo-{seed}", config("ppo", seed, algo__lam=5.0), good)
    labels = {run.id: run.label for run in load_sweep(tmp_path)}
    assert labels == {
        "apa-0": "lam=0.1",
        "apa-1": "lam=0.1",
        "apb-0": "lam=1",
        "apb-1": "lam=1",
        "ppo-0": "",
        "ppo-1": "",
    }


def test_label_keys_are_short_but_unambiguous() -> None:
    # learning_rate stands in two groups, so its group is named; another data set says its name alone.
    configs = [
        config("apa", 0, optimization__learning_rate=1e-5, dataset__name="hh", dataset__kl_budgets=[9.0]),
        config("apa", 0, optimization__learning_rate=1e-3),
    ]
    assert label_configs(configs) == [
        "dataset=hh, optimization.learning_rate=1e-05",
        "dataset=letters, optimization.learning_rate=0.001",
    ]
    assert label_configs([config("apa", 0), config("apa", 1, dataset__kl_budgets=[9.0, 1.0])]) == [
        "kl_budgets=[4.0,1.0]",
        "kl_budgets=[9.0,1.0]",
    ]
    assert label_configs([]) == []


def test_samples_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "r", config("apa", 0), rows([0, 1], [0, 1]))
    assert sample_pairs(load_run(folder)) == []
    kept = [{"step": step, "prompt": prompt} for step in (0, 2) for prompt in "abcd"]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept) + '{"step"')
    pairs = sample_pairs(load_run(folder))
    assert [(pair.prompt, pair.before["step"], pair.after["step"]) for pair in pairs] == [(p, 0, 2) for p in "abc"]


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys, analysis.load\n"
        "heavy = {'altair', 'pandas', 'scipy', 'torch', 'hydra', 'omegaconf', 'rich', 'rlhf.run'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import analysis.report, analysis.charts\n"
        "foreign = {'torch', 'hydra', 'rlhf.run'} & set(sys.modules)\n"
        "assert not foreign, foreign\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_settings_that_change_no_result_make_no_label() -> None:
    def run(**changed: object) -> dict[str, object]:
        return config("apa", 0) | changed

    assert label_configs([run(tracking={"project": "a"}), run(tracking={"project": "b"})]) == ["", ""]
    assert label_configs([run(reward={"retries": 1}), run(reward={"retries": 2})]) == ["", ""]
    assert label_configs([run(hardware={"slurm": {"pack": 1}}), run(hardware={"slurm": None})]) == ["", ""]
    assert label_configs([run(settings_from=["a sets b=1"]), run(settings_from=[])]) == ["", ""]
    assert label_configs([run(hardware={"threads": 1}), run(hardware={"threads": 2})]) == ["threads=1", "threads=2"]
