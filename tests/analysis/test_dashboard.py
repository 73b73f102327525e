"""The dashboard: every panel shows what some run has, the analysis run holds the averages, and a stand-in for W&B's
server gets both once each."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wandb_workspaces")

from wandb_workspaces.workspaces import Workspace
from wandb_workspaces.workspaces.internal import View

from analysis.compared import Comparison
from analysis.dashboard import add_arguments, run
from analysis.load import SweepFolderError, load_sweep
from analysis.statistics import interval
from analysis.summary import compare
from analysis.tables import run_rows
from analysis.wandb_run import RUNS_TABLE, Destination, WandbError, sweep_curves
from analysis.workspace import build_workspace, reuse_saved, to_json
from tests.analysis.made_up import config, rows, write_run
from tests.analysis.wandb_stand_in import Server

HERE = Destination("me", "mine", "made_up", "made_up", offline=True)
PROJECT = {"tracking__project": "mine", "tracking__entity": None}


def made_run(sweep: Path, algo: str, seed: int, name: str = "", **changes: Any) -> None:
    gain = 0.3 + 0.1 * seed + (0.5 if algo == "apa" else 0.0)
    logged = rows([0.0, 1.0, 4.0], [0.0, gain, 2 * gain], gold=[1.0, 1.5, 1.2])
    for row in logged[1:]:
        row |= {"train/entropy": 0.5, "train/response_length": 20.0, "train/kl_coef": 0.0}
        row |= {"train/clip_fraction": 0.1} if algo == "ppo" else {}
    samples = [
        {"step": step, "prompt": f"p{prompt}", "response": f"r{step}", "reward": step / 4, "gold_reward": 1.0}
        for step in (0, 4)
        for prompt in range(2)
    ]
    write_run(sweep, name or f"{algo}-s{seed}", config(algo, seed, **PROJECT, **changes), logged, samples=samples)


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Two algorithms, three seeds."""
    for algo in ("apa", "ppo"):
        for seed in range(3):
            made_run(tmp_path / "made_up", algo, seed)
    return tmp_path / "made_up"


@pytest.fixture
def varied(tmp_path) -> Path:
    """APA under two lambdas; the value function's learning rate has the name that W&B wraps settings in."""
    for seed in range(2):
        for lam in (0.1, 1.0):
            made_run(tmp_path / "varied", "apa", seed, f"a{lam}-{seed}", algo__lam=lam, value={"learning_rate": lam})
    return tmp_path / "varied"


def built(folder: Path) -> tuple[Comparison, dict[str, Any]]:
    comparison = compare(load_sweep(folder))
    return comparison, json.loads(to_json(build_workspace(comparison, sweep_curves(comparison), HERE)))


