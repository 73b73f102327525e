"""From configs to finished runs: inputs first and once, then the runs, with progress and a report at the end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from hydra.core.utils import JobReturn, JobStatus
from rich.console import Console

from rlhf.config import RunConfig
from rlhf.config.check import checked_config
from rlhf.config.identity import input_runs, run_folder, run_id, sweep_folder
from sweeps.child import one_line
from sweeps.display import Display, duration, watching
from sweeps.local_launcher import Outcome, log_path
from sweeps.resources import parallel_runs, thread_environment

if TYPE_CHECKING:
    from hydra.types import HydraContext
    from omegaconf import DictConfig

# What a sweeper that looks for good settings is told of a run.
TUNED_METRIC = "eval/reward"

# What the last line of a single run tells.
RESULTS = {"reward": "eval/reward", "gold reward": "eval/gold_reward", "KL": "eval/kl"}


class Stopped(Exception):
    """The command ends here with this exit code; all there is to say has been printed."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


@runtime_checkable
class RunLauncher(Protocol):
    """What an experiment asks of a launcher; `sweeps.local_launcher` has the first."""

    slots: int

    @property
    def busy(self) -> bool: ...
    @property
    def running(self) -> list[Path]: ...
    def submit(self, run: RunConfig) -> None: ...
    def poll(self, timeout: float = 0.0) -> list[Outcome]: ...
    def cancel(self, *, kill: bool = False) -> None: ...


def run_experiment(runs: Sequence[RunConfig], launcher: RunLauncher) -> list[Outcome]:
    """All runs to their end, whatever happens to one of them; those finished earlier are not started again.

    Raises:
        Stopped: with 1 where runs failed, 130 after Ctrl-C.
    """
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    distinct = run_folders(runs)
    summaries = {folder: found for folder, run in distinct.items() if (found := _over(run))}
    outcomes = {
        folder: Outcome(distinct[folder], found["status"], summary=found) for folder, found in summaries.items()
    }
    todo = [run for folder, run in distinct.items() if folder not in outcomes]
    if len(distinct) < len(runs):
        console.print(f"{len(runs)} settings, {len(distinct)} distinct runs")
    if not todo:
        console.print(f"all {_runs(len(distinct))} finished; overwrite=true would start afresh")
    else:
        launcher.slots, why = parallel_runs(todo[0])
        earlier = f", {len(outcomes)} finished earlier" if outcomes else ""
        console.print(f"{_runs(len(distinct))}{earlier}; at most {launcher.slots} at a time ({why})")
        outcomes |= _drive(todo, launcher, console)
    ordered = [outcomes[folder] for folder in distinct]
    compared = [outcome for outcome in ordered if outcome.run.stage.name == "online" and outcome.status == "finished"]
    for folder in dict.fromkeys(sweep_folder(outcome.run) for outcome in compared):
        try:
            _report(folder, console)
        except Exception as error:  # must not hide which runs failed, said below
            console.print(f"no report ({one_line(error)}); python -m analysis report {folder} tries again")
    if todo:
        inputs = [outcome for folder, outcome in outcomes.items() if folder not in distinct]
        _closing_lines(inputs, ordered, time.monotonic() - started, console)
    return ordered


def run_folders(runs: Iterable[RunConfig]) -> dict[Path, RunConfig]:
    """The distinct runs by their folders."""
    return {run_folder(run): run for run in runs}


def run_single(run: RunConfig) -> dict[str, Any]:
    """One run in this process, with the display in a thread beside it.

    Raises:
        Stopped: with 130 after Ctrl-C.
    """
    console = Console(highlight=False, soft_wrap=True)
    if found := _over(run):
        console.print(f"{run_id(run)} is finished ({run_folder(run)}); overwrite=true would start afresh")
        return found
    os.environ.update(thread_environment(run.hardware.threads))  # before torch is imported
    from rlhf.run import execute

    with watching([*input_runs(run), run], console):
        summary = execute(run)
    if summary.get("status") == "interrupted":
        console.print(f"{run_id(run)} interrupted; the same command goes on where it stopped")
        raise Stopped(130)
    scores = [f"{name} {summary[key]:.3f}" for name, key in RESULTS.items() if key in summary]
    console.print(f"{', '.join([f'{run_id(run)} finished', *scores])}: {run_folder(run)}")
    return summary


def hydra_returns(
    launcher: RunLauncher, context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]]
) -> list[JobReturn]:
    """`run_experiment` in the form that sweepers other than ours expect of a launcher."""
    composed = [context.config_loader.load_sweep_config(config, list(overrides)) for overrides in job_overrides]
    runs = [checked_config(run_mapping(one)) for one in composed]
    outcomes = {outcome.folder: outcome for outcome in run_experiment(runs, launcher)}
    returns = []
    for overrides, one, run in zip(job_overrides, composed, runs, strict=True):
        outcome = outcomes[run_folder(run)]
        result = JobReturn(overrides=overrides, cfg=one, working_dir=str(outcome.folder), task_name=run_id(run))
        if outcome.status == "finished":
            result.status, result.return_value = JobStatus.COMPLETED, outcome.summary.get(TUNED_METRIC)
        else:
            result.status, result.return_value = JobStatus.FAILED, RuntimeError(outcome.reason or outcome.status)
        returns.append(result)
    return returns


