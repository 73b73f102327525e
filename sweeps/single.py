"""One run in this process. Imports no launcher, study or display before the run begins."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf.config import RL_STAGES, RunConfig
from rlhf.config.identity import input_runs, run_folder, run_id, starts_anew, sweep_folder
from rlhf.config.packages import check_inputs
from rlhf.config.sizes import derived_sizes, sizes_in_words
from rlhf.runs.state import SUMMARY, finished, read_summary, unfinished_inputs
from rlhf.terminal import console as made_console
from rlhf.terminal import tell
from rlhf.waiting import stop_requested
from sweeps.machine import check_device, check_places, thread_environment
from sweeps.runs import EXECUTE, Outcome, Stopped, announce, interrupted, note_interrupted

# Of a file's values, how many the first lines show.
MOST_VALUES = 8

# What the last lines of a single run tell: from the first evaluation to the last.
CHANGES = {"reward": "eval/reward", "gold reward": "eval/gold_reward"}

VERBOSE = "RLHF_VERBOSE"
"""Environment variable; 1 shows the whole batch arithmetic."""

LOOK_EVERY = 0.5


def run_single(run: RunConfig) -> None:
    """One run in this process, or as one of the ranks that torchrun has started; the display is a thread beside it.

    Raises:
        Stopped: with 130 after Ctrl-C; and whatever `rlhf.run.execute` raises.
    """
    first = torchrun_rank() in (None, 0)
    console = made_console(quiet=not first)
    if finished(run):
        tell(console, f"{run_id(run)} is finished ({run_folder(run)}); overwrite=true would start afresh")
        return
    check_device(run)
    check_places([run])
    to_do = [*unfinished_inputs(run), run]
    check_inputs(to_do)
    planned = to_do if first else []
    for planned_run in planned:
        announce(planned_run, EXECUTE)
    print_start([run], console)
    os.environ.update(thread_environment(run.hardware.threads))  # before torch is imported
    try:
        from rlhf.run import execute

        with _watching(planned, console) if first else contextlib.nullcontext():
            summary = execute(run)
    except BaseException as error:
        if interrupted(error):  # before the run listens, or by the second Ctrl-C
            note_interrupted(planned)
        raise
    if summary.get("status") == "interrupted":  # the run at work has said so itself
        note_interrupted(other for other in planned if run_id(other) != summary.get("run_id"))
        tell(console, f"{run_id(run)} interrupted; {again()} goes on where it stopped", "yellow")
        raise Stopped(130)
    print_result(run, summary, console)


def run_chat(run: RunConfig) -> None:
    """Talk to a policy in this process.

    Raises:
        ConfigError: something that it reads is not there; and whatever `rlhf.run.chat` raises.
    """
    check_device(run)
    check_inputs([run])
    os.environ.update(thread_environment(run.hardware.threads))  # before torch is imported
    from rlhf.run import chat

    with contextlib.suppress(KeyboardInterrupt):
        chat(run, made_console())


def torchrun_rank() -> int | None:
    """Which rank torchrun has made this process; None where it has not."""
    return int(os.environ["RANK"]) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


@contextmanager
def _watching(runs: Sequence[RunConfig], console: Console) -> Iterator[None]:
    """Show runs that this process does one after another, from a thread beside it."""
    over = threading.Event()
    started = time.time()

    def has_finished(run: RunConfig) -> bool:
        folder = run_folder(run)
        try:  # one that is older is that of a run which is done again
            fresh = not run.overwrite or (folder / SUMMARY).stat().st_mtime >= started
            return fresh and read_summary(folder).get("status") == "finished"
        except OSError:  # not there, deleted between the two looks, or cut off
            return False

    def watch() -> None:
        ended = over.wait(LOOK_EVERY)
        from sweeps.display import Display

        with Display(runs, console) as display:
            display.stopping, display.silent_ends = lambda: stop_requested() is not None, [run_id(runs[-1])]
            while True:
                done = [run for run in runs if has_finished(run)]
                at_work = [run_folder(run) for run in runs if run not in done][:1]
                display.update(at_work, [Outcome(run, "finished") for run in done])
                if ended:
                    return
                ended = over.wait(LOOK_EVERY)

    thread = threading.Thread(target=watch, daemon=True, name="display")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def print_start(runs: Sequence[RunConfig], console: Console) -> None:
    """What is worth knowing before the first run starts, each line once for all runs that share it: code that is run,
    which files set values, what the batch sizes come to, and the inputs that an earlier command has trained."""
    if near := starts_anew(runs):
        tell(console, near)
    for option in ("model", "reward"):
        if any(getattr(run, option).trust_remote_code for run in runs):
            tell(console, f"warning: {option}.trust_remote_code=true: Python code that it brings runs with your rights")
    for line in dict.fromkeys(line for run in runs for line in run.settings_from):
        values = line.split(", ")
        more = f" and {len(values) - MOST_VALUES} more, in config.yaml" if len(values) > MOST_VALUES else ""
        shown = ", ".join(values[:MOST_VALUES])
        tell(console, f"settings: {shown}{more}{')' * (shown.count('(') - shown.count(')'))}")
    verbose = os.environ.get(VERBOSE) == "1"
    for line in dict.fromkeys(sizes_in_words(run) for run in runs):
        tell(console, line if verbose else f"{line} ({VERBOSE}=1 shows how)")
    for sizes in dict.fromkeys(tuple(derived_sizes(run)) for run in runs) if verbose else ():
        width = max(len(f"{size:,}") for _, size, _ in sizes)
        for name, size, how in sizes:
            tell(console, f"{size:>{width},} {name} ({how})")
    needed = {run_folder(need): need for run in runs for need in input_runs(run)}
    if cached := [folder for folder, need in needed.items() if finished(need) is not None]:
        where = os.path.commonpath(folder.parent for folder in cached)
        names = ", ".join(folder.name for folder in cached)
        tell(console, f"from the cache, trained earlier: {names} (in {where})")


def print_result(run: RunConfig, summary: Mapping[str, Any], console: Console) -> None:
    """What a single run came to, where it lies, and how to get its report."""
    from sweeps.display import RunProgress, number

    progress = RunProgress(dataclasses.replace(run, overwrite=False))  # its rows are there now
    progress.look()
    parts = [f"{run_id(run)} finished"]
    for name, key in CHANGES.items():
        before, after = progress.first.get(key), summary.get(key)
        if isinstance(after, int | float):
            trained = run.stage.name in RL_STAGES and before is not None
            parts.append(f"{name} from {number(before)} to {number(after)}" if trained else f"{name} {number(after)}")
    if isinstance(kl := summary.get("eval/kl"), int | float):
        parts.append(f"KL {number(kl)} (last evaluation)")
    tell(console, ", ".join(parts))
    tell(console, f"results: {run_folder(run)}")
    if run.stage.name in RL_STAGES:
        from analysis.report import single_run_lines

        for line in single_run_lines(run_folder(run)):
            tell(console, line, "yellow")
        tell(console, f"report: {report_command(sweep_folder(run))} writes it")


def report_command(folder: Path) -> str:
    """What to type for the report of a sweep's folder."""
    return shlex.join(["python", "-m", "analysis", "report", str(folder)])


def again() -> str:
    """What to type to go on: overwrite=true would start afresh once more."""
    afresh = any(word.lstrip("+").startswith("overwrite=") for word in sys.argv)
    return f"the same command{' without overwrite=true' if afresh else ''}"
