"""What is printed: text is text, whatever it holds, and a table leaves out columns rather than cut a number."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from rlhf.terminal import Column, complain, console, fitted_table, say, tell

HOSTILE = "runs[/old] [red]x[/red] :smile: \x1b[31mred\x1b]0;title\x07 \x9b2J \u202egpj.exe\r"
SHOWN = "runs[/old] [red]x[/red] :smile: red"


def made(*, terminal: bool = False, width: int = 200) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    options = {"force_terminal": True, "color_system": None} if terminal else {}
    printer = console(file=stream, **options)
    printer.width = width
    return printer, stream


def is_harmless(text: str) -> bool:
    return SHOWN in text and not any(bad in text for bad in ("\x1b[31m", "\x1b]0", "\x9b", "\u202e", "\x07"))


@pytest.mark.parametrize("terminal", [True, False])
def test_text_is_neither_markup_nor_control_sequence(terminal: bool, capsys: pytest.CaptureFixture[str]):
    printer, stream = made(terminal=terminal)
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    bar = Progress(TextColumn("{task.description}", markup=False), console=printer)
    bar.add_task(HOSTILE)
    for print_it in (
        lambda: printer.print(HOSTILE),
        lambda: printer.print(table),
        lambda: printer.print(bar.make_tasks_table(bar.tasks)),
        lambda: tell(printer, HOSTILE, "red"),
        lambda: tell(Console(file=stream, force_terminal=terminal, color_system=None, width=200), HOSTILE),
    ):
        stream.seek(0)
        stream.truncate()
        print_it()
        assert is_harmless(stream.getvalue()), stream.getvalue()
    say(HOSTILE)
    complain(HOSTILE)
    printed = capsys.readouterr()
    assert is_harmless(printed.out) and is_harmless(printed.err)


def test_sentences_break_between_words_on_a_terminal_and_stay_whole_in_a_file():
    words = "the batch arithmetic /a/path/that/is/longer-than-the-line of this run"
    printer, stream = made(terminal=True, width=20)
    tell(printer, words)
    assert "/a/path/that/is/longer-than-the-line" in stream.getvalue().splitlines()
    assert stream.getvalue().split() == words.split()
    printer, stream = made(width=20)
    tell(printer, words)
    assert stream.getvalue() == f"{words}\n"


COLUMNS = [
    Column("run", ["apa-tiny-letters-s0-42680ef7", "ppo-s1-e5f51514"]),
    Column("state", ["interrupted", Text("failed", style="red")]),
    Column("KL", ["12.345", "-0.001"], right=True),
    Column("speed", ["1234.5", "17.0"], right=True, drop=1),
    Column("log", ["runs/default/logs/apa-tiny-letters-s0-42680ef7.log", "-"], drop=2),
]


@pytest.mark.parametrize(
    ("width", "missing"),
    [(200, []), (109, []), (108, ["log"]), (80, ["log"]), (56, ["speed", "log"]), (40, ["speed", "log"])],
)
def test_a_narrow_table_leaves_out_columns_and_cuts_no_cell(width: int, missing: list[str]):
    printer, stream = made(width=width)
    printer.print(fitted_table(COLUMNS, width))
    printed = stream.getvalue()
    assert max(map(len, printed.splitlines())) <= width and "\N{HORIZONTAL ELLIPSIS}" not in printed
    for column in COLUMNS[1:]:
        for cell in map(str, (column.name, *column.cells)):
            assert (cell in printed.split()) == (column.name not in missing) or cell == "-"
    for name in map(str, COLUMNS[0].cells):  # names may break their lines
        assert name in "".join(line[: len(name)].split(" ")[0] for line in printed.splitlines())
