"""Options that a user has set and that nothing in this combination reads: each refused in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.config import RunConfig
from rlhf.config.identity import input_runs
from rlhf.config.options import options
from rlhf.config.readers import Failure

COMMAND_LINE = ""
"""The source of what was typed."""

Sources = Mapping[str, str]
"""{dotted path of an option or a group: the file that set it, or COMMAND_LINE}."""


def unread(config: RunConfig, sources: Sources) -> dict[str, str]:
    """{path: the line that refuses it} of options that were set and that neither the run nor its inputs read.

    What was typed must be read. What a file sets may be meant for another stage, or have lost its reader to something
    typed (`experiment=mine model=tiny`).

    Args:
        sources: what was set, and by what.
    """
    runs = [config, *input_runs(config)]
    lines = {}
    for option in options(config):
        source = sources.get(option.path)
        failure = option.unread_by(runs) if source is not None else None
        if failure is None or (source and _tolerated(failure, sources)):
            continue
        lines[option.path] = refusal(option.path, failure, source)
    return lines


def refusal(path: str, failure: Failure, source: str | None) -> str:
    where = f" ({source} sets it)" if source else ""
    remedy = f", or add {failure.wanted}" if failure.wanted else ""
    return f"{path}: {failure.found} does not read it{where}; leave it out{remedy}"


def _tolerated(failure: Failure, sources: Sources) -> bool:
    typed = {path for path, source in sources.items() if source == COMMAND_LINE}
    return failure.by_stage or any(path in typed or path.partition(".")[0] in typed for path in failure.options)


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
