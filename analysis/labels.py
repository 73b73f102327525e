"""What differs between the configs of one algorithm's runs, in as few words as stay unambiguous."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from rlhf.config.build import off_values, paths_without_effect

REPLICATES = ("sft.seed", "reward_model.seed", "seed")
"""What is drawn anew where a run is repeated, the outermost first: runs that differ in no more are of one setting."""

# Also what is kept: another id, and the same results; and where values come from, which are settings themselves.
_SAME_RESULTS = {*REPLICATES, "checkpoint.save_final", "settings_from", *paths_without_effect()}
_ABSENT = object()
_OFF = off_values()
_NAN = float("nan")


def label_configs(configs: list[dict[str, Any]]) -> list[str]:
    """One label per config, such as `lam=0.1, sft.steps=3`; all "" where nothing but the seeds differ."""
    flats = [flatten(config) for config in configs]
    differing = differing_keys(flats)
    leaf_counts = Counter(key.rsplit(".", 1)[-1] for key in set().union(*flats)) if flats else Counter()

    def shown(key: str) -> str:
        group, _, leaf = key.rpartition(".")
        if leaf == "name" and group:
            return group  # `dataset=hh`, as it is typed on the command line
        return leaf if leaf_counts[leaf] == 1 else key

    return [", ".join(f"{shown(key)}={_text(flat[key])}" for key in differing if key in flat) for flat in flats]


def named(algo: str, label: str) -> str:
    """`apa (lam=0.1)`, or the algorithm alone."""
    return f"{algo} ({label})" if label else algo


def label_values(configs: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The settings of which labels are made: {dotted key: its value in each config, None where it is not there}."""
    flats = [flatten(config) for config in configs]
    return {key: [_value(flat, key) for flat in flats] for key in differing_keys(flats)}


def differing_settings(configs: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Every setting that is not the same in all configs, those included that an algorithm brings: {dotted key: as text
    in each config, a dash where it is not there}."""
    flats = [flatten(config) for config in configs]
    keys = sorted(set().union(*flats)) if flats else []
    differing = [key for key in keys if len({flat.get(key, _ABSENT) for flat in flats}) > 1]
    return {key: [_text(flat[key]) if key in flat else "\N{EN DASH}" for flat in flats] for key in differing}


def differing_keys(flats: list[dict[str, Hashable]]) -> list[str]:
    """Keys with more than one value, in order; a group's other keys only where they differ under one `name` too.

    (Another data set brings its own path, lengths and budgets: its name says it all.)
    """
    keys = sorted(set().union(*flats)) if flats else []
    differing = [key for key in keys if len({_value(flat, key) for flat in flats}) > 1]
    kept = []
    for key in differing:
        name_key = key.split(".")[0] + ".name"
        values_by_name: dict[Hashable, set[Hashable]] = {}
        for flat in flats:
            values_by_name.setdefault(flat.get(name_key), set()).add(_value(flat, key))
        if key == name_key or any(len(values) > 1 for values in values_by_name.values()):
            kept.append(key)
    return kept


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Hashable]:
    """Nested config -> {dotted key: value}; lists become tuples, so that values can be compared and hashed."""
    flat: dict[str, Hashable] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if key in _SAME_RESULTS or key == "hydra":
            continue
        if isinstance(value, dict):
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = _hashable(value)
    return flat


def _value(flat: dict[str, Hashable], key: str) -> Hashable:
    """None where it is not there; of a config that is older than an option, the value at which the option is off."""
    return flat.get(key, _OFF.get(key))


def _hashable(value: Any) -> Hashable:
    if isinstance(value, list | tuple):
        return tuple(map(str, value))
    if isinstance(value, float) and value != value:
        return _NAN  # one object: in a set it is then one value, unlike two NaN
    return value if isinstance(value, Hashable) else str(value)


def _text(value: Hashable) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(map(str, value)) + "]"
    if value is None:
        return "null"
    if isinstance(value, float):  # in full where fewer digits would be another value, and so another setting
        return short if float(short := f"{value:g}") == value else repr(value)
    return str(value)
