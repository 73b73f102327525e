"""The runs of several folders as one list: each run once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from analysis.load import RunRecord, is_run, load_run, load_sweep


def read_folders(folders: Sequence[Path], stage: str) -> tuple[list[RunRecord], list[str]]:
    """Every run of `stage`, and a note for each that was there twice.

    Args:
        folders: of sweeps or of single runs.

    Raises:
        SweepFolderError: a folder does not exist or holds no runs.
    """
    records: list[RunRecord] = []
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        found = [load_run(folder)] if is_run(folder) else load_sweep(folder)
        records += [_as_online(record) for record in found if record.stage == stage]
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


def _as_online(record: RunRecord) -> RunRecord:
    """An offline run is labelled, compared and summarised as an online one; only what it calls samples differs."""
    if record.stage == "online":
        return record
    return dataclasses.replace(record, stage="online", algo=str(record.setting("algo.name", "")))