def panels(view: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """By section."""
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


@pytest.mark.parametrize("which", ["sweep", "varied"])
def test_every_metric_of_a_panel_is_logged_and_every_grouping_is_in_the_config(which, request):
    comparison, view = built(request.getfixturevalue(which))
    records = [run.record for setting in comparison.settings for run in setting.runs]
    of_runs = set().union(*(record.metrics.columns for record in records))
    of_analysis = sweep_curves(comparison).keys
    tables = ["kl_efficiency_table", "before_after"]
    for panel in [panel for found in panels(view).values() for panel in found]:
        drawn = panel["config"]
        if panel["viewType"] == "Vega2":
            (table,) = {RUNS_TABLE} & set(re.findall(r'"([a-z_]+)"', json.dumps(drawn)))
            assert table and set(drawn["fieldSettings"].values()) <= set(run_rows(comparison)[0])
            continue
        if panel["viewType"] == "Weave":
            assert f'"val": "{tables.pop(0)}"' in json.dumps(drawn)
            continue
        axes = [drawn[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis") if axis in drawn]
        named = {*drawn.get("metrics", ()), *axes}
        assert named and (named <= of_runs or named <= of_analysis), drawn["chartTitle"]
        for key in drawn.get("overrideColors", {}):
            assert key.removeprefix("made_up-analysis:") in drawn["metrics"]
        if "groupBy" in drawn:
            top, wrapping, *rest = drawn["groupBy"].split(".")
            assert wrapping == "value"  # as W&B keeps each top-level setting
            assert all(record.setting(".".join([top, *rest])) is not None for record in records)
    assert tables == []


def test_reward_over_samples_is_grouped_with_a_band_from_minimum_to_maximum(varied):
    drawn = [panel["config"] for panel in panels(built(varied)[1])["Reward and KL"]]
    rewards = [one for one in drawn if one["metrics"] == ["eval/reward"]]
    assert [one["groupBy"] for one in rewards] == ["algo.value.name", "algo.value.lam", "value.value.learning_rate"]
    assert all(one["groupAgg"] == "mean" and one["groupArea"] == "minmax" and one["aggregate"] for one in rewards)
    assert all(one["xAxis"] == "samples" for one in drawn)
    settings = [f"apa (lam={lam}, value.learning_rate={lam})" for lam in ("0.1", "1")]
    assert drawn[-2]["metrics"] == [f"over_samples/{setting}/reward_mean" for setting in settings]


def test_the_scatters_points_are_the_runs_own_numbers(sweep):
    comparison, _ = built(sweep)
    points = [row for row in run_rows(comparison) if row["compared"]]
    assert [(point["algo"], point["seed"], point["eval/kl"]) for point in points] == [
        (algo, seed, 4.0) for algo in ("apa", "ppo") for seed in range(3)
    ]
    for setting in comparison.settings:
        own = [point["kl_efficiency"] for point in points if point["algo"] == setting.algo]
        assert sum(own) / len(own) == pytest.approx(setting.headline.kl_efficiency.mean)
        assert len(set(own)) == 3


def test_the_workspace_is_filtered_to_the_sweep_and_its_analysis_run(sweep):
    (sweep / "apa-s0/overwrites.json").write_text('{"count": 1}')
    section = built(sweep)[1]["spec"]["section"]
    shown = [(one["key"]["name"], one["op"], one["value"]) for one in section["runSets"][0]["filters"]["filters"]]
    assert shown == [("group", "=", "made_up"), ("jobType", "IN", ["online", "offline", "analysis"])]
    assert section["runSets"][0]["selections"]["tree"] == ["made_up-apa-s0"]  # what apa-s0-g1 took the place of
    colours = section["customRunColors"]
    assert colours["made_up-apa-s0-g1"] == colours["made_up-apa-s1"] != colours["made_up-ppo-s1"]


@pytest.mark.parametrize("which", ["sweep", "varied"])
def test_the_json_is_what_the_library_itself_reads_and_writes(which, request):
    _, view = built(request.getfixturevalue(which))
    model = View.model_validate(view)
    assert json.loads(model.model_dump_json(by_alias=True, exclude_none=True)) == view
    again = Workspace._from_model(model)
    assert [section.name for section in again.sections] == list(panels(view))
    assert all(type(panel).__name__ != "UnknownPanel" for section in again.sections for panel in section.panels)


def test_intervals_over_kl_are_those_of_the_seeds(sweep, varied):
    comparison = compare(load_sweep(sweep))
    row = sweep_curves(comparison).over_kl[-1]
    gains = interval([run.gain(row["kl"]) for run in comparison.settings[0].runs])
    assert (row["over_kl/apa/reward_gain_low"], row["over_kl/apa/reward_gain_high"]) == (gains.low, gains.high)
    assert row["over_kl/apa/seeds"] == 3 and row["over_kl/apa/reward_gain_mean"] == gains.mean
    assert not any(key.endswith("_low") for key in sweep_curves(compare(load_sweep(varied))).keys)  # two seeds


def test_curves_are_those_of_the_report(tmp_path):
    """A seed evaluated at other numbers of responses is linear in between, until it ends; the curve over KL ends where
    the seed that reached least does."""
    from analysis.charts_data import evaluations_band, frontier_band

    for seed, largest in ((0, 4.0), (1, 1.0)):
        logged = rows([0.0, largest / 2, largest], [0.0, 0.5 + seed, 1.0 + seed])
        for row, samples in zip(logged, ((0, 64, 128), (0, 96, 192))[seed], strict=True):
            row["samples"] = samples
        write_run(tmp_path, f"apa-s{seed}", config("apa", seed), logged)
    comparison = compare(load_sweep(tmp_path))
    (setting,), curves = comparison.settings, sweep_curves(comparison)
    band = evaluations_band(setting.runs, "reward", "samples")
    assert band is not None
    name = "over_samples/apa/reward"
    found = [[row[key] for key in ("samples", f"{name}_mean", f"{name}_min")] for row in curves.over_samples]
    assert found == [list(point) for point in zip(band.x, band.mean, band.low, strict=True)]
    assert found[1] == [64.0, pytest.approx((0.5 + 1.0) / 2), 0.5]  # the second: 64 / 96 of 1.5
    assert found[-1][:2] == [192.0, 2.0]  # the first has ended
    last = curves.over_kl[-1]
    assert last["kl"] == pytest.approx((48 / 49) ** 2)  # 50 points evenly to sqrt(4) = 2: of them the last up to 1
    report = frontier_band(setting, last["kl"], 2)
    assert last["over_kl/apa/reward_gain_mean"] == pytest.approx(report.mean[-1])
    # There the first is on its way to 0.5 at sqrt(2), the second on that from 1.5 at sqrt(0.5) to 2 at 1.
    ends = (0.5 * 48 / 49 / 2**0.5, 1.5 + 0.5 * (48 / 49 - 0.5**0.5) / (1 - 0.5**0.5))
    name = "over_kl/apa/reward_gain"
    assert (last[f"{name}_min"], last[f"{name}_max"], last["over_kl/apa/seeds"]) == (*map(pytest.approx, ends), 2)


def test_a_view_that_was_saved_is_saved_over_in_its_own_project_alone(sweep):
    comparison = compare(load_sweep(sweep))
    saved = build_workspace(comparison, sweep_curves(comparison), HERE)
    saved._internal_name, saved._internal_id = "nw-abc-v", "view1"
    for entity, kept in (("me", "view1"), (None, "view1"), ("you", "")):
        later = build_workspace(
            comparison, sweep_curves(comparison), Destination(entity, "mine", "made_up", "made_up", True)
        )
        reuse_saved(later, to_json(saved))
        assert later._internal_id == kept
    reuse_saved(later, "{")
    assert later._internal_id == ""


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def keys_of(run_folder: Path) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run_folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_offline_it_is_two_files_however_often_it_is_called(sweep, capsys):
    write_run(sweep, "ppo-s3", config("ppo", 3, **PROJECT), [], status="interrupted")
    assert run(options(str(sweep), "--offline")) == 0
    said = capsys.readouterr().out
    assert "left out: ppo-s3: interrupted\nnote: " in said and "have no usable run of seed 3" in said
    (sweep / "there").mkdir()
    assert run(options(str(sweep), "--offline", "--output", str(sweep / "there/it.json"))) == 0
    printed = capsys.readouterr().out
    assert f"wandb sync {sweep}/wandb/offline-run-*" in printed and "without --offline" in printed
    view = json.loads((sweep / "dashboard.json").read_text())
    assert (view["project"], view["displayName"]) == ("mine", "made_up reward and KL")
    assert panels(json.loads((sweep / "there/it.json").read_text())).keys() == panels(view).keys()
    (analysis_run,) = (sweep / "wandb").glob("offline-run-*")
    logged = keys_of(analysis_run)
    curves = sweep_curves(compare(load_sweep(sweep)))
    assert all(json.dumps(key) in logged for key in curves.keys)
    assert '"before_after.nrows":12' in logged and '"run_id":"made_up-analysis"' in logged
    assert f'"local_path":"{analysis_run.resolve()}' in logged  # a table's file goes where the run goes


def test_what_cannot_be_shown_is_one_line(sweep, tmp_path, monkeypatch):
    with pytest.raises(SweepFolderError):
        run(options(str(tmp_path / "nowhere")))
    write_run(tmp_path / "begun", "apa-s0", config("apa", 0), rows([0.0], [0.0]), status=None)
    with pytest.raises(WandbError, match="no finished RL run"):
        run(options(str(tmp_path / "begun")))
    write_run(tmp_path / "untracked", "apa-s0", config("apa", 0), rows([0.0, 1.0], [0.0, 1.0]))
    with pytest.raises(WandbError, match="--project"):
        run(options(str(tmp_path / "untracked"), "--offline"))
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.delitem(sys.modules, "analysis.workspace")
    monkeypatch.delattr("analysis.workspace")
    with pytest.raises(WandbError, match=r"pip install 'apa-rlhf\[dashboard\]'"):
        run(options(str(sweep), "--offline"))


def test_places_that_cannot_be_written_are_one_line(sweep, tmp_path, monkeypatch):
    for place in (tmp_path / "nope/d.json", tmp_path):
        with pytest.raises(WandbError, match=r"^--output .*: give a file in a folder that exists$"):
            run(options(str(sweep), "--offline", "--output", str(place)))
    assert not (tmp_path / "nope").exists()
    (sweep / "wandb").touch()
    with pytest.raises(WandbError, match="wandb: cannot be made"):
        run(options(str(sweep), "--offline"))
    assert not list(sweep.glob(".*"))  # the dashboard was written and put in its place

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("analysis.dashboard.write_whole", full)
    with pytest.raises(WandbError, match=r"dashboard\.json: cannot be written \(.+\); --output"):
        run(options(str(sweep), "--offline"))


def test_credentials_that_cannot_be_read_leave_it_offline(sweep, monkeypatch, capsys):
    def unreadable() -> bool:
        raise WandbError("W&B's credentials cannot be read: bad netrc")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("analysis.dashboard.logged_in", unreadable)
    assert run(options(str(sweep))) == 0
    assert "once that is mended: W&B's credentials cannot be read: bad netrc" in capsys.readouterr().out
    assert len(list((sweep / "wandb").glob("offline-run-*"))) == 1


def test_a_copied_folder_has_an_analysis_run_and_a_dashboard_of_its_own(sweep):
    import shutil

    copy = shutil.copytree(sweep, sweep.parent / "copied")
    assert run(options(str(copy), "--offline")) == 0
    (analysis_run,) = (copy / "wandb").glob("offline-run-*")
    assert analysis_run.name.endswith("-copied-analysis")
    view = json.loads((copy / "dashboard.json").read_text())
    assert view["displayName"] == "copied reward and KL"
    shown = view["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert [(one["key"]["name"], one["op"], one["value"]) for one in shown] == [
        ("group", "=", "made_up"),
        ("jobType", "IN", ["online", "offline", "analysis"]),
        ("name", "!=", "made_up-analysis"),
    ]


@pytest.fixture
def server(request) -> Iterator[Server]:
    with Server(rejects=getattr(request, "param", False)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def online(server: Server, sweep: Path, home: Path) -> subprocess.CompletedProcess:
    """In a process of its own: W&B reads its environment once."""
    code = (
        "import sys, argparse\nfrom analysis.dashboard import add_arguments, run\n"
        "parser = argparse.ArgumentParser()\nadd_arguments(parser)\n"
        "try: sys.exit(run(parser.parse_args()))\nexcept ValueError as error: print(error); sys.exit(2)"
    )
    place = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "a" * 40, "HOME": str(home)}
    usual = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-c", code, str(sweep)], env=usual | place, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_online_the_same_run_and_the_same_view_are_saved_again(server, sweep, tmp_path):
    assert run(options(str(sweep), "--offline")) == 0
    for _ in range(2):
        done = online(server, sweep, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"dashboard: http://127.0.0.1:{server.server_port}/me/mine?nw=" in done.stdout
    runs = {variables["name"] for operation, variables in server.asked if operation == "UpsertBucket"}
    views = [variables for operation, variables in server.asked if operation == "UpsertView2"]
    starts = [
        body["files"]["wandb-history.jsonl"]["offset"]
        for path, body in server.asked
        if path == "/files/me/mine/made_up-analysis/file_stream" and "wandb-history.jsonl" in body.get("files", {})
    ]
    assert runs == {"made_up-analysis"} and starts.count(0) == 2  # the second starts over, in place of the first
    assert [view.get("id") for view in views] == [None, "view1"] and views[0]["name"] == views[1]["name"]
    assert json.loads(views[0]["spec"])["section"]["panelBankConfig"]["sections"][0]["name"] == "Reward and KL"
    assert not list((sweep / "wandb").glob("offline-run-*"))  # the run is on the server now


@pytest.mark.parametrize("server", [True], indirect=True)
def test_a_rejected_key_is_one_line(server, sweep, tmp_path):
    done = online(server, sweep, tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == 1 and "permission denied; --offline" in done.stdout
