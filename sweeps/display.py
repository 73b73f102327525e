"""Live progress of one run or many, read from metrics.jsonl while it grows: a table in a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf.config import RL_STAGES, RunConfig
from rlhf.config.identity import INPUTS, run_folder, run_id
from rlhf.runs.state import OVER
from rlhf.terminal import Column, fitted_table, tell
from sweeps.machine import counted
from sweeps.runs import Outcome, log_path

STATE_STYLES = {"failed": "bold red", "lost": "bold red", "interrupted": "yellow", "finished": "green"}

# Cells of a run's bar, as many as "finished" has letters.
BAR_WIDTH = 8

# Speed and time left are measured over so many logged rows.
RECENT_ROWS = 6

# Seconds between two lines where stdout is no terminal, and between two looks at the files.
LINE_EVERY = 10.0
LOOK_EVERY = 0.5

# Runs described in a line.
LINE_RUNS = 4


class RunProgress:
    """What metrics.jsonl tells of one run so far."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run
        self.name = run_id(run)
        self.state = "queued"
        self.folder = run_folder(run)
        self.total, self.unit = {
            **dict.fromkeys(RL_STAGES, (run.rollout.iterations, "iteration")),
            "evaluate": (1, "evaluation"),
            "reference_samples": (run.evaluation.reference_responses, "step"),
            "sft": (run.sft.steps, "step"),
            "reward_model": (run.reward_model.steps, "step"),
        }[run.stage.name]
        self.rl = run.stage.name in RL_STAGES
        self.is_input = run.sweep_name == INPUTS
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
            for seen in (self._recent, self.latest, self.first):
                seen.clear()
        with file.open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # half written
                self._read += len(line)
                content = json.loads(line)
                pairs = content.items() if isinstance(content, dict) else ()
                row: dict[str, float] = {
                    name: v for name, v in pairs if isinstance(v, int | float) and not isinstance(v, bool)
                }
                self.latest |= row
                self.first = row | self.first
                if not self._recent or row.get(self.unit, 0) > self._recent[-1].get(self.unit, 0):
                    self._recent.append(row)

    @property
    def done(self) -> int:
        return int(self.latest.get(self.unit, 0))

    def change_of(self, name: str) -> str:
        """A metric from the first evaluation to the last, as "0.512 → 1.300"; one number where there is one."""
        first, last = (values.get(f"eval/{name}") for values in (self.first, self.latest))
        return number(last) if first == last else f"{number(first)} → {number(last)}"

    @property
    def share(self) -> float:
        """Of the run's iterations or steps, those done."""
        return 1.0 if self.state in OVER else min(self.done / self.total, 1.0)

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
    def total_seconds(self) -> float | None:
        """Of the whole run, by its speed so far, or as it was."""
        if self.state in OVER:
            return self.latest.get("seconds")
        each = self.seconds_per_unit
        return None if each is None else each * self.total

    @property
    def seconds_left(self) -> float | None:
        each = self.seconds_per_unit
        return (self.total - self.done) * each if each is not None and self.state == "running" else None

    def _speed(self, quantity: str) -> float | None:
        if len(self._recent) < 2:
            return None
        first, last = self._recent[0], self._recent[-1]
        seconds = last.get("seconds", 0) - first.get("seconds", 0)
        gained = last.get(quantity, 0) - first.get(quantity, 0)
        return gained / seconds if seconds > 0 and gained > 0 else None

    def described(self) -> str:
        """The run in a line; SFT and reward models have no reward, and count the examples of their batches."""
        if not self.latest:
            return f"{self.name} starting"
        numbers = ""
        if self.rl:
            numbers = f" eval reward {self.change_of('reward')}, eval KL {number(self.latest.get('eval/kl'))},"
            numbers += f" train reward {number(self.latest.get('train/reward'))},"
            numbers += f" train KL {number(self.latest.get('train/kl'))},"
        if (speed := self.responses_per_second) is not None:
            numbers += f" {speed:.1f} {'responses' if self.rl else 'examples'}/s"
        left = f", {duration(self.seconds_left)} left" if self.seconds_left is not None else ""
        return f"{self.name} {self.done}/{self.total}{numbers.removesuffix(',')}{left}"


