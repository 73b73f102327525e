"""The loop beneath every sweep: runs are started once their inputs are finished, watched, and told of."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from rlhf.config import RunConfig
from rlhf.config.identity import input_runs, run_folder
from rlhf.runs.state import OVER, finished
from sweeps.display import Display
from sweeps.runs import Outcome, RunLauncher, outcome_path, write_json


class Driver:
    """A context in which runs can be added at any time; `step` moves all of them on.

    The first Ctrl-C (SIGTERM, a closed terminal) asks the runs to checkpoint and stop, the second does not ask; where
    the launcher's runs outlive the driver they are left alone. From then on `stopping` is true.
    """

    def __init__(self, launcher: RunLauncher, console: Console) -> None:
        self.launcher = launcher
        self.console = console
        self.outcomes: dict[Path, Outcome] = {}
        """Of all runs that have ended, inputs included."""
        self.stopping = False
        self._display = Display([], console, logs=True)
        self._waiting: dict[Path, RunConfig] = {}
        self._needs: dict[Path, list[Path]] = {}
        self._requests_heeded = 0
        self._trouble = ""
        self._stack = ExitStack()

    def __enter__(self) -> Driver:
        self._requests = self._stack.enter_context(_stop_requests())
        self._stack.enter_context(self._display)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not self.launcher.leaves_on_interrupt:
            self.launcher.cancel(kill=True)
        self._stack.close()

    def add(self, runs: Iterable[RunConfig]) -> None:
        """Plan these runs and, before them, those inputs of theirs that are not finished; each once."""
        planned: list[RunConfig] = []

        def plan(run: RunConfig) -> None:
            if run_folder(run) not in self._needs:
                needed = [need for need in input_runs(run) if finished(need) is None]
                self._needs[run_folder(run)] = [run_folder(need) for need in needed]
                for need in needed:
                    plan(need)
                planned.append(run)

        for run in runs:
            plan(run)
        self._waiting |= {run_folder(run): run for run in planned if not self.launcher.announce(run)}
        self._display.add(planned)

    @property
    def busy(self) -> bool:
        return bool(self._waiting) or self.launcher.busy

    @property
    def unfinished(self) -> list[Path]:
        """Runs that were added and have not ended."""
        return [folder for folder in self._needs if folder not in self.outcomes]

    @property
    def blocked(self) -> set[Path]:
        """Runs that wait for their inputs, and take no slot meanwhile; or wait in vain, until the next step."""
        done = {folder for folder, outcome in self.outcomes.items() if outcome.status == "finished"}
        return {folder for folder in self._waiting if not done.issuperset(self._needs[folder])}

    def step(self, timeout: float = 0.2) -> None:
        """Start what can start, and wait up to `timeout` seconds for something to end."""
        self._heed_requests()
        for folder in [f for f in self._waiting if all(need in self.outcomes for need in self._needs[f])]:
            run = self._waiting.pop(folder)
            needed = [self.outcomes[need] for need in self._needs[folder]]
            if missing := [outcome for outcome in needed if outcome.status != "finished"]:
                reason = f"its input {missing[0].folder.name} {missing[0].status}"
                self._end(Outcome(run, missing[0].status, reason))
            else:
                self.launcher.submit(run)
        if self.launcher.busy:
            for outcome in self.launcher.poll(timeout):
                self._end(outcome)
        if self.launcher.trouble and self.launcher.trouble != self._trouble:
            self._display.note(self.launcher.trouble)
        self._trouble = self.launcher.trouble
        self._display.update(self.launcher.running, self.outcomes.values())

    def cancel(self, folders: Collection[Path]) -> None:
        """Stop these runs and start none of them."""
        self._drop(folders)
        self.launcher.cancel(folders)

    def _drop(self, folders: Collection[Path]) -> None:
        for folder in [folder for folder in self._waiting if folder in folders]:
            self._end(Outcome(self._waiting.pop(folder), "interrupted"))

    def _end(self, outcome: Outcome) -> None:
        self.outcomes[outcome.folder] = outcome
        if outcome.status not in OVER:  # the run may not have lived to say so itself
            with contextlib.suppress(OSError):  # a full disk must not end the sweep
                write_json(outcome_path(outcome.run), {"status": outcome.status, "reason": outcome.reason})

    def _heed_requests(self) -> None:
        if len(self._requests) <= self._requests_heeded:
            return
        self._requests_heeded, self.stopping = len(self._requests), True
        if self.launcher.leaves_on_interrupt:
            raise KeyboardInterrupt
        self.launcher.cancel(kill=self._requests_heeded > 1)
        self._drop(list(self._waiting))
        if self._requests_heeded == 1:
            self._display.say_stopping()


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
