"""`python -m analysis dashboard runs/<sweep>`: compare the runs, log the analysis run, write the workspace, and save it
where one is logged in.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.compared import Comparison
from analysis.load import RunRecord, load_sweep
from analysis.summary import compare
from analysis.wandb_run import Destination, WandbError, log_analysis, logged_in, sweep_curves
from rlhf.errors import reason
from rlhf.files import write_whole
from rlhf.terminal import say

FILE = "dashboard.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m analysis dashboard`."""
    parser.add_argument("sweep_folder", type=Path, help="a sweep's folder, such as runs/default")
    parser.add_argument(
        "--entity", help="W&B user or team; tracking.entity of the runs, or the account's, if not given"
    )
    parser.add_argument("--project", help="W&B project; tracking.project of the runs if not given")
    parser.add_argument("--output", type=Path, help=f"where the workspace is written as JSON; <sweep folder>/{FILE}")
    parser.add_argument("--offline", action="store_true", help="write files only, though one is logged in")


def run(options: argparse.Namespace) -> int:
    """Make the dashboard of one sweep and say where it is; 0.

    Raises:
        analysis.load.SweepFolderError: the folder does not exist or holds no runs.
        WandbError: no finished run, wandb-workspaces is missing, the files cannot be written, or W&B takes neither run
            nor workspace.
    """
    folder = Path(options.sweep_folder)
    file = options.output or folder / FILE
    if options.output and (file.is_dir() or not file.parent.is_dir()):
        raise WandbError(f"--output {file}: give a file in a folder that exists")
    comparison = compare(load_sweep(folder))
    if not comparison.settings:
        raise WandbError(f"{folder}: no finished RL run to show yet; python -m analysis report {folder} says why")
    workspaces = _workspaces()
    obstacle = _obstacle(options.offline)
    offline = obstacle is not None
    destination = _destination(comparison, options.entity, options.project, folder.resolve().name, offline)
    curves = sweep_curves(comparison)
    workspace = workspaces.build_workspace(comparison, curves, destination)
    workspaces.reuse_saved(workspace, _saved(file))
    _write(file, workspaces.to_json(workspace))
    files = log_analysis(folder, destination, comparison, curves)
    for line in said(comparison):
        say(line)
    if offline:
        say(f"dashboard: {file}")
        say(f"analysis run: {files}")
        say(f"upload the runs: {sync_line(folder)}")
        say(f"save the dashboard on W&B: the same command again, {obstacle}")
        return 0
    _save(workspace, file)
    _write(file, workspaces.to_json(workspace))  # with the name under which it was saved
    if _unsynced(folder):
        say(f"some runs were logged offline; upload them: {sync_line(folder)}")
    say(f"dashboard: {workspace.url}")
    return 0


def said(comparison: Comparison) -> list[str]:
    """Who is not shown, and what has to be known of the others: no panel has room for it."""
    left_out = [f"left out: {item.record.id}: {item.reason}" for item in comparison.excluded]
    return [*left_out, *(f"note: {note}" for note in comparison.notes)]


def sync_line(folder: Path) -> str:
    """What uploads every offline W&B run of the sweep."""
    patterns = ("*/wandb/offline-run-*", "wandb/offline-run-*")
    return " ".join(["wandb sync", *(f"{folder}/{pattern}" for pattern in patterns if any(folder.glob(pattern)))])


def _obstacle(asked: bool) -> str | None:
    """What has to change for the dashboard to be saved; None where it can be."""
    if asked:
        return "without --offline"
    if os.environ.get("WANDB_MODE", "online") != "online":
        return "without WANDB_MODE"
    try:
        return None if logged_in() else "after `wandb login`"
    except WandbError as error:
        return f"once that is mended: {error}"


def _saved(file: Path) -> str:
    """What an earlier call wrote; empty where there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    except OSError as error:
        raise WandbError(f"{file}: cannot be read ({error.strerror}); --output gives another file") from error


def _write(file: Path, text: str) -> None:
    """In one step: whoever reads it, or is killed here, has the file before or after."""
    try:
        write_whole(file, text + "\n")
    except OSError as error:
        raise WandbError(f"{file}: cannot be written ({error.strerror}); --output gives another file") from error


def _unsynced(folder: Path) -> bool:
    """Whether some run has W&B files that were never uploaded: `wandb sync` leaves a mark beside those that were."""
    return any(not any(run.glob("*.synced")) for run in folder.glob("*/wandb/offline-run-*"))


def _workspaces() -> Any:
    try:
        from analysis import workspace
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "wandb_workspaces":
            raise
        raise WandbError("the dashboard needs one more package: pip install 'apa-rlhf[dashboard]'") from error
    return workspace


def _destination(
    comparison: Comparison, entity: str | None, project: str | None, name: str, offline: bool
) -> Destination:
    """Where the runs were logged to, unless told otherwise.

    Raises:
        WandbError: the account's default entity is needed and W&B does not tell it.
    """
    records = [run.record for setting in comparison.settings for run in setting.runs]
    entity = entity or _shared(records, lambda record: record.setting("tracking.entity"))
    project = project or _shared(records, lambda record: record.setting("tracking.project"))
    if entity is None and not offline:
        entity = _default_entity()
    sweep = _shared(records, lambda record: record.sweep)
    if project is None or sweep is None:
        raise WandbError("the runs name no one sweep and project of W&B; --project gives the latter")
    return Destination(entity, project, sweep, name, offline)


def _shared(records: list[RunRecord], value: Callable[[RunRecord], Any]) -> Any:
    """What all of the records have; None where they differ."""
    values = {value(record) for record in records}
    return values.pop() if len(values) == 1 else None


def _default_entity() -> str:
    import wandb

    try:
        entity = wandb.Api(timeout=30).default_entity
    except Exception as error:  # whatever W&B raises for no network or a rejected key
        raise WandbError(f"W&B does not answer: {reason(error)}; --offline writes files only") from error
    if not entity:
        raise WandbError("W&B names no default entity of this account; --entity gives one")
    return entity


def _save(workspace: Any, file: Path) -> None:
    try:
        workspace.save()
    except Exception as error:  # whatever W&B raises for no network, a rejected key or a view that was deleted
        raise WandbError(
            f"W&B did not save the dashboard: {reason(error)}; {file} has it, and without that file a new one is made"
        ) from error
