"""Options that a user has set and that nothing in this combination reads: each refused in one line."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.config import RunConfig
from rlhf.config.build import CONF
from rlhf.config.identity import input_runs
from rlhf.config.options import Option, options
from rlhf.config.readers import Failure

COMMAND_LINE = ""
"""The source of what was typed."""

Sources = Mapping[str, str]
"""{dotted path of an option or a group: the file that set it, or COMMAND_LINE}."""


def unread(config: RunConfig, sources: Sources | None) -> dict[str, str]:
    """{path: the line that refuses it} of options that were set and that neither the run nor its inputs read.

    What was typed must be read. What a file sets may be meant for another stage, or have lost its reader to something
    typed (`experiment=mine model=tiny`).

    Args:
        sources: what was set, and by what; None: unknown, so that an option counts as set where its value is none that
            conf/ gives it.
    """
    runs = [config, *input_runs(config)]
    lines = {}
    for option in options(config):
        source = _source(option, sources)
        failure = option.unread_by(runs) if source is not None else None
        if failure is None or (source and _tolerated(failure, sources or {})):
            continue
        lines[option.path] = refusal(option.path, failure, source or COMMAND_LINE)
    return lines


def refusal(path: str, failure: Failure, source: str = COMMAND_LINE) -> str:
    where = f" ({source} sets it)" if source else ""
    remedy = f", or add {failure.wanted}" if failure.wanted else ""
    return f"{path}: {failure.found} does not read it{where}; leave it out{remedy}"


def _source(option: Option, sources: Sources | None) -> str | None:
    """What set the option; None where nothing did."""
    if sources is not None:
        return sources.get(option.path)
    neutral = option.value is None or option.value in ("", [])
    return None if neutral or option.value in conf_values().get(option.path, []) else COMMAND_LINE


def _tolerated(failure: Failure, sources: Sources) -> bool:
    typed = {path for path, source in sources.items() if source == COMMAND_LINE}
    return failure.by_stage or any(path in typed or path.partition(".")[0] in typed for path in failure.options)


@functools.cache
def conf_values() -> dict[str, list[Any]]:
    """Every value that a file of conf/ gives to an option, by its dotted path."""
    found: dict[str, list[Any]] = {}
    for file in sorted(CONF.rglob("*.yaml")):
        for path, value in file_values(file, file.parent.relative_to(CONF).as_posix()):
            found.setdefault(path, []).append(value)
    return found


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
