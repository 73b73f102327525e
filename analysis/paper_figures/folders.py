"""The runs of several folders as one list: each run once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from analysis.load import RunRecord, load_folders


def read_folders(folders: Sequence[Path], stage: str) -> tuple[list[RunRecord], list[str]]:
    """Every run of `stage`, and a note for each that was there twice.

    Args:
        folders: of sweeps or of single runs.

    Raises:
        SweepFolderError: a folder does not exist or holds no runs.
    """
    found = [record for _, records in load_folders(folders) for record in records]
    records = [_by_name(record) for record in found if record.stage == stage]
    return once(records, lambda record: record.id, "the same run")


def once(
    records: Sequence[RunRecord], key: Callable[[RunRecord], Hashable], same: str
) -> tuple[list[RunRecord], list[str]]:
    """The first usable record of each key, in the order of `records`, and a note for each of the others.

    A key of None is nobody else's.
    """
    kept: dict[Hashable, RunRecord] = {}
    notes: list[str] = []
    for record in sorted(records, key=lambda record: record.reason is not None):  # stable: usable ones first
        own = key(record)
        first = kept.setdefault(id(record) if own is None else own, record)
        if first is not record:
            notes.append(f"left out: {place(record)}: {same} as {place(first)}")
    chosen = {id(record) for record in kept.values()}
    return [record for record in records if id(record) in chosen], notes


def place(record: RunRecord) -> str:
    """The run with its sweep's folder: ids of several sweeps may be the same."""
    return f"{record.folder.parent.name}/{record.id}"


def _by_name(record: RunRecord) -> RunRecord:
    """A figure shows one stage: nothing is told apart by it."""
    return dataclasses.replace(record, algo=str(record.setting("algo.name", "")))
