"""`python -m sweeps status|cancel|rerun runs/<sweep>`: look after a sweep that is at work, or was."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlhf.config import RunConfig
from rlhf.config.identity import sweep_folder
from rlhf.runs.state import OVER
from rlhf.terminal import complain, fitted_columns, fitted_table, tell
from rlhf.terminal import console as made_console
from sweeps.display import STATE_STYLES
from sweeps.status import AT_WORK, LOG, RunStatus, status_columns, sweep_status

# Wide enough that no log path is cut where the output is no terminal.
WIDTH_IN_FILES = 400


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 where the arguments cannot be."""
    options = _parser().parse_args(arguments)
    console = made_console(width=WIDTH_IN_FILES)
    named = Path("runs") / options.folder  # a sweep's name is enough where it lies in the default place
    options.folder = named if not options.folder.exists() and named.exists() else options.folder
    statuses, unreadable = sweep_status(options.folder)
    for line in unreadable:
        complain(line)
    if not statuses:
        complain(f"{options.folder}: no sweep was started there (runs/<sweep name>)")
        return 2
    if options.command == "status":
        return _status(statuses, console)
    if options.command == "cancel":
        return _cancel(statuses, console)
    return _rerun(statuses, options.failed, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sweeps", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "status": "each run with its state, progress, last reward and KL, job, node and log",
        "cancel": "ask what runs to checkpoint and stop, and take what waits out of the queue",
        "rerun": "start what did not finish again, with the config it had; it goes on from its checkpoint",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("folder", type=Path, help="the sweep's folder, as runs/default")
        if name == "rerun":
            command.add_argument("--failed", action="store_true", help="only what failed, not what was interrupted")
    return parser


def _status(statuses: list[RunStatus], console: Console) -> int:
    columns = status_columns(statuses)
    console.print(fitted_table(columns, console.width))
    for status in statuses:
        if status.reason:
            log = f" (log: {status.log})" if status.log and status.state not in OVER else ""
            tell(console, f"{status.state}: {status.name}: {status.reason}{log}", STATE_STYLES.get(status.state, ""))
    folders = {os.path.dirname(status.log): None for status in statuses if status.log}
    if folders and all(column.name != LOG for column in fitted_columns(columns, console.width)):
        tell(console, f"logs: {', '.join(folders)}")
    return 0


def _cancel(statuses: list[RunStatus], console: Console) -> int:
    from sweeps.runs import stop_path
    from sweeps.slurm_commands import scancel

    at_work = [status for status in statuses if status.state in AT_WORK and not status.is_input]
    in_jobs = [status for status in at_work if status.job]
    for status in in_jobs:
        stop_path(status.run).touch()  # its job lets the iteration at work end, however long that is
    running = {status.job for status in in_jobs if status.state == "running"}
    complaint = scancel({status.job for status in in_jobs} - running)
    # A driver ends by itself once its jobs have; one whose runs are no jobs yet would submit them.
    drivers = {status.driver for status in at_work if status.driver is not None and not status.job}
    for driver in drivers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(driver, signal.SIGTERM)
    if complaint:
        complain(complaint)
    if not at_work:
        tell(console, "nothing of this sweep runs or waits")
    else:
        stopped = [f"{len({status.job for status in in_jobs})} jobs"] * bool(in_jobs)
        stopped += [f"the driver {driver}" for driver in sorted(drivers)]
        tell(console, f"told to stop: {', '.join(stopped) or 'nothing'}; runs write a checkpoint first")
    if elsewhere := [status.name for status in at_work if not status.job and status.driver is None]:
        tell(console, f"{', '.join(elsewhere)}: driven from another machine; type this there")
    for status in statuses:
        if status.state in AT_WORK and status.is_input and status.job:
            line = f"{status.name} goes on, as other sweeps may wait for it, too; python -m sweeps cancel "
            tell(console, f"{line}{sweep_folder(status.run)} stops all inputs")
    return 1 if complaint else 0


def _rerun(statuses: list[RunStatus], failed_only: bool, console: Console) -> int:
    from rlhf.config.build import ConfigError
    from rlhf.errors import one_line
    from sweeps.experiment import run_experiment
    from sweeps.runs import Stopped

    states = ("failed", "lost") if failed_only else ("failed", "lost", "interrupted")
    # Inputs are started again by the runs that need them.
    chosen = [status for status in statuses if status.state in states and not status.is_input]
    if not chosen:
        tell(console, f"no run of this sweep is {' or '.join(states)}")
        return 0
    groups: dict[tuple[str, str], list[RunConfig]] = {}
    for status in chosen:
        groups.setdefault((status.target, repr(status.run.hardware)), []).append(status.run)
    code = 0
    for (target, _), runs in groups.items():
        try:
            run_experiment(runs, target)
        except Stopped as stopped:
            code = max(code, stopped.exit_code)
        except ConfigError as error:
            complain(f"config error: {error}")
            return 2
        except Exception as error:
            complain(f"failed: {one_line(error)}")
            code = max(code, 1)
    return code


if __name__ == "__main__":
    sys.exit(main())
