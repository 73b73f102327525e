"""A sweep's results as one W&B run: curves over seeds, KL efficiency, and responses before and after training.

W&B has no common KL axis and cannot average over one, so the averages are logged beside the runs. `sweeps` logs the
curves when a sweep ends; `python -m analysis dashboard` logs all of it for its panels.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.curves import gains_within, over_kl, over_samples, seeds_that_spent
from analysis.errors import AnalysisError
from analysis.samples import sample_pairs
from analysis.statistics import interval
from analysis.summary import Comparison
from analysis.tables import KL_EFFICIENCY_COLUMNS, kl_efficiency_rows
from rlhf.errors import reason
from rlhf.runs.mirror import has_credentials, quiet_settings

JOB_TYPE = "analysis"
"""Tells the dashboard's own run from the runs of the sweep and from the curves logged when a sweep ends."""
SAMPLES_TABLE, EFFICIENCY_TABLE, RUNS_TABLE = "before_after", "kl_efficiency_table", "kl_efficiency_of_runs"
INIT_TIMEOUT = 20.0  # seconds to wait for the server

_SAMPLE_COLUMNS = ("algo", "label", "seed", "prompt", "before", "after")
_SCORES = ("reward", "gold_reward")


class WandbError(AnalysisError):
    """W&B cannot be reached, refuses, or has nothing to give; the message is one line that says what to do."""


@dataclass(frozen=True)
class SweepCurves:
    """What the sweep-level run logs."""

    over_samples: list[dict[str, float]]  # rows of analysis.curves.over_samples
    over_kl: list[
        dict[str, float]
    ]  # rows of analysis.curves.over_kl, with `seeds` that spent it, and from 3 on `low` and `high`
    summary: dict[str, float]  # kl_efficiency/<setting> and reward_gain_at_budget/<setting>, at the headline budget

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
                row[f"{name}/seeds"] = seeds_that_spent(setting, row["kl"])
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
    if runs := run_rows(comparison):
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


def run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Each compared run with its KL at the end and its own KL efficiency and gain at the headline budget."""
    return [
        {
            "run": run.record.id,
            "setting": setting.name,
            "seed": run.record.seed,
            "kl": float(run.evaluations.kl[-1]),
            "kl_efficiency": run.curve.efficiency(setting.headline.kl_budget),
            "reward_gain_at_budget": float(run.curve.gain(setting.headline.kl_budget)),
        }
        for setting in comparison.settings
        for run in setting.runs
    ]


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
