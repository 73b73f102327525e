"""How a field of a config dataclass states its meaning, its range, who reads it and whether it is in a run's id."""

from __future__ import annotations

import dataclasses
from typing import Any

from rlhf.config.readers import ALWAYS, Condition


def setting(
    meaning: str,
    *,
    read_by: Condition,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    identity: bool | Condition = True,
    path: bool = False,
    content: bool = False,
    also_called: tuple[str, ...] = (),
    filled_in: bool = False,
) -> Any:
    """A config field without a default: values stand in conf/ alone.

    Args:
        meaning: what it is, with its unit.
        read_by: where the option is read; elsewhere a run that sets it is refused, and its id leaves it out.
        choices: the strings allowed.
        low, above, high: bounds of a number (or of each number of a list): >= low, > above, <= high.
        identity: False for a field that cannot change a run's results (folders, tracking, scheduling), or where it can,
            if it is also read where it cannot.
        path: True for a file or folder (or a hub name): a leading ~ becomes the home folder when the config is built.
        content: True for an input path: it enters the identity by a fingerprint of what it holds.
        also_called: its names elsewhere, for whoever types one of them.
        filled_in: True for a list that the program fills in and nobody types; empty until then.
    """
    return dataclasses.field(
        default_factory=list if filled_in else dataclasses.MISSING,  # type: ignore[arg-type]
        metadata={
            "meaning": meaning,
            "read_by": read_by,
            "choices": choices,
            "low": low,
            "above": above,
            "high": high,
            "identity": identity,
            "path": path or content,
            "content": content,
            "also_called": also_called,
        },
    )


def scheduling(meaning: str, **stated: Any) -> Any:
    """A `setting` that launchers read; it changes no run's results."""
    return setting(meaning, read_by=ALWAYS, identity=False, **stated)
