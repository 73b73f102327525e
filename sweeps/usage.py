"""What `--help` and `--options` print, made of the config classes and the files of conf/."""

from __future__ import annotations

import dataclasses
import difflib
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.config import ALGO_CONFIGS, AlgoConfig, RunConfig
from rlhf.config.build import ConfigError, group_of, option_fields, option_types

WIDTH = 80

HEAD = """\
apa-rlhf compares RLHF algorithms: reward gained within a budget of KL to the
initial policy. A run is one option of each group below, and single values on
top.

  python main.py -m algo=apa,ppo,awr seed=0,100    six runs and their report
  python main.py algo=ppo seed=3 algo.kl.target=4  one run
  python main.py model=hub model.path=FOLDER dataset=hh dataset.path=FILE.jsonl

"""
TAIL = """
  -m             run every combination of comma lists
  -m +sweep=NAME run a file of sweeps/, as +sweep=frontier
  --options [X]  every option, or those of a section, with type and meaning
  --config-dir X look for files of groups in X too, as X/model/mine.yaml
  --cfg job      print the composed config, and run nothing

Results lie in runs/<sweep_name>/<run id>/; the same command typed again skips
what is finished and resumes the rest. README.md says more."""


def asked_for_help(arguments: Sequence[str]) -> str | None:
    """What was asked for: "" for help, a section's name or "all" for options; None for a run."""
    for place, word in enumerate(arguments):
        name, _, value = word.partition("=")
        if name == "--options":
            following = arguments[place + 1 : place + 2]
            return value or (following[0] if following else "all")
    return "" if any(word in ("--help", "-h", "help") for word in arguments) else None


def usage(conf: Path, asked: str) -> str:
    """The help page, or the options of a section.

    Raises:
        ConfigError: there is no such section.
    """
    if asked:
        return _options(asked)
    groups = []
    for group in [*(field.name for field in dataclasses.fields(RunConfig)), "experiment", "debug"]:
        if names := sorted(file.stem for file in (conf / group).glob("*.yaml")):
            groups.append(_filled(", ".join(names), f"  {group:<11} ", " " * 14))
    return "\n".join([HEAD.removesuffix("\n"), *groups, TAIL])


def _filled(text: str, first: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)


def _options(section: str) -> str:
    lines = _all_options()
    chosen = [
        line
        for (path, algos), line in lines.items()
        if section in ("all", path, *(f"{path} {name}".strip() for name in algos.split(",")), *path.split("."))
        or path.startswith(f"{section}.")
    ]
    if not chosen:
        paths = {path for path, _ in lines}
        sections = sorted({path.partition(".")[0] for path in paths})
        near = difflib.get_close_matches(section, [*sorted(paths), *sections], n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sections)}"
        raise ConfigError([f"--options {section}: no such option or section; {hint}"])
    return "\n".join(chosen)


def _all_options() -> dict[tuple[str, str], str]:
    """{(path, algorithms that have it): text} of every option; what all algorithms share stands with the first."""
    fields = {(path, ""): field for path, field in _leaves(RunConfig) if not path.startswith("algo.")}
    shared: set[str] = set()
    for kind in dict.fromkeys(ALGO_CONFIGS.values()):
        name = ",".join(name for name, other in ALGO_CONFIGS.items() if other is kind)
        fields |= {(path, name): field for path, field in _leaves(kind, "algo.") if path not in shared}
        shared = {path for path, _ in _leaves(AlgoConfig, "algo.")}
    texts = {}
    for (path, algo), field in fields.items():
        note = f" (algo={algo})" if algo else ""
        meaning = _filled(field.metadata["meaning"], "    ", "    ")
        texts[path, algo] = f"{path}{note}: {_kind(option_types()[path], field.metadata)}\n{meaning}"
    return texts


def _leaves(kind: type, prefix: str = "") -> list[tuple[str, dataclasses.Field[Any]]]:
    return [(path, field) for path, inner, field in option_fields(kind, prefix) if group_of(inner) is None]


def _kind(kind: Any, stated: Any) -> str:
    optional = isinstance(kind, types.UnionType)
    kind = typing.get_args(kind)[0] if optional else kind
    words = {str: "text", int: "integer", float: "number", bool: "true or false"}
    if typing.get_origin(kind) is list:
        word = f"list of {words[typing.get_args(kind)[0]]}s"
    else:
        word = " | ".join(stated["choices"]) if stated["choices"] else words[kind]
    signs = {"low": ">=", "above": ">", "high": "<="}
    bounds = [f"{sign} {stated[name]:g}" for name, sign in signs.items() if stated[name] is not None]
    return " ".join([word, *bounds]) + (" or null" if optional else "")
