"""A user's own code by its place, `file.py:name` or `module:name`: rewards and algorithms. Imports no torch.

A file is run once in each process for each content that it has. Its folder can be imported from, so that it may have
neighbours; of those only the file itself is in a run's id.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from rlhf.errors import UserError, reason

FORM = "my_file.py:name or module:name"


class UserCodeError(UserError):
    """A fault in the user's own code, or that it is not there: one line with file and line number."""


def place_of(spec: str) -> tuple[str, list[str]]:
    """(file or module, names in it) of `file.py:name`, `module:name` or `file.py:name+other`."""
    place, _, names = spec.rpartition(":")
    return place, [name.strip() for name in names.split("+")]


def absolute(spec: str) -> str:
    """The same with the whole path of its file, which other processes find wherever they work."""
    place, _, names = spec.rpartition(":")
    return f"{Path(os.path.expanduser(place)).absolute()}:{names}" if place.endswith(".py") else spec


def source_file(spec: str) -> Path | None:
    """The file that the code stands in; None where there is none, or `spec` is of another form."""
    place, names = place_of(spec)
    if not all(name.isidentifier() for name in names) or not place:
        return None
    if place.endswith(".py"):
        return Path(place) if Path(place).is_file() else None
    try:
        found = importlib.util.find_spec(place)
    except (ImportError, ValueError, AttributeError):
        return None
    return None if found is None or not found.has_location or found.origin is None else Path(found.origin)


def load(spec: str, option: str) -> list[Any]:
    """What `spec` names.

    Raises:
        UserCodeError: no such file, module or name, or an error while it ran; one line that names `option`.
    """
    place, names = place_of(spec)
    if not place or not all(name.isidentifier() for name in names):
        raise UserCodeError(f"{option}: {spec!r} is not of the form {FORM}")
    module = _from_file(Path(place), option) if place.endswith(".py") else _imported(place, option)
    for name in names:
        if not hasattr(module, name):
            there = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
            listed = f"; it has {', '.join(there[:8])}" if there else ""
            raise UserCodeError(f"{option}: {place} has no {name}{listed}")
    return [getattr(module, name) for name in names]


def where_it_failed(error: BaseException, spec: str, option: str) -> UserCodeError:
    """The line for an error that the user's code raised: the file, and its line nearest to the fault."""
    file = source_file(spec)
    own = str(file.absolute()) if file else place_of(spec)[0]
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    if isinstance(error, SyntaxError) and error.filename == own:
        lines = [error.lineno]
    line = f", line {lines[-1]}" if lines else ""
    return UserCodeError(f"{option}: {own}{line}: {type(error).__name__}: {reason(error)}")


def passed_through(error: BaseException, spec: str) -> bool:
    """Whether the user's code was at work when the error was raised."""
    file = source_file(spec)
    frames = traceback.extract_tb(error.__traceback__)
    return file is not None and any(frame.filename == str(file.absolute()) for frame in frames)


def _from_file(file: Path, option: str) -> types.ModuleType:
    file = file.absolute()
    try:
        source = file.read_bytes()
    except OSError as error:
        raise UserCodeError(f"{option}: {file} cannot be read ({reason(error)}); give {FORM}") from None
    key = hashlib.sha256(str(file).encode() + b"\0" + source).hexdigest()[:12]
    name = f"rlhf_user_code_{key}_{file.stem if file.stem.isidentifier() else ''}"
    if name in sys.modules:
        return sys.modules[name]
    module = types.ModuleType(name)
    module.__file__ = str(file)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # behind everything, which it cannot hide
    sys.modules[name] = module  # dataclasses look their module up
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise where_it_failed(error, f"{file}:x", option) from error
    except SystemExit as error:
        del sys.modules[name]
        raise UserCodeError(
            f"{option}: {file} ends the program as it is imported; keep that behind __main__"
        ) from error
    return module


def _imported(name: str, option: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise UserCodeError(f"{option}: there is no module {name}; a file is given as {name}.py:...") from None
        raise where_it_failed(error, f"{name}:x", option) from error
