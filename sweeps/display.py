"""Live progress of one run or many: a table in a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf.config import RunConfig
from rlhf.config.identity import run_folder
from rlhf.runs.state import OVER
from rlhf.terminal import Column, fitted_table, tell
from sweeps.progress import STATE_STYLES, RunProgress, duration, number
from sweeps.runs import Outcome

# Seconds between two lines where stdout is no terminal, and between two looks at the files.
LINE_EVERY = 10.0
LOOK_EVERY = 0.5

# Runs told of in a line.
LINE_RUNS = 4

BAR_WIDTH = 12


class Display:
    """A context in which the runs' progress is shown; `update` is called every fraction of a second."""

    def __init__(self, runs: Sequence[RunConfig], console: Console) -> None:
        self._runs: dict[Path, RunProgress] = {}
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._started = time.monotonic()
        self._looked = self._spoke = self._started
        self._reported: set[str] = set()
        self.stopping: Callable[[], bool] = lambda: False
        """Whether the runs have been asked to stop, which is said once."""
        self.silent_ends: Collection[str] = ()
        """Runs of whose end the caller tells."""
        self._said_stopping = False
        self.add(runs)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
            self._refresh()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._refresh()
            self._live.stop()

    def add(self, runs: Iterable[RunConfig]) -> None:
        """Show these too, at once: the first takes a while to start."""
        self._runs |= {run_folder(run): RunProgress(run) for run in runs}
        self._refresh()

    def _refresh(self) -> None:
        if self._live is not None and self._runs:
            self._live.update(self._table(), refresh=self._live.is_started)

    def update(self, running: Iterable[Path], ended: Iterable[Outcome]) -> None:
        """Take over the states and show what has changed."""
        for folder in running:
            self._runs[folder].state = "running"
        for outcome in ended:
            self._end(self._runs[outcome.folder], outcome)
        if self.stopping() and not self._said_stopping:
            self._said_stopping = True
            self.say_stopping()
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            self._look()

    def note(self, text: str) -> None:
        tell(self._console, text)

    def say_stopping(self) -> None:
        """What was asked for takes until the iterations at work have ended."""
        running = [progress for progress in self._runs.values() if progress.state == "running"]
        unit = running[0].unit if len({progress.unit for progress in running}) == 1 else "iteration"
        seconds = max((progress.seconds_per_unit or 0.0 for progress in running), default=0.0)
        about = f" ({duration(seconds)} or less)" if seconds >= 1 else ""
        self.note(f"stopping after this {unit}{about}, with a checkpoint; Ctrl-C again: at once, without one")

    def _look(self) -> None:
        for progress in self._runs.values():
            if progress.state == "running":
                progress.look()
        if self._live is not None:
            self._refresh()
        elif time.monotonic() - self._spoke >= LINE_EVERY:
            self._spoke = time.monotonic()
            self.note(self._line())

    def _end(self, progress: RunProgress, outcome: Outcome) -> None:
        progress.state = outcome.status
        if progress.name in self._reported:
            return
        self._reported.add(progress.name)
        progress.look()
        if (self._live is None and progress.name not in self.silent_ends) or outcome.status == "failed":
            why = f": {outcome.reason}" if outcome.reason else ""
            tell(self._console, f"{progress.name} {outcome.status}{why}", STATE_STYLES.get(outcome.status, ""))

    def _table(self) -> Table:
        """What runs and what has run; of those that wait, the first few."""
        height = max(5, self._console.height - 4)
        order = ("running", "failed", "queued", "interrupted", "pruned", "finished")
        important = sorted(self._runs.values(), key=lambda progress: order.index(progress.state))
        chosen = {progress.name for progress in important[:height]}
        shown = [progress for progress in self._runs.values() if progress.name in chosen]
        hidden = len(self._runs) - len(shown)
        caption = f"{self._counts()} ({hidden} not shown)" if hidden else self._counts()
        return fitted_table(progress_columns(shown), self._console.width, caption)

    def _counts(self) -> str:
        counts = Counter(progress.state for progress in self._runs.values())
        states = ", ".join(f"{count} {state}" for state, count in counts.items())
        inputs = sum(progress.is_input for progress in self._runs.values())
        done = f"{sum(counts[state] for state in OVER)} of {len(self._runs)} done"
        done += f", {count_inputs(inputs)} among them" if inputs else ""
        left = self._seconds_left()
        about = f", about {duration(left)} left" if left else ""
        return f"{duration(time.monotonic() - self._started)}  {done}{about} ({states})"

    def _seconds_left(self) -> float | None:
        """Of all runs, as many at a time as now: what runs by its own speed, what waits as others of its stage took."""
        runs = list(self._runs.values())
        running = [progress for progress in runs if progress.state == "running"]
        parts = []
        for progress in runs:
            if progress.state == "running":
                parts.append(progress.seconds_left)
            elif progress.state == "queued":
                alike = [other for other in runs if (other.unit, other.rl) == (progress.unit, progress.rl)]
                known = [seconds for other in alike if (seconds := other.total_seconds) is not None]
                parts.append(sum(known) / len(known) if known else None)
        if not running or None in parts:
            return None
        seconds = [part for part in parts if part is not None]
        return max(sum(seconds) / len(running), *seconds)

    def _line(self) -> str:
        running = [progress for progress in self._runs.values() if progress.state == "running"]
        more = [f"and {len(running) - LINE_RUNS} more"] if len(running) > LINE_RUNS else []
        parts = [progress.described() for progress in running[:LINE_RUNS]]
        return " | ".join([self._counts(), *parts, *more])


def count_inputs(count: int) -> str:
    return f"{count} input{'s' if count != 1 else ''}"


def progress_columns(runs: Sequence[RunProgress]) -> list[Column]:
    """What a table of these runs shows, where there is room for all of it."""
    states = [Text(row.state, style=STATE_STYLES.get(row.state, "")) for row in runs]
    bars: list[RenderableType] = [ProgressBar(row.total, min(row.done, row.total), width=BAR_WIDTH) for row in runs]
    return [
        Column("run", [row.name for row in runs]),
        Column("state", states),
        Column("done", [f"{row.done}/{row.total}" for row in runs], right=True),
        Column("", bars, drop=4),
        Column("first reward", [number(row.first_reward) for row in runs], right=True, drop=2),
        Column("reward", [number(row.reward) for row in runs], right=True),
        Column("KL", [number(row.kl) for row in runs], right=True),
        Column("responses/s", [number(row.responses_per_second if row.rl else None, 1) for row in runs], True, drop=3),
        Column("time left", [duration(row.seconds_left) for row in runs], right=True, drop=1),
    ]
