"""The options of a config as a table: path, value, what is stated beside them, and whether a run reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.config.readers import Condition, Failure, Regardless


@dataclass(frozen=True)
class Option:
    path: str
    value: Any
    stated: Mapping[str, Any]
    """The metadata of `rlhf.config.setting`."""
    conditions: tuple[tuple[Condition, str], ...]
    """`read_by` of the sections that it stands in and its own, each with the section that its path begins from."""

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]

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
        if isinstance(identity, bool):
            return identity and self.failure(run) is None
        return self.failure(run) is None and identity.failure(run, self.section) is None


def options(config: Any, section: str = "", conditions: tuple[tuple[Condition, str], ...] = ()) -> Iterator[Option]:
    """Every option of a config or of one of its sections that holds a value; null sections count as options."""
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{section}.{field.name}".lstrip(".")
        condition = field.metadata["read_by"]
        outer = () if isinstance(condition, Regardless) else conditions
        chain = (*outer, (condition, section))
        if dataclasses.is_dataclass(value):
            yield from options(value, path, chain)
        else:
            yield Option(path, value, field.metadata, chain)
