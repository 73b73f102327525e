"""Live progress of one run or many, read from their metrics.jsonl: a table in a terminal, lines elsewhere."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from rlhf.config import RL_STAGES, RunConfig
from rlhf.config.identity import run_folder, run_id
from rlhf.summary import read_summary
from sweeps.runs import Outcome

# Seconds between two lines where stdout is no terminal, and between two looks at the files.
LINE_EVERY = 10.0
LOOK_EVERY = 0.5

# Runs told of in a line.
LINE_RUNS = 4

# Speed and time left are measured over so many logged rows.
RECENT_ROWS = 6


class RunProgress:
    """What metrics.jsonl tells of one run so far."""

    def __init__(self, run: RunConfig) -> None:
        self.name = run_id(run)
        self.state = "queued"
        self.folder = run_folder(run)
        self.total, self.unit = {
            **dict.fromkeys(RL_STAGES, (run.rollout.iterations, "iteration")),
            "evaluate": (1, "evaluation"),
            "sft": (run.sft.steps, "step"),
            "reward_model": (run.reward_model.steps, "step"),
        }[run.stage.name]
        self.latest: dict[str, Any] = {}
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_ROWS)
        self._read = 0
        # What an earlier command left is not this run's progress when it starts afresh.
        self._fresh_after = time.time() if run.overwrite else 0.0

    def look(self) -> None:
        """Read the rows that were added; from the top again where a resumed run cut its file back."""
        try:
            self._read_rows(self.folder / "metrics.jsonl")
        except OSError:  # deleted between two looks, or the file system stalls
            return
        except ValueError:  # cut back and grown again since: what was read is no longer there
            self._read = 0

    def _read_rows(self, file: Path) -> None:
        if not file.is_file() or file.stat().st_mtime < self._fresh_after:
            return
        if file.stat().st_size < self._read:
            self._read = 0
            self._recent.clear()
        with file.open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # half written
                self._read += len(line)
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("no row")
                self.latest |= row
                if not self._recent or row.get(self.unit, 0) > self._recent[-1].get(self.unit, 0):
                    self._recent.append(row)

    @property
    def done(self) -> int:
        return int(self.latest.get(self.unit, 0))

    @property
    def reward(self) -> float | None:
        """The latest of the two, which is the training reward between evaluations."""
        return self.latest.get("train/reward", self.latest.get("eval/reward"))

    @property
    def kl(self) -> float | None:
        return self.latest.get("train/kl", self.latest.get("eval/kl"))

    @property
    def responses_per_second(self) -> float | None:
        return self._speed("samples")

    @property
    def seconds_left(self) -> float | None:
        speed = self._speed(self.unit)
        return (self.total - self.done) / speed if speed and self.state == "running" else None

    def _speed(self, quantity: str) -> float | None:
        if len(self._recent) < 2:
            return None
        first, last = self._recent[0], self._recent[-1]
        seconds = last.get("seconds", 0) - first.get("seconds", 0)
        gained = last.get(quantity, 0) - first.get(quantity, 0)
        return gained / seconds if seconds > 0 and gained > 0 else None

    def words(self) -> str:
        """What is known by now; SFT and reward models have no reward, and the examples of their batches no name."""
        known = {" reward": self.reward, " KL": self.kl}
        told = "".join(f"{name} {value:.3f}" for name, value in known.items() if value is not None)
        speed = self.responses_per_second
        return told + (f" {speed:.1f} {'responses' if told else 'examples'}/s" if speed is not None else "")

    def cells(self) -> list[str]:
        return [
            self.name,
            self.state,
            f"{self.done}/{self.total}",
            _number(self.reward),
            _number(self.kl),
            _number(self.responses_per_second, 1),
            duration(self.seconds_left),
        ]


class Display:
    """A context in which the runs' progress is shown; `update` is called every fraction of a second."""

    def __init__(self, runs: Sequence[RunConfig], console: Console) -> None:
        self._runs: dict[Path, RunProgress] = {}
        self.add(runs)
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._started = time.monotonic()
        self._looked = self._spoke = self._started
        self._reported: set[str] = set()

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
            self._live.update(self._table(), refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def add(self, runs: Iterable[RunConfig]) -> None:
        self._runs |= {run_folder(run): RunProgress(run) for run in runs}

    def update(self, running: Iterable[Path], ended: Iterable[Outcome]) -> None:
        """Take over the states and show what has changed."""
        for folder in running:
            self._runs[folder].state = "running"
        for outcome in ended:
            self._end(self._runs[outcome.folder], outcome)
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            self._look()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False)

    def _look(self) -> None:
        for progress in self._runs.values():
            if progress.state == "running":
                progress.look()
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif time.monotonic() - self._spoke >= LINE_EVERY:
            self._spoke = time.monotonic()
            self._console.print(self._line(), markup=False)

    def _end(self, progress: RunProgress, outcome: Outcome) -> None:
        progress.state = outcome.status
        if progress.name in self._reported:
            return
        self._reported.add(progress.name)
        progress.look()
        if self._live is None or outcome.status == "failed":
            why = f": {outcome.reason}" if outcome.reason else ""
            self._console.print(f"{progress.name} {outcome.status}{why}", markup=False)

    def _table(self) -> Table:
        """What runs and what has run; of those that wait, the first few."""
        table = Table(box=None, pad_edge=False)
        for name in ("run", "state", "iteration", "reward", "KL", "responses/s", "time left"):
            table.add_column(name, justify="left" if name in ("run", "state") else "right", no_wrap=True)
        height = max(5, self._console.height - 4)
        order = ("running", "failed", "queued", "interrupted", "pruned", "finished")
        important = sorted(self._runs.values(), key=lambda progress: order.index(progress.state))
        shown = {progress.name for progress in important[:height]}
        for progress in self._runs.values():
            if progress.name in shown:
                table.add_row(*progress.cells())
        table.caption = self._counts() if len(shown) == len(self._runs) else f"{self._counts()} (some not shown)"
        return table

    def _counts(self) -> str:
        counts = Counter(progress.state for progress in self._runs.values())
        states = ", ".join(f"{count} {state}" for state, count in counts.items())
        return f"{duration(time.monotonic() - self._started)}  {states}"

    def _line(self) -> str:
        running = [progress for progress in self._runs.values() if progress.state == "running"]
        more = [f"and {len(running) - LINE_RUNS} more"] if len(running) > LINE_RUNS else []
        parts = [
            f"{progress.name} {progress.done}/{progress.total}{progress.words()}, "
            f"{duration(progress.seconds_left)} left"
            for progress in running[:LINE_RUNS]
        ]
        return " | ".join([self._counts(), *parts, *more])


@contextmanager
def watching(runs: Sequence[RunConfig], console: Console) -> Iterator[None]:
    """Show runs that this process does one after another, from a thread beside it."""
    stop = threading.Event()
    display = Display(runs, console)
    whole = [Outcome(run, "finished") for run in runs]
    started = time.time()

    def look() -> None:
        with display:
            stopping = False
            while not stopping:
                stopping = stop.wait(LOOK_EVERY)
                finished = [o for o in whole if _has_finished(o.folder, started if o.run.overwrite else 0.0)]
                display.update([o.folder for o in whole if o not in finished][:1], finished)

    thread = threading.Thread(target=look, daemon=True, name="display")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _has_finished(folder: Path, since: float) -> bool:
    """Whether summary.json says so; one older than `since` is that of a run which is done again."""
    try:
        file = folder / "summary.json"
        return file.stat().st_mtime >= since and read_summary(folder).get("status") == "finished"
    except OSError:  # not there, deleted between the two looks, or cut off
        return False


def duration(seconds: float | None) -> str:
    """1:02:03 or 2:03; a dash where it is not known."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
