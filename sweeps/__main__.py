"""`python -m sweeps status|cancel|rerun runs/<sweep>`: look after a sweep that is at work, or was."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sweeps.status import RunStatus, status_table, sweep_status

# Wide enough that no log path is cut where the output is no terminal.
WIDTH_IN_FILES = 400


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 where the arguments cannot be."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_IN_FILES)
    named = Path("runs") / options.folder  # a sweep's name is enough where it lies in the default place
    options.folder = named if not options.folder.exists() and named.exists() else options.folder
    statuses = sweep_status(options.folder)
    if not statuses:
        print(f"{options.folder}: no sweep was started there (runs/<sweep name>)", file=sys.stderr)
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
    console.print(status_table(statuses))
    for status in statuses:
        if status.reason:
            console.print(f"{status.state}: {status.name}: {status.reason}", markup=False)
    return 0


def _cancel(statuses: list[RunStatus], console: Console) -> int:
    from sweeps.slurm_queue import scancel

    jobs = {status.job for status in statuses if status.job and status.state in ("running", "pending")}
    scancel(jobs)
    drivers = {status.driver for status in statuses if status.driver and status.state in ("running", "queued")}
    for driver in drivers - {None}:
        os.kill(driver, signal.SIGTERM)
    if not jobs and not drivers:
        console.print("nothing of this sweep runs or waits")
    else:
        stopped = [f"{len(jobs)} jobs"] * bool(jobs) + [f"the driver {driver}" for driver in sorted(drivers)]
        console.print(f"stopped {', '.join(stopped)}; runs write a checkpoint, and the same command goes on")
    return 0


def _rerun(statuses: list[RunStatus], failed_only: bool, console: Console) -> int:
    from rlhf.config.build import ConfigError
    from sweeps.experiment import Stopped, run_experiment

    states = ("failed", "lost") if failed_only else ("failed", "lost", "interrupted")
    chosen = [status for status in statuses if status.state in states]
    if not chosen:
        console.print(f"no run of this sweep is {' or '.join(states)}")
        return 0
    by_target: dict[str, list[RunStatus]] = {}
    for status in chosen:
        by_target.setdefault(status.target, []).append(status)
    code = 0
    for target, group in by_target.items():
        try:
            run_experiment([status.run for status in group], target)
        except Stopped as stopped:
            code = max(code, stopped.exit_code)
        except ConfigError as error:
            print(f"config error: {error}", file=sys.stderr)
            return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
