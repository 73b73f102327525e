"""What a sweep writes to W&B and reads from it: its results as one run (curves over seeds, KL efficiency, responses
before and after training), and its runs' metrics where their folders are out of reach.

W&B has no common KL axis and cannot average over one, so the averages are logged beside the runs. `sweeps` logs the
curves when a sweep ends; `python -m analysis dashboard` logs all of it for its panels.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.charts_data import evaluations_band
from analysis.compared import Comparison, SettingSummary
from analysis.errors import AnalysisError
from analysis.load import RunRecord, label_runs, make_record, sample_pairs
from analysis.statistics import interval
from analysis.tables import KL_EFFICIENCY_COLUMNS, kl_efficiency_rows, run_rows
from rlhf.errors import reason
from rlhf.runs.mirror import has_credentials, quiet_settings

JOB_TYPE = "analysis"
"""Tells the dashboard's own run from the runs of the sweep and from the curves logged when a sweep ends."""
SAMPLES_TABLE, EFFICIENCY_TABLE, RUNS_TABLE = "before_after", "kl_efficiency_table", "kl_efficiency_of_runs"
INIT_TIMEOUT = 20.0  # seconds to wait for the server

# Points of the KL axis, evenly spaced in sqrt(KL) up to the largest budget.
KL_POINTS = 50
_SAMPLE_COLUMNS = ("algo", "label", "seed", "prompt", "before", "after")
_SCORES = ("reward", "gold_reward")
# What W&B's server writes for numbers that JSON does not have.
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")
# Runs about runs: the averaged curves, of a sweep's end and of the dashboard.
_NOT_RUNS = ("sweep", JOB_TYPE)


class WandbError(AnalysisError):
    """W&B cannot be reached, refuses, or has nothing to give; the message is one line that says what to do."""


@dataclass(frozen=True)
class SweepCurves:
    """What the sweep-level run logs."""

    over_samples: list[dict[str, float]]
    over_kl: list[dict[str, float]]  # with `seeds` that reached it, and from 3 on `low` and `high`
    summary: dict[
        str, float
    ]  # kl_efficiency/<setting> and reward_gain_at_budget/<setting>, within the KL that every run reached

    @property
    def keys(self) -> set[str]:
        """Every metric that the run has."""
        return set(self.summary).union(*self.over_samples, *self.over_kl)


@dataclass(frozen=True)
class Destination:
    """Where on W&B a sweep's runs lie."""

    entity: str | None  # user or team; None: the account's default
    project: str
    sweep: str  # the group of its runs
    name: str  # of the sweep's folder: a copy has its own analysis run and dashboard, and the group of the original
    offline: bool

    @property
    def run_id(self) -> str:
        """The same for every call, so that W&B replaces the analysis run instead of adding one."""
        return f"{self.name}-{JOB_TYPE}"


def sweep_curves(comparison: Comparison) -> SweepCurves:
    """The averages over seeds, with 95 % intervals over KL where there are enough seeds for one."""
    summary = {}
    for setting in comparison.settings:
        summary[f"kl_efficiency/{setting.name}"] = setting.headline.kl_efficiency.mean
        summary[f"reward_gain_at_budget/{setting.name}"] = setting.headline.gain.mean
    rows = over_kl(comparison)
    for row in rows:
        for setting in comparison.settings:
            gains = gains_within(setting, row["kl"])
            if gains:
                spread, name = interval(gains), f"over_kl/{setting.name}"
                row[f"{name}/seeds"] = len(gains)
                if spread.low is not None and spread.high is not None:
                    row |= {f"{name}/reward_gain_low": spread.low, f"{name}/reward_gain_high": spread.high}
    return SweepCurves(over_samples(comparison), rows, summary)


def log_curves(wandb_run: Any, curves: SweepCurves) -> None:
    """Log the rows, each kind over its own axis, and the summary."""
    wandb_run.define_metric("over_samples/*", step_metric="samples")
    wandb_run.define_metric("over_kl/*", step_metric="kl")
    for row in [*curves.over_samples, *curves.over_kl]:
        wandb_run.log(row)
    for key, value in curves.summary.items():
        wandb_run.summary[key] = value


