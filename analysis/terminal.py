"""The console that the commands' tables are printed to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

NARROWEST = 80
NO_TERMINAL = 120
"""Columns of a table in a file or a pipe, which has no width of its own."""


def console() -> Console:
    """As wide as the terminal, and never so narrow that a table breaks its numbers."""
    from rich.console import Console

    terminal = Console()
    return Console(width=max(NARROWEST if terminal.is_terminal else NO_TERMINAL, terminal.width))
