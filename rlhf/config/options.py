"""The options of a config, or of a config file, as a table: path, value, what is stated beside them, who reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.setting import Condition, Failure


@dataclass(frozen=True)
class Option:
    path: str
    value: Any
    stated: Mapping[str, Any]
    """The metadata of `rlhf.config.setting`."""
    conditions: tuple[tuple[Condition, str], ...]
    """`read_by` of the sections that it stands in and its own, each with the section that its path begins from."""

    def failure(self, run: Any) -> Failure | None:
        """Why the stage of `run`, a `RunConfig`, does not read it; None where it does."""
        failures = [condition.failure(run, section) for condition, section in self.conditions]
        failures = [failure for failure in failures if failure is not None]
        # The inner condition is the narrower one: what it wants suits the outer ones that the same settings decide.
        return next((failure for failure in reversed(failures) if failure.options == failures[0].options), None)

    def unread_by(self, runs: Iterable[Any]) -> Failure | None:
        """Why none of `runs`, the first of which is the one asked for, reads it; None where one does."""
        failures = [self.failure(run) for run in runs]
        if None in failures:
            return None
        return next((failure for failure in failures if failure and not failure.by_stage), failures[0])

    def changes(self, run: Any) -> bool:
        """Whether it can change the results of this stage."""
        identity = self.stated["identity"]
        if isinstance(identity, Condition):
            identity = identity.failure(run, self.path.rpartition(".")[0]) is None
        return identity and self.value != self.stated["off"] and self.failure(run) is None


def options(config: Any, section: str = "", conditions: tuple[tuple[Condition, str], ...] = ()) -> Iterator[Option]:
    """Every option of a config or of one of its sections that holds a value; null sections count as options."""
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{section}.{field.name}".lstrip(".")
        condition = field.metadata["read_by"]
        chain = (*(() if condition.regardless else conditions), (condition, section))
        if dataclasses.is_dataclass(value):
            yield from options(value, path, chain)
        else:
            yield Option(path, value, field.metadata, chain)


def file_values(file: Path, group: str) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of all that a config file sets, but for Hydra's own settings.

    Args:
        group: the folder that it lies in, as `model`; "." at the top.
    """
    import yaml

    text = file.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        return
    at_top = group == "." or any(line.split() == ["#", "@package", "_global_"] for line in text.splitlines())
    for path, value in flat(content, "" if at_top else group):
        if path.partition(".")[0] not in ("defaults", "hydra"):
            yield path, value


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of nested dicts."""
    if not isinstance(value, dict):
        yield path, value
        return
    for name, inner in value.items():
        yield from flat(inner, f"{path}.{name}".lstrip("."))