class Display:
    """A context in which the runs' progress is shown; `update` is called every fraction of a second."""

    def __init__(self, runs: Sequence[RunConfig], console: Console, logs: bool = False) -> None:
        """Args: logs: whether the runs print to logs, of which what they say of their data is shown here."""
        self._runs: dict[Path, RunProgress] = {}
        self._logs = logs
        self._data_of: set[str] = set()
        """Runs whose logs have been read, and the lines that were shown."""
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._started = self._looked = self._spoke = time.monotonic()
        self._reported: set[str] = set()
        self.stopping: Callable[[], bool] = lambda: False
        """Whether the runs have been asked to stop, which is said once."""
        self.silent_ends: Collection[str] = ()
        """Runs whose end the caller prints."""
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
        """Show these too, before the first has started."""
        self._runs |= {run_folder(run): RunProgress(run) for run in runs}
        self._refresh()

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
        if now - self._looked < LOOK_EVERY:
            return
        self._looked = now
        for progress in self._running():
            progress.look()
            self._show_data(progress)
        self._refresh()
        if self._live is None and now - self._spoke >= LINE_EVERY:
            self._spoke = now
            at_work = self._running()
            more = [f"and {len(at_work) - LINE_RUNS} more"] if len(at_work) > LINE_RUNS else []
            parts = [progress.described() for progress in at_work[:LINE_RUNS]]
            self.note(" | ".join([self._counts(), *parts, *more]))

    def note(self, text: str) -> None:
        tell(self._console, text)

    def say_stopping(self) -> None:
        """What was asked for takes until the iterations at work have ended."""
        running = self._running()
        unit = running[0].unit if len({progress.unit for progress in running}) == 1 else "iteration"
        seconds = max((progress.seconds_per_unit or 0.0 for progress in running), default=0.0)
        about = f" ({duration(seconds)} or less)" if seconds >= 1 else ""
        self.note(f"stopping after this {unit}{about}, with a checkpoint; Ctrl-C again: at once, without one")

    def _show_data(self, progress: RunProgress) -> None:
        """What a run's log says of its data, once for all runs of which it says the same."""
        if not self._logs or not progress.latest or progress.name in self._data_of:
            return
        self._data_of.add(progress.name)
        with contextlib.suppress(OSError):
            for line in log_path(progress.run).read_text(errors="replace").splitlines():
                said = f"{progress.run.stage.name} {line}"
                if line.startswith("data: ") and said not in self._data_of:
                    self._data_of.add(said)
                    self.note(said)

    def _running(self) -> list[RunProgress]:
        return [progress for progress in self._runs.values() if progress.state == "running"]

    def _end(self, progress: RunProgress, outcome: Outcome) -> None:
        progress.state = outcome.status
        if progress.name in self._reported:
            return
        self._reported.add(progress.name)
        progress.look()
        self._show_data(progress)
        if (self._live is None and progress.name not in self.silent_ends) or outcome.status == "failed":
            why = f": {outcome.reason}" if outcome.reason else ""
            tell(self._console, f"{progress.name} {outcome.status}{why}", STATE_STYLES.get(outcome.status, ""))

    def _refresh(self) -> None:
        """The table of what runs and what has run; of those that wait, the first few."""
        if self._live is None or not self._runs:
            return
        order = ("running", "failed", "queued", "interrupted", "pruned", "finished")
        important = sorted(self._runs.values(), key=lambda progress: order.index(progress.state))
        chosen = {progress.name for progress in important[: max(5, self._console.height - 4)]}
        shown = [progress for progress in self._runs.values() if progress.name in chosen]
        hidden = len(self._runs) - len(shown)
        counts = f"{self._counts()} ({hidden} not shown)" if hidden else self._counts()
        share = sum(progress.share for progress in self._runs.values()) / len(self._runs)
        overall = Table.grid(padding=(0, 1))
        overall.add_row(ProgressBar(1.0, share, width=BAR_WIDTH), counts)
        table = fitted_table(_live_columns(shown), self._console.width)
        self._live.update(Group(table, overall), refresh=self._live.is_started)

    def _counts(self) -> str:
        counts = Counter(progress.state for progress in self._runs.values())
        states = ", ".join(f"{count} {state}" for state, count in counts.items())
        inputs = sum(progress.is_input for progress in self._runs.values())
        done = f"{sum(counts[state] for state in OVER)} of {len(self._runs)} done"
        done += f" with {counted(inputs, 'input')}" if inputs else ""
        left = self._seconds_left()
        about = f", about {duration(left)} left" if left else ""
        return f"{duration(time.monotonic() - self._started)}  {done}{about} ({states})"

    def _seconds_left(self) -> float | None:
        """Of all runs, as many at a time as now: what runs by its speed, what waits as others of its stage took."""
        runs, running = list(self._runs.values()), self._running()
        parts = [progress.seconds_left for progress in running]
        for progress in [progress for progress in runs if progress.state == "queued"]:
            alike = [other for other in runs if (other.unit, other.rl) == (progress.unit, progress.rl)]
            known = [seconds for other in alike if (seconds := other.total_seconds) is not None]
            parts.append(sum(known) / len(known) if known else None)
        seconds = [part for part in parts if part is not None]
        if not running or len(seconds) < len(parts):
            return None
        return max(sum(seconds) / len(running), *seconds)


def _live_columns(runs: Sequence[RunProgress]) -> list[Column]:
    """Where the runs are: what evaluations say, from the first to the last, apart from what training says."""

    def metric(name: str) -> list[str]:
        return [number(row.latest.get(name)) for row in runs]

    return [
        Column("run", [row.name for row in runs]),
        Column("progress", [_bar(row) for row in runs]),
        Column("done", [f"{row.done}/{row.total}" for row in runs], right=True),
        Column("eval reward", [row.change_of("reward") for row in runs], right=True),
        Column("eval KL", metric("eval/kl"), right=True),
        Column("train reward", metric("train/reward"), right=True, drop=2),
        Column("train KL", metric("train/kl"), right=True, drop=3),
        Column("responses/s", [number(row.responses_per_second if row.rl else None, 1) for row in runs], True, drop=4),
        Column("left", [duration(row.seconds_left) for row in runs], right=True, drop=1),
    ]


def _bar(progress: RunProgress) -> RenderableType:
    """A bar of a run at work; of any other, its state."""
    if progress.state == "running":
        return ProgressBar(1.0, progress.share, width=BAR_WIDTH)
    return state_cell(progress.state)


def state_columns(names: Sequence[str], states: Sequence[str]) -> list[Column]:
    """The first columns of a table of runs."""
    return [Column("run", names), Column("state", [state_cell(state) for state in states])]


def state_cell(state: str) -> Text:
    return Text(state, style=STATE_STYLES.get(state, ""))


def duration(seconds: float | None) -> str:
    """1:02:03 or 2:03; a dash where it is not known."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