def log_analysis(folder: Path, destination: Destination, comparison: Comparison, curves: SweepCurves) -> Path:
    """Log the sweep's analysis run, files in folder/wandb, in place of any earlier one of this sweep.

    Returns:
        The folder of its W&B files.

    Raises:
        WandbError: the folder cannot be written, or W&B does not take the run.
    """
    import wandb

    try:
        (folder / "wandb").mkdir(exist_ok=True)
    except OSError as error:
        raise WandbError(f"{folder / 'wandb'}: cannot be made ({error.strerror}); W&B's files go there") from error
    earlier = list((folder / "wandb").glob(f"offline-run-*-{destination.run_id}"))
    tables: dict[str, Any] = {EFFICIENCY_TABLE: (KL_EFFICIENCY_COLUMNS, kl_efficiency_rows(comparison.settings))}
    if runs := [row for row in run_rows(comparison) if row["compared"]]:
        tables[RUNS_TABLE] = (tuple(runs[0]), runs)
    if samples := sample_rows(comparison):
        tables[SAMPLES_TABLE] = (tuple(samples[0]), samples)
    try:
        wandb_run = _open(folder, destination, comparison)
        files = Path(wandb_run.dir).parent
        log_curves(wandb_run, curves)
        with _data_folder(files):
            wandb_run.log({name: _table(columns, rows) for name, (columns, rows) in tables.items()})
            wandb_run.finish()
    except Exception as error:  # whatever W&B raises for no network, a rejected key or a foreign project
        with contextlib.suppress(Exception):  # it may have broken down
            wandb.teardown()
        said = f"W&B did not take the analysis run: {reason(error)}"
        raise WandbError(said if destination.offline else f"{said}; --offline keeps it for later") from error
    for superseded in earlier:  # else `wandb sync` would send each of them
        if superseded.name != files.name:
            shutil.rmtree(superseded, ignore_errors=True)
    return files


def sample_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A few prompts of each compared run with the response and its scores before and after training."""
    pairs = [
        (run.record, pair)
        for setting in comparison.settings
        for run in setting.runs
        for pair in sample_pairs(run.record)
    ]
    scores = [score for score in _SCORES if any(score in pair.before for _, pair in pairs)]
    rows = []
    for record, pair in pairs:
        texts = (pair.prompt, pair.before.get("response"), pair.after.get("response"))
        row = dict(zip(_SAMPLE_COLUMNS, (record.algo, record.label, record.seed, *texts), strict=True))
        for score in scores:
            row |= {f"{score}_before": pair.before.get(score), f"{score}_after": pair.after.get(score)}
        rows.append(row)
    return rows


def logged_in() -> bool:
    """Whether W&B has credentials: in the environment, its settings files or netrc. Asks neither server nor user.

    Raises:
        WandbError: they cannot be read.
    """
    try:
        return has_credentials()
    except Exception as error:  # a broken netrc or settings file raises what it likes
        raise WandbError(f"W&B's credentials cannot be read: {reason(error)}") from error


def _open(folder: Path, destination: Destination, comparison: Comparison) -> Any:
    """`resume` stays unset: a run of the same id is then replaced, not continued."""
    import wandb

    records = [run.record for setting in comparison.settings for run in setting.runs]
    return wandb.init(
        entity=destination.entity,
        project=destination.project,
        id=destination.run_id,
        name=f"{destination.name} {JOB_TYPE}",
        group=destination.sweep,
        job_type=JOB_TYPE,
        dir=str(folder),
        config={"runs": sorted(record.id for record in records), "sweep_name": destination.name},
        mode="offline" if destination.offline else "online",
        settings=quiet_settings(INIT_TIMEOUT),
    )


@contextlib.contextmanager
def _data_folder(folder: Path) -> Iterator[None]:
    """W&B keeps a table's file beside its run: in the home folder, as usual, a sync from elsewhere would miss it."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = before or str(folder.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    return wandb.Table(columns=list(columns), data=[[row[column] for column in columns] for row in rows])


def over_samples(comparison: Comparison) -> list[dict[str, float]]:
    """A row per number of responses at which anything was evaluated: mean, min and max over the seeds that got as far,
    each taken as linear between its own evaluations, as in the report.

    Keys: `samples`, and `over_samples/<setting>/<reward or kl>_<mean, min or max>`.
    """
    rows: dict[float, dict[str, float]] = {}
    for setting in comparison.settings:
        for quantity in ("reward", "kl"):
            band = evaluations_band(setting.runs, quantity, "samples")
            if band is None:
                continue
            name = f"over_samples/{setting.name}/{quantity}"
            for point in zip(band.x, band.mean, band.low, band.high, strict=True):
                samples, mean, low, high = map(float, point)
                row = rows.setdefault(samples, {"samples": samples})
                row |= {f"{name}_mean": mean, f"{name}_min": low, f"{name}_max": high}
    return [rows[samples] for samples in sorted(rows)]