def run_mapping(config: DictConfig) -> dict[str, Any]:
    """A composed config as plain values, without Hydra's own settings."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    own = OmegaConf.create({str(key): value for key, value in plain.items() if key != "hydra"})
    resolved = OmegaConf.to_container(own, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _over(run: RunConfig) -> dict[str, Any] | None:
    """The summary of a run that need not be started again."""
    file = run_folder(run) / "summary.json"
    if run.overwrite or not file.is_file():
        return None
    try:
        summary = json.loads(file.read_text())
    except ValueError:  # cut off by a full disk or a power cut: the run is taken up again
        return None
    return summary if summary.get("status") in ("finished", "pruned") else None


def _drive(todo: Sequence[RunConfig], launcher: RunLauncher, console: Console) -> dict[Path, Outcome]:
    """Start each run when its inputs are finished, until none is left or the user stops it."""
    plan, needs = _plan(todo)
    waiting = dict(plan)
    ended: dict[Path, Outcome] = {}
    asked_to_stop = 0
    with _stop_requests() as requests, Display(list(plan.values()), console) as display:
        try:
            while waiting or launcher.busy:
                if len(requests) > asked_to_stop:
                    asked_to_stop += 1
                    launcher.cancel(kill=asked_to_stop > 1)
                    ended |= {folder: Outcome(run, "interrupted") for folder, run in waiting.items()}
                    waiting.clear()
                    display.note("stopping: the runs write a checkpoint (Ctrl-C again: they do not)")
                for folder in [folder for folder in waiting if all(need in ended for need in needs[folder])]:
                    run = waiting.pop(folder)
                    lacking = [ended[need] for need in needs[folder] if ended[need].status != "finished"]
                    if lacking:
                        reason = f"its input {lacking[0].folder.name} {lacking[0].status}"
                        ended[folder] = Outcome(run, lacking[0].status, reason)
                    else:
                        launcher.submit(run)
                ended |= {outcome.folder: outcome for outcome in launcher.poll(0.2)}
                display.update(launcher.running, ended.values())
        except BaseException:
            launcher.cancel(kill=True)
            raise
    return ended


def _plan(todo: Sequence[RunConfig]) -> tuple[dict[Path, RunConfig], dict[Path, list[Path]]]:
    """What is to be started, inputs first and each once, and what must have ended before each of it."""
    inputs = {run_folder(run): run_folders(input_runs(run)) for run in todo}
    missing = {folder: run for given in inputs.values() for folder, run in given.items() if not _over(run)}
    plan = missing | run_folders(todo)
    before = inputs | {folder: run_folders(input_runs(run)) for folder, run in missing.items()}
    return plan, {folder: [need for need in before[folder] if need in plan] for folder in plan}


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Ctrl-C, SIGTERM and a closed terminal, collected instead of raised; nohup's ignored signals stay ignored."""
    requests: list[int] = []
    every = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    signals = [number for number in every if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: requests.append(number)) for number in signals}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(folder: Path, console: Console) -> None:
    """The table in the terminal and the files in the sweep's folder."""
    from analysis.report import summary_table, write_report

    files = write_report(folder)
    console.print(summary_table(files.comparison), soft_wrap=False)
    console.print(f"report: {files.html}")


def _closing_lines(inputs: Sequence[Outcome], outcomes: Sequence[Outcome], seconds: float, console: Console) -> None:
    """How many finished; which failed, why, and what to type. Raises Stopped unless all finished."""
    finished = sum(outcome.status in ("finished", "pruned") for outcome in outcomes)
    failed = [outcome for outcome in [*inputs, *outcomes] if outcome.status == "failed"]
    console.print(f"{finished} of {_runs(len(outcomes))} finished in {duration(seconds)}")
    for outcome in failed:
        log = log_path(outcome.run)
        where = f" (log: {log})" if log.is_file() else ""
        console.print(f"failed: {outcome.folder.name}: {outcome.reason}{where}", markup=False)
    if failed:
        words = [word for word in sys.argv if not word.lstrip("+").startswith("overwrite=")]
        console.print(f"rerun just these: python {shlex.join(words)}", markup=False)
        raise Stopped(1)
    if finished < len(outcomes):
        console.print("interrupted; the same command goes on where it stopped")
        raise Stopped(130)


def _runs(count: int) -> str:
    return f"{count} run{'s' if count != 1 else ''}"
