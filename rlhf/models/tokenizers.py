"""Where a model's tokenizer lies, and reading it."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf.errors import reason
from rlhf.models.adapters import Adapter
from rlhf.models.errors import ModelError, remedy
from rlhf.models.own_code import NOT_RUN, OwnCode


def tokenizer_place(path: str | Path, adapter: Adapter | None) -> str | Path:
    """Folder or hub name of the tokenizer of a model: an adapter's own, where one was saved with it, or its base's."""
    if adapter is None:
        return path
    return adapter.folder if adapter.has_tokenizer else adapter.base


def tokenizer_at(path: str | Path, own_code: OwnCode = NOT_RUN, option: str = "model.path") -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or hub repository, as it was saved.

    Args:
        option: what named it, for errors.

    Raises:
        ModelError: none there, damaged, or code of its own that is not allowed.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=own_code.allowed)
        why = "" if tokenizer.vocab_size else "its files are not there"  # transformers makes an empty one of none
        to_do = ""
    except Exception as error:  # whatever the hub client, tokenizers or transformers raise
        own_code.check_tokenizer(path, option)
        why, to_do = reason(error), remedy(error, path)
    if why and (not to_do or Path(path).is_dir()):
        named = {"model.path": "model.tokenizer", "reward.tokenizer": "reward.tokenizer"}.get(option)
        to_do = f"set {named} to the folder or hub name of one" if named else "save one with the model"
    if why:
        raise ModelError(f"{option}: no tokenizer at {path} ({why}); {to_do}")
    return tokenizer
