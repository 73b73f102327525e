"""How a field of a config dataclass states its meaning, its range and whether it is part of a run's identity."""

from __future__ import annotations

import dataclasses
from typing import Any


def setting(
    meaning: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    identity: bool = True,
    path: bool = False,
    content: bool = False,
) -> Any:
    """A config field without a default: values stand in conf/ alone.

    Args:
        meaning: what it is, with its unit.
        choices: the strings allowed.
        low, above, high: bounds of a number (or of each number of a list): >= low, > above, <= high.
        identity: False for a field that cannot change a run's results (folders, tracking, scheduling).
        path: True for a file or folder (or a hub name): a leading ~ becomes the home folder when the config is built.
        content: True for an input path: it enters the identity by a fingerprint of what it holds.
    """
    return dataclasses.field(
        metadata={
            "meaning": meaning,
            "choices": choices,
            "low": low,
            "above": above,
            "high": high,
            "identity": identity,
            "path": path or content,
            "content": content,
        }
    )
