"""hardware.slurm.wait=false: everything is submitted, and the command ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlhf.config import RunConfig
from rlhf.config.identity import input_runs, run_folder, sweep_folder
from rlhf.runs.state import finished
from rlhf.terminal import tell
from sweeps.slurm_commands import SubmissionError
from sweeps.slurm_launcher import SlurmRuns


def submit_and_leave(todo: Sequence[RunConfig], launcher: SlurmRuns, console: Console) -> int:
    """Submit the runs, each after the inputs it needs, and say how to look at them.

    Returns:
        How many runs the site did not let in.

    Raises:
        SubmissionError: sbatch refused them all, or for a reason that does not pass.
    """
    after: dict[Path, str] = {}
    for needed in {run_folder(need): need for run in todo for need in input_runs(run)}.values():
        if finished(needed) is None:
            before = [after[folder] for need in input_runs(needed) if (folder := run_folder(need)) in after]
            after[run_folder(needed)] = launcher.job_in_queue(needed) or _send_one(needed, launcher, before)
    earlier = {run_folder(run) for run in todo if launcher.job_in_queue(run)}
    for run in todo:
        if run_folder(run) not in earlier:
            launcher.submit(run)
    refused = ""
    try:
        launcher.send(_after_all(list(after.values())))
    except SubmissionError as error:
        if not (launcher.submitted and (error.passing or error.too_many)):
            raise
        refused = error.said
    numbers = [*after.values(), *launcher.submitted]
    if launcher.submitted:
        tell(console, f"submitted as jobs {', '.join(dict.fromkeys(number.partition('_')[0] for number in numbers))}")
    if earlier:
        tell(console, f"{len(earlier)} runs are in the queue since an earlier command")
    if refused:
        left = f"{len(launcher.unsent)} of {len(todo)} runs are not submitted"
        why = f"sbatch takes no more jobs now ({refused})"
        tell(console, f"{left}: {why}; type the same command again when some have ended")
    shown = f"python -m sweeps status {sweep_folder(todo[0])} shows them"
    tell(console, f"{shown}; the same command without wait=false picks the results up")
    return len(launcher.unsent)


def _send_one(run: RunConfig, launcher: SlurmRuns, after: list[str]) -> str:
    launcher.submit(run)
    return launcher.send(_after_all(after))[0]


def _after_all(numbers: Sequence[str]) -> str | None:
    return f"afterok:{':'.join(numbers)}" if numbers else None
