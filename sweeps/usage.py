"""What `--help` and `--options` print, made of the config classes and the files of conf/."""

from __future__ import annotations

import dataclasses
import difflib
import textwrap
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import ALGO_CONFIGS, AlgoConfig, RunConfig
from rlhf.config.build import ConfigError, group_of, option_fields, option_types

WIDTH = 100

HEAD = """\
apa-rlhf compares RLHF algorithms by the reward that each gains within a budget of KL to the initial
policy. A run is one name of each group below, and single values on top.

The demo, without a GPU: six runs and their report
  python main.py -m algo=apa,ppo,awr seed=0,100
Your model with your preferences (rows of prompt, chosen, rejected)
  python main.py -m algo=apa,ppo model=hub model.path=MODEL dataset=preferences dataset.path=a.jsonl
Your prompts with your reward function
  python main.py model=hub model.path=MODEL model.sft=false dataset=prompts dataset.path=a.jsonl \\
      reward=python reward.path=my_rewards.py:score
Try it: everything once, in little
  python main.py ... debug=one_step

Groups
"""
TAIL = """
Flags
  -m               run every combination of comma lists; -m +sweep=NAME runs a file of sweeps/
  --options [X]    every option, or those of a group or section, with type, unit and meaning
  --config-dir X   look for files of groups in X too, as X/model/mine.yaml
  --cfg job        print the composed config, and run nothing

Results lie in runs/<sweep_name>/<run id>/. The same command typed again skips what is finished and
resumes the rest. README.md says how to begin; docs/ has pages on data, models, rewards and more."""


@dataclass(frozen=True)
class Described:
    path: str
    algos: tuple[str, ...]
    """The algorithms that have the option; empty where every run has it."""
    kind: str
    """Type and bounds in words."""
    meaning: str

    @property
    def of_algos(self) -> str:
        return f" (algo={','.join(self.algos)})" if self.algos else ""


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
    groups = [
        _filled(", ".join(file.stem for file in files), f"  {group:<11} ", " " * 14)
        for group, files in group_files(conf).items()
    ]
    return "\n".join([HEAD.removesuffix("\n"), *groups, TAIL])


def group_files(conf: Path) -> dict[str, list[Path]]:
    """Every group of options with its files, in the order of the config's sections."""
    names = [*(field.name for field in dataclasses.fields(RunConfig)), "experiment", "debug"]
    return {name: files for name in names if (files := sorted((conf / name).glob("*.yaml")))}


def _filled(text: str, first: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)


def _options(section: str) -> str:
    every = described()
    chosen = [
        option
        for option in every
        if section in ("all", *(f"{option.path} {algo}".strip() for algo in option.algos), *option.path.split("."))
        or f"{option.path}.".startswith(f"{section}.")
    ]
    if not chosen:
        paths = {option.path for option in every}
        sections = sorted({path.partition(".")[0] for path in paths})
        near = difflib.get_close_matches(section, [*sorted(paths), *sections], n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sections)}"
        raise ConfigError([f"--options {section}: no such option or section; {hint}"])
    return "\n".join(
        f"{option.path}{option.of_algos}: {option.kind}\n{_filled(option.meaning, '    ', '    ')}" for option in chosen
    )


def described() -> list[Described]:
    """Every option; what all algorithms share stands with the first."""
    fields = [(path, (), field) for path, field in _leaves(RunConfig) if not path.startswith("algo.")]
    shared: set[str] = set()
    for kind in dict.fromkeys(ALGO_CONFIGS.values()):
        algos = tuple(name for name, other in ALGO_CONFIGS.items() if other is kind)
        fields += [(path, algos, field) for path, field in _leaves(kind, "algo.") if path not in shared]
        shared = {path for path, _ in _leaves(AlgoConfig, "algo.")}
    types_of = option_types()
    return [
        Described(path, algos, _kind(types_of[path], field.metadata), field.metadata["meaning"])
        for path, algos, field in fields
    ]


def _leaves(kind: type, prefix: str = "") -> list[tuple[str, dataclasses.Field[Any]]]:
    return [(path, field) for path, inner, field in option_fields(kind, prefix) if group_of(inner) is None]


def _kind(kind: Any, stated: Any) -> str:
    optional = isinstance(kind, types.UnionType)
    kind = typing.get_args(kind)[0] if optional else kind
    words = {str: "text", int: "integer", float: "number", bool: "true or false"}
    if typing.get_origin(kind) is list:
        word = f"list of {words[typing.get_args(kind)[0]]}s"
        word += ", each" * any(stated[name] is not None for name in ("low", "above", "high"))
    else:
        word = " | ".join(stated["choices"]) if stated["choices"] else words[kind]
    signs = {"low": ">=", "above": ">", "high": "<="}
    bounds = [f"{sign} {stated[name]:g}" for name, sign in signs.items() if stated[name] is not None]
    return f"{word} {' and '.join(bounds)}".rstrip() + (" or null" if optional else "")
