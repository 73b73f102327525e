"""What people read on a terminal: text is text, never markup nor control sequence, and no number is cut.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import io
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from rlhf.errors import visible

WIDTH_IN_FILES = 120
"""Columns of a table in a file or a pipe, which has no width of its own."""

NARROWEST = 80
"""Columns that tables of many numbers need; a narrower terminal breaks their lines."""

_GAP = 2
_NARROWEST_NAME = 8


class PlainConsole(Console):
    """Prints every text as it is, but for what a terminal would obey."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def console(
    *,
    stderr: bool = False,
    file: IO[str] | None = None,
    quiet: bool = False,
    width: int = WIDTH_IN_FILES,
    narrowest: int = 0,
    **options: Any,
) -> Console:
    """The console that everything is printed to, tables by its `print`, sentences by `tell`.

    Args:
        width: columns of a table where the output is no terminal.
        narrowest: columns of a table in a terminal that has fewer.
        options: of rich's Console.
    """
    stream = sys.stderr if stderr else sys.stdout
    if file is None and isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a terminal without a table's arrows shows question marks
    plain = {"markup": False, "emoji": False, "highlight": False}
    made = PlainConsole(stderr=stderr, file=file, quiet=quiet, **plain, **options)
    made.width = max(made.width, narrowest if made.is_terminal else width)
    return made


def tell(console: Console, text: str, style: str = "") -> None:
    """A sentence: on a terminal broken between its words, never within a path; in a file one line."""
    shown = visible(text)
    if console.is_terminal:
        wrapper = textwrap.TextWrapper(console.width, break_long_words=False, break_on_hyphens=False)
        shown = "\n".join(wrapper.fill(line) for line in shown.splitlines())
    console.print(Text(shown, style=style), soft_wrap=True)


def typed_lines(prompt: str) -> Iterator[str]:
    """Lines of stdin without the blanks around them, until it ends, or one is "exit".

    Args:
        prompt: what asks for a line on a terminal; of a pipe each line is shown behind it.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if interactive := sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline

            readline.set_auto_history(True)  # arrow keys bring back what was typed
    while True:
        try:
            line = input(prompt).strip() if interactive else sys.stdin.readline()
        except EOFError:
            say("")
            return
        if not interactive:
            if not line:
                return
            line = line.strip()
            say(f"{prompt}{line}")
        if line == "exit":
            return
        yield line


def say(text: str) -> None:
    """A line, or several, on stdout."""
    print(visible(text), flush=True)


def complain(text: str) -> None:
    """A line, or several, on stderr."""
    print(visible(text), file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Column:
    """A column of a `fitted_table`, with its cells from top to bottom."""

    name: str
    cells: Sequence[RenderableType]
    right: bool = False
    """Whether it is a number."""
    drop: int = 0
    """0: always shown; the larger, the sooner it is left out where there is no room."""


def fitted_columns(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that `width` has room for; the first, which holds names, may break its lines."""
    made, kept = console(file=io.StringIO()), list(columns)
    widths = {column.name: _width(column, made) for column in columns}
    for column in sorted(columns, key=lambda column: -column.drop):
        if column.drop and sum(widths[shown.name] for shown in kept) + _GAP * (len(kept) - 1) > width:
            kept.remove(column)
    return kept


def fitted_table(columns: Sequence[Column], width: int, caption: str | None = None) -> Table:
    """A table that leaves out columns rather than cut a number."""
    kept = fitted_columns(columns, width)
    table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left")
    for place, column in enumerate(kept):
        if place:
            table.add_column(column.name, justify="right" if column.right else "left", no_wrap=True)
        else:
            table.add_column(column.name, overflow="fold", min_width=_NARROWEST_NAME)
    for row in zip(*(column.cells for column in kept), strict=True):
        table.add_row(*row)
    return table


def _width(column: Column, made: Console) -> int:
    return max(Measurement.get(made, made.options, cell).maximum for cell in (column.name, *column.cells))
