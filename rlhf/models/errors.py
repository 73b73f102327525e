"""Errors of loading a model, in one line each: what failed, why, and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from rlhf.errors import UserError, reason


class ModelError(UserError, ValueError):
    """A model that cannot be loaded; the message is one line that names the option and what to do."""


@contextlib.contextmanager
def loading(option: str, path: str | Path, what: str = "") -> Iterator[None]:
    """Turn whatever safetensors, peft, the hub client or transformers raise into one line.

    Args:
        option: what named the model, as "model.path".
        path: the folder or hub name that is loaded.
        what: of the model, where it is a part; as "the tokenizer at ".

    Raises:
        ModelError: the body raised anything.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{option}: cannot load {what}{path} ({reason(error)}); {remedy(error, path)}") from error


def named(names: Collection[str]) -> str:
    """A few names of many, in order."""
    few = ", ".join(sorted(names)[:5])
    return few if len(names) <= 5 else f"{few} and {len(names) - 5} more"


def remedy(error: BaseException, path: str | Path) -> str:
    """What to do about a folder or hub name that could not be loaded."""
    if Path(path).is_dir():
        return "see that the folder is whole, or give another"
    causes = list(_causes(error))
    refused = any(isinstance(cause, HfHubHTTPError) and _status(cause) in (401, 403) for cause in causes)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"ask for access at https://huggingface.co/{path}, then set HF_TOKEN or type hf auth login"
    if refused or any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return "give a folder or a hub name as owner/name; what is private needs HF_TOKEN, or hf auth login"
    return "give a folder, or a hub name that can be reached"


def _status(error: HfHubHTTPError) -> int | None:
    return getattr(error.response, "status_code", None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