def over_kl(comparison: Comparison) -> list[dict[str, float]]:
    """A row per point of a common KL axis: the best reward gained within it, over the seeds.

    Keys: `kl` (nats), and `over_kl/<setting>/reward_gain_<mean, min or max>`.
    """
    budgets = [budget.kl_budget for setting in comparison.settings for budget in setting.budgets]
    rows = []
    for kl in np.linspace(0.0, np.sqrt(max(budgets, default=0.0)), KL_POINTS) ** 2:
        row = {"kl": float(kl)}
        for setting in comparison.settings:
            name, gains = f"over_kl/{setting.name}/reward_gain", gains_within(setting, float(kl))
            if gains:
                row |= {f"{name}_mean": float(np.mean(gains)), f"{name}_min": min(gains), f"{name}_max": max(gains)}
        if len(row) > 1:
            rows.append(row)
    return rows


def gains_within(setting: SettingSummary, kl: float) -> list[float]:
    """Best reward gained within a KL (nats) by each run of the setting, as in the report's frontier; none where not all
    of them reached as much."""
    if not all(run.curve.reaches(kl) for run in setting.runs):
        return []
    return [run.gain(kl) for run in setting.runs]


def load_wandb_server(path: str, group: str, api: Any = None) -> list[RunRecord]:
    """Every run of one sweep on W&B's server, by id, labelled.

    Args:
        path: entity/project.
        group: the sweep's name.
        api: a `wandb.Api`; one of the account that is logged in if not given.

    Raises:
        WandbError: not logged in, no answer, no such project, or no runs of that group.
    """
    records: dict[str, RunRecord] = {}
    try:
        for run in (api or _api()).runs(path, filters={"group": group}):  # in the order of their creation
            if run.job_type in _NOT_RUNS:
                continue
            # A run that was overwritten leaves its earlier self on the server, under the same name.
            notes = ["an earlier run of this name is on W&B; the last one counts"] if run.name in records else []
            summary = {key: run.summary[key] for key in run.summary.keys()}  # noqa: SIM118 (no dict: no iteration)
            records[run.name] = record_from_wandb(
                Path(run.name), dict(run.config), run.scan_history(), summary, notes=notes
            )
    except WandbError:
        raise
    except Exception as error:  # whatever W&B raises for no network, a rejected key or a missing project
        raise WandbError(f"W&B, {path}: {reason(error)}") from error
    if not records:
        raise WandbError(f"W&B, {path}: no runs of group {group!r}")
    return label_runs([records[name] for name in sorted(records)])


def record_from_wandb(
    folder: Path,
    config: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    summary: Mapping[str, Any],
    problems: Iterable[str] = (),
    notes: Iterable[str] = (),
) -> RunRecord:
    """A run from what W&B has of it, without what W&B adds.

    Args:
        folder: of the run; its name is the run's id.
        rows: the history in order of step; of several rows with one step the first counts, as on the server.
    """
    by_step: dict[Any, dict[str, Any]] = {}
    for row in rows:
        # None: a metric that other rows have and this one lacks.
        logged = {key: _finite(value) for key, value in row.items() if not key.startswith("_") and value is not None}
        by_step.setdefault(row.get("_step", len(by_step)), logged)
    problems = list(problems)
    if not by_step:
        problems.append("W&B has no rows of it")
    return make_record(
        folder,
        {key: value for key, value in config.items() if not key.startswith("_")},
        [row for row in by_step.values() if row],
        {key: _finite(value) for key, value in summary.items() if not key.startswith("_")},
        problems,
        list(notes),
    )


def _finite(value: Any) -> Any:
    """None for what is no finite number, as in metrics.jsonl."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return None if value in _NOT_FINITE else value


def _api() -> Any:
    """Without a question: `wandb.Api` asks for a key where it finds none."""
    import wandb

    if not logged_in():
        raise WandbError("not logged in to W&B: `wandb login` first, or set WANDB_API_KEY")
    return wandb.Api(timeout=30)
