"""The words of a command line, read before Hydra reads them: flags in any place, and values that arrive as typed."""

from __future__ import annotations

import re
import shlex
import typing
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rlhf.config.build import ConfigError, cut, option_types, shown

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override

# Hydra's flags that take a value; the others take none.
WITH_VALUE = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--package", "-p", "--cfg", "-c")
WITHOUT_VALUE = ("--multirun", "-m", "--run", "-r", "--resolve", "--version", "--hydra-help", "--info", "-i")
WITHOUT_VALUE += ("--shell-completion", "-sc", "--experimental-rerun")
MULTIRUN = ("--multirun", "-m")

# A call of Hydra's grammar, as range(3) or choice(a,b).
_CALL = re.compile(r"(choice|range|interval|glob|tag|sort|shuffle|str|int|float|bool|json_str|extend_list)\(.*\)", re.S)
_QUOTED = re.compile(r"(['\"]).*\1", re.S)
_INTERPOLATION = re.compile(r"(?<!\\)\$\{([^}]*)\}")


def flags_first(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags, overrides), whatever their order was.

    Raises:
        ConfigError: a flag that there is not, as `--algo ppo`.
    """
    flags, overrides, problems, words = [], [], [], list(arguments)
    while words:
        word = words.pop(0)
        name, _, value = word.partition("=")
        if not word.startswith("-"):
            overrides.append(word)
        elif name in WITH_VALUE:
            flags.append(word)
            if "=" not in word and words:
                flags.append(words.pop(0))
        elif name in WITHOUT_VALUE:
            flags.append(word)
            if name in ("--info", "-i") and words and "=" not in words[0]:
                flags.append(words.pop(0))
        else:
            if not value and words and not words[0].startswith("-") and "=" not in words[0]:
                value = words.pop(0)
            meant = f"{name.lstrip('-').replace('-', '_')}={value or '...'}"
            problems.append(f"{name}: no such flag; options are typed without dashes: {shlex.quote(meant)}")
    if any(flag in MULTIRUN for flag in flags) and any(flag in ("--cfg", "-c") for flag in flags):
        problems.append("--cfg: shows one run; leave -m out")
    if problems:
        raise ConfigError(problems)
    return flags, overrides


def as_typed(overrides: Iterable[str], parser: OverridesParser, multirun: bool) -> list[str]:
    """The overrides, texts put into Hydra's quotes where its grammar would alter or refuse them.

    Raises:
        ConfigError: where it cannot be told what was meant; the line has the form to type.
    """
    done, problems = [], []
    for override in overrides:
        try:
            done.append(_as_typed(override, parser, multirun))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return done


def _as_typed(override: str, parser: OverridesParser, multirun: bool) -> str:
    from hydra.errors import HydraException

    key, sign, raw = override.partition("=")
    option = key.lstrip("+").strip()
    _refuse_interpolations(key, raw)
    try:
        parsed = parser.parse_override(override)
    except HydraException:
        parsed = None
    is_text = sign and raw and not key.startswith("~") and "\n" not in key
    if is_text and _holds_texts(option):
        return f"{key}={_list(key, raw, parsed)}"
    if is_text and (option == "hydra.sweeper.storage" or _holds_text(option)):
        return f"{key}={_text(key, raw, parsed, multirun)}"
    if parsed is None:
        form = shlex.quote(f"{key}={quoted(raw)}")
        cannot = f"{key}: Hydra cannot read {shown(raw)}; as one text it is typed {form}"
        raise ConfigError([cannot if sign else f"{cut(override)}: not of the form key=value"])
    return override


def _holds_text(option: str) -> bool:
    kind = option_types().get(option)
    return kind is str or str in typing.get_args(kind)


def _holds_texts(option: str) -> bool:
    kind = option_types().get(option)
    lists = [part for part in (kind, *typing.get_args(kind)) if typing.get_origin(part) is list]
    return any(str in typing.get_args(part) for part in lists)


def _text(key: str, raw: str, parsed: Override | None, multirun: bool) -> str:
    from hydra.core.override_parser.types import ChoiceSweep, QuotedString

    if _CALL.fullmatch(raw) and parsed is not None:
        return raw
    if parsed is not None and not parsed.is_sweep_override() and _QUOTED.fullmatch(raw.strip()):
        return raw
    if "," in raw:
        if not multirun:
            several = shlex.quote(f"{key}={quoted(raw)}")
            raise ConfigError([f"{key}: several values need -m; one text with commas is typed {several}"])
        parts = raw.split(",")
        if parsed is None or not isinstance(sweep := parsed.value(), ChoiceSweep):
            return ",".join(map(quoted, parts))
        if len(parts) != len(sweep.list):  # quoted commas
            return raw
        return ",".join(
            part if isinstance(value, QuotedString) or value is None or value == part.strip() else quoted(part)
            for part, value in zip(parts, sweep.list, strict=True)
        )
    if parsed is None:
        return quoted(raw)
    value = parsed.value()
    if value is None or value == raw:
        return raw
    if isinstance(value, str) and "\\" in raw:
        forms = [shlex.quote(f"{key}={quoted(text)}") for text in (value, raw)]
        raise ConfigError([f"{key}: Hydra takes backslashes out; type {forms[0]}, or {forms[1]} to keep them"])
    return quoted(raw)


def _list(key: str, raw: str, parsed: Override | None) -> str:
    """A list of texts; what is one text alone is left to the check of types."""
    inner = raw.strip()
    if not (inner.startswith("[") and inner.endswith("]")):
        return quoted(raw) if parsed is None else raw
    values = parsed.value() if parsed is not None else None
    if isinstance(values, list) and all(isinstance(value, str) and value in inner for value in values):
        return raw
    if any(mark in inner for mark in "\"'\\") or any(mark in inner[1:-1] for mark in "[]{}"):
        form = shlex.quote(f'{key}=["first","second"]')
        raise ConfigError([f"{key}: {shown(raw)} is not read as a list of texts; put each into quotes, as in {form}"])
    return f"[{','.join(quoted(part.strip()) for part in inner[1:-1].split(','))}]"


def quoted(text: str) -> str:
    """`text` as Hydra reads it back letter by letter."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text=text, quote=Quote.double).with_quotes()


def _refuse_interpolations(key: str, raw: str) -> None:
    """Of what the config does not have, as ${HOME}."""
    known = set(option_types()) | {path.rpartition(".")[0] for path in option_types()}
    for name in _INTERPOLATION.findall(raw):
        if ":" not in name and not name.startswith(("hydra.", ".")) and name not in known:
            line = f"{key}: ${{{name}}} stands for an option {name}, and there is none; write ${name}, or \\${{{name}}}"
            raise ConfigError([line])
