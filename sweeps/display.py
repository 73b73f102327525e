"""Live progress of one run or many, read from their metrics.jsonl: a table in a terminal, lines elsewhere."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf.config import RL_STAGES, RunConfig
from rlhf.config.identity import run_folder, run_id
from rlhf.runs.state import METRICS, OVER, SUMMARY, read_summary
from rlhf.terminal import Column, fitted_table, tell
from sweeps.runs import Outcome

# Seconds between two lines where stdout is no terminal, and between two looks at the files.
LINE_EVERY = 10.0
LOOK_EVERY = 0.5

# Runs told of in a line.
LINE_RUNS = 4

STATE_STYLES = {"failed": "red", "lost": "red", "interrupted": "yellow", "running": "green"}

BAR_WIDTH = 12

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
        self.rl = run.stage.name in RL_STAGES
        self.latest: dict[str, float] = {}
        """The last value of each metric."""
        self.first: dict[str, float] = {}
        """The first one: of eval/*, the initial policy's."""
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_ROWS)
        self._read = 0
        # What an earlier command left is not this run's progress when it starts afresh.
        self._fresh_after = time.time() if run.overwrite else 0.0

    def look(self) -> None:
        """Read the rows that were added; from the top again where a resumed run cut its file back."""
        try:
            self._read_rows(self.folder / METRICS)
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
            self.latest.clear()
            self.first.clear()
        with file.open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # half written
                self._read += len(line)
                row = _numbers(json.loads(line))
                self.latest |= row
                self.first = row | self.first
                if not self._recent or row.get(self.unit, 0) > self._recent[-1].get(self.unit, 0):
                    self._recent.append(row)

    @property
    def done(self) -> int:
        return int(self.latest.get(self.unit, 0))

    @property
    def reward(self) -> float | None:
        """The latest of training and evaluation; of a run that is over, the last evaluation's."""
        return self._latest("reward")

    @property
    def kl(self) -> float | None:
        return self._latest("kl")

    @property
    def first_reward(self) -> float | None:
        """The initial policy's."""
        return self.first.get("eval/reward")

    def _latest(self, name: str) -> float | None:
        places = (f"eval/{name}",) if self.state == "finished" else (f"train/{name}", f"eval/{name}")
        return next((self.latest[place] for place in places if place in self.latest), None)

    @property
    def responses_per_second(self) -> float | None:
        """Of a run at work; SFT and reward models count the examples of their batches."""
        return self._speed("samples") if self.state == "running" else None

    @property
    def seconds_per_unit(self) -> float | None:
        """Of an iteration, or a step."""
        speed = self._speed(self.unit)
        return None if speed is None else 1.0 / speed

    @property
    def whole_seconds(self) -> float | None:
        """Of the whole run, by its speed so far, or as it was."""
        if self.state in OVER:
            return self.latest.get("seconds")
        each = self.seconds_per_unit
        return None if each is None else each * self.total

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
        about = f" ({duration(seconds)} or less)" if seconds else ""
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
        if self._live is None or outcome.status == "failed":
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
        done = f"{sum(counts[state] for state in OVER)} of {len(self._runs)} done"
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
                alike = [one.whole_seconds for one in runs if one.unit == progress.unit and one.rl == progress.rl]
                known = [seconds for seconds in alike if seconds is not None]
                parts.append(sum(known) / len(known) if known else None)
        if not running or None in parts:
            return None
        seconds = [part for part in parts if part is not None]
        return max(sum(seconds) / len(running), *seconds)

    def _line(self) -> str:
        running = [progress for progress in self._runs.values() if progress.state == "running"]
        more = [f"and {len(running) - LINE_RUNS} more"] if len(running) > LINE_RUNS else []
        parts = [
            f"{progress.name} {progress.done}/{progress.total}{progress.words()}, "
            f"{duration(progress.seconds_left)} left"
            for progress in running[:LINE_RUNS]
        ]
        return " | ".join([self._counts(), *parts, *more])


def progress_columns(runs: Sequence[RunProgress]) -> list[Column]:
    """What a table of these runs shows, where there is room for all of it."""
    states = [Text(one.state, style=STATE_STYLES.get(one.state, "")) for one in runs]
    bars: list[RenderableType] = [ProgressBar(one.total, min(one.done, one.total), width=BAR_WIDTH) for one in runs]
    return [
        Column("run", [one.name for one in runs]),
        Column("state", states),
        Column("done", [f"{one.done}/{one.total}" for one in runs], right=True),
        Column("", bars, drop=4),
        Column("first reward", [number(one.first_reward) for one in runs], right=True, drop=2),
        Column("reward", [number(one.reward) for one in runs], right=True),
        Column("KL", [number(one.kl) for one in runs], right=True),
        Column("responses/s", [number(one.responses_per_second if one.rl else None, 1) for one in runs], True, drop=3),
        Column("time left", [duration(one.seconds_left) for one in runs], right=True, drop=1),
    ]


@contextmanager
def watching(runs: Sequence[RunConfig], console: Console) -> Iterator[Display]:
    """Show runs that this process does one after another, from a thread beside it."""
    stop = threading.Event()
    display = Display(runs, console)
    whole = [Outcome(run, "finished") for run in runs]
    started = time.time()

    def look() -> None:
        with display:
            over = False
            while not over:
                over = stop.wait(LOOK_EVERY)
                finished = [o for o in whole if _has_finished(o.folder, started if o.run.overwrite else 0.0)]
                display.update([o.folder for o in whole if o not in finished][:1], finished)

    thread = threading.Thread(target=look, daemon=True, name="display")
    thread.start()
    try:
        yield display
    finally:
        stop.set()
        thread.join()


def _has_finished(folder: Path, since: float) -> bool:
    """Whether summary.json says so; one older than `since` is that of a run which is done again."""
    try:
        file = folder / SUMMARY
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


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _numbers(row: Any) -> dict[str, float]:
    """What a row says of metrics; nothing of a line that is something else."""
    pairs = row.items() if isinstance(row, dict) else ()
    return {name: value for name, value in pairs if isinstance(value, int | float) and not isinstance(value, bool)}
