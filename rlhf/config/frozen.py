"""The config.yaml of run folders, compared with the config of a run: what was edited, and which other run is near."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError, build_config, config_to_mapping, shown
from rlhf.config.identity import input_runs, run_folder, run_id
from rlhf.config.options import options
from rlhf.urls import address

FILE = "config.yaml"
MOST_SHOWN = 3
"""Settings that a line names."""

NOT_READ = object()
"""In the place of a value that a run does not read."""


def edited(folder: Path, config: RunConfig) -> str:
    """What in the folder's config.yaml is not the run's, although the folder is the run's by its id; "" where nothing
    is, or there is no such file."""
    file = folder / FILE
    if not file.exists():
        return ""
    there = _read(file)
    if there is None:
        return "it is no config of a run"
    by_content = {option.path for option in options(config) if option.stated["content"]}  # what lies there counts
    differing = [path for path, *_ in _differences(there, config) if path not in by_content]
    return f"{', '.join(differing[:MOST_SHOWN])} had been edited" if differing else ""


def other_server(folder: Path, config: RunConfig) -> str:
    """The line that says that the run goes on with another reward server than the folder's config.yaml names; ""
    where it does not."""
    there = _read(folder / FILE)
    ours, theirs = config.reward.url, there and there.reward.url
    if config.reward.name != "http" or not ours or not theirs or address(ours) == address(theirs):
        return ""
    return (
        f"reward.url is {shown(address(ours))} and was {shown(address(theirs))}; if the two score differently, "
        "reward.server=NAME makes this another run"
    )


def starts_anew(runs: Sequence[RunConfig]) -> str:
    """The line that says which earlier run in the sweep folder one of `runs`, not begun yet, is nearest to; "" where
    there is none of its algorithm and seed."""
    for run in runs:
        folder = run_folder(run)
        start = run_id(run).rpartition("-")[0]
        if folder.exists() or not folder.parent.is_dir():
            continue
        near = []
        for other in sorted(folder.parent.glob(f"{start}-*/{FILE}")):
            there = _read(other)
            if there is not None and (differing := _differences(there, run)):
                near.append((len(differing), other.parent.name, differing))
        if near:
            _, name, differing = min(near)
            words = [f"{path} ({_value(ours)} here, {_value(theirs)} there)" for path, theirs, ours in differing]
            more = f" and {len(words) - MOST_SHOWN} more" if len(words) > MOST_SHOWN else ""
            verb = "differs" if len(words) == 1 else "differ"
            return f"starts anew: {', '.join(words[:MOST_SHOWN])}{more} {verb} from run {name}"
    return ""


def _value(value: Any) -> str:
    return "not read" if value is NOT_READ else shown(value)


def _read(file: Path) -> RunConfig | None:
    import yaml

    try:
        return build_config(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError, RecursionError, ConfigError, AttributeError):
        return None


def _differences(there: RunConfig, config: RunConfig) -> list[tuple[str, Any, Any]]:
    """(path, value there, value here) of what can change the results of `config`'s stage or its inputs."""
    ours = _results(build_config(config_to_mapping(config)))
    theirs = _results(there)
    paths = dict.fromkeys([*ours, *theirs])
    pairs = ((path, theirs.get(path, NOT_READ), ours.get(path, NOT_READ)) for path in paths)
    return [(path, there, here) for path, there, here in pairs if there != here]


def _results(config: RunConfig) -> dict[str, Any]:
    runs = [config, *input_runs(config)]
    return {each.path: each.value for each in options(config) if any(each.changes(run) for run in runs)}
