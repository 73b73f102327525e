"""Files that are whole or not there, and errors that name them. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlhf.errors import FileError, printable

_REMEDIES = {
    errno.ENOSPC: "free space there and type the command again",
    errno.EDQUOT: "free some of your quota there and type the command again",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f) and type the command again",
    errno.EACCES: "see that you may use it and type the command again",
    errno.EPERM: "see that you may use it and type the command again",
    errno.EROFS: "it is read-only; give another folder",
    errno.ENOLCK: "this file system has no locks; give a folder on another one",
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
}


@contextlib.contextmanager
def file_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError of the body into a FileError that says which file, what to do, and what it was `doing`, as
    "write the checkpoint"."""
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or _errno(error):
            raise file_error(error, path, doing) from error
        raise


def file_error(error: Exception, path: Path, doing: str) -> FileError:
    """What `file_errors` raises in place of `error`, which is an OSError or a library's word for one."""
    number = _errno(error)
    why = os.strerror(number) if number else printable(str(error)) or type(error).__name__
    problem = FileError(f"{path}: cannot {doing} ({why}); {remedy_for(error)}")
    problem.errno = number
    return problem


def remedy_for(error: Exception) -> str:
    """What to do about an error of the operating system, as "free space there and type the command again"."""
    return _REMEDIES.get(_errno(error) or 0, "type the command again")


def _errno(error: Exception) -> int | None:
    """The system's number of an error; libraries written in Rust, as safetensors, put its words into their text."""
    if isinstance(error, OSError):
        return error.errno
    return next((number for number in _REMEDIES if os.strerror(number) in str(error)), None)


def write_whole(path: Path, content: str | bytes | Callable[[Path], None], *, mode: int | None = None) -> None:
    """Write a file under a temporary name, flush it to disk, and rename it.

    Whoever reads `path`, and a process that is killed here, sees the file before or after, never a part.

    Args:
        content: what the file holds, or a function that writes it to the path that it is given.
        mode: the file's permissions, as 0o600; None: as the umask says.

    Raises:
        FileError: the disk is full, or the folder cannot be written; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with file_errors(path, "write it"):
        try:
            if callable(content):
                content(temporary)
            else:
                data = content.encode() if isinstance(content, str) else content
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
                with open(descriptor, "wb") as file:
                    file.write(data)
            flush_to_disk(temporary)
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_folder(folder: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary folder, flush it to disk, and give it its name; what had that name is deleted.

    Raises:
        FileError: the disk is full, or the folder cannot be written.
    """
    for left_over in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a process that was killed here
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with file_errors(folder, "write it"):
            temporary.mkdir(parents=True)
            write(temporary)
            for path in (*temporary.rglob("*"), temporary):
                flush_to_disk(path)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.replace(folder)
            flush_to_disk(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def read_json_object(path: Path) -> dict[str, Any] | None:
    """The object that a JSON file holds; None where there is no file.

    Raises:
        FileError: it cannot be read, or holds no JSON object.
    """
    with file_errors(path, "read it"):
        try:
            value = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, RecursionError) as error:
            raise FileError(f"{path}: holds no readable JSON; delete it, or put back what was there") from error
    if not isinstance(value, dict):
        raise FileError(f"{path}: holds no JSON object; delete it, or put back what was there")
    return value


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line; none where there is no file.

    Raises:
        FileError: it cannot be read, or a line holds no JSON object.
    """
    with file_errors(path, "read it"):
        content = path.read_bytes() if path.exists() else b""
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise FileError(f"{path}: line {number} holds no JSON object; overwrite=true starts the run afresh")
        rows.append(row)
    return rows


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
