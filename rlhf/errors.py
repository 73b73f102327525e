"""Errors that a user reads: one line each, without control sequences. Imports no torch."""

from __future__ import annotations

import re
import unicodedata

_LONGEST_REASON = 400
# A terminal's control sequences, as CSI (colours, cursor) and OSC (titles, links), whole.
_SEQUENCES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\^_]")


class UserError(Exception):
    """What a user can mend; the message is one line that names the option or file and says what to type."""

    label = "failed"
    """What stands before the message on the terminal."""
    exit_code = 1
    """2 where something else must be typed before any run can begin."""


class FileError(UserError, OSError):
    """A file that cannot be read or written, or that holds something else than it should."""


def printable(text: str) -> str:
    """`text` on one line, without control sequences and characters that a terminal would obey or not show.

    For whatever comes from outside: files, servers, other libraries' messages.
    """
    return " ".join(visible(text).split())


def visible(text: str) -> str:
    """`text` with its lines, tabs and blanks, without what `printable` leaves out."""
    if text.isprintable():
        return text
    plain = _SEQUENCES.sub("", text)
    return "".join(map(_shown, plain)).encode("utf-8", "replace").decode("utf-8")


def _shown(character: str) -> str:
    if character in "\n\t\u200c\u200d":  # the last two join letters of some scripts
        return character
    category = unicodedata.category(character)
    return " " if category in ("Cc", "Zl", "Zp") else "" if category == "Cf" else character


def reason(error: BaseException) -> str:
    """Why something failed: the whole message on one line; never empty, and cut where it is very long.

    The libraries' first line is often a headline, and the reason stands on the second.
    """
    said = printable(str(error))
    if isinstance(error, OSError) and error.strerror and not isinstance(error, UserError):
        said = printable(f"{error.strerror}: {error.filename}" if error.filename else error.strerror)
    if not said:
        return type(error).__name__
    if isinstance(error, KeyError):
        said = f"no {said}"
    return said if len(said) <= _LONGEST_REASON else f"{said[: _LONGEST_REASON - 3]}..."


def one_line(error: BaseException) -> str:
    """The error without a traceback; with its type's name where the message was not written for the user."""
    if isinstance(error, UserError):
        return "; ".join(printable(line) for line in str(error).splitlines() if line.strip())
    said = reason(error)
    return said if said == type(error).__name__ else f"{type(error).__name__}: {said}"
