"""`--judge reward_model`: scores by a sequence classifier of transformers with a single logit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.winrate.errors import WinrateError
from analysis.winrate.scores import Score
from analysis.winrate.sources import Answer


def reward_model_scores(path: str, *, trust_remote_code: bool = False) -> Score:
    """The model at a folder or hub name as a score of (prompt, answer); each text is scored once.

    The text is prompt, response and, unless the row says `"ended": false`, the EOS, as reward models of this project
    read it. One text at a time: no padding, so nothing hangs on which token a model takes for padding. A text longer
    than the model can read loses the start of its prompt.

    Args:
        trust_remote_code: run Python code that the model brings.

    Raises:
        WinrateError: nothing there that can be loaded, weights missing, a head of several logits, or code of the
            model's own that is not to be run.
    """
    tokenizer, model = _load(path, trust_remote_code)
    longest = getattr(model.config, "max_position_embeddings", None)
    known: dict[tuple[str, str, bool], float] = {}

    def score(prompt: str, answer: Answer) -> float:
        ended = answer.row.get("ended") is not False
        place = (prompt, answer.response, ended)
        if place not in known:
            tokens = [
                *tokenizer(prompt)["input_ids"],
                *tokenizer(answer.response, add_special_tokens=False)["input_ids"],
            ]
            if ended and tokenizer.eos_token_id is not None:
                tokens.append(tokenizer.eos_token_id)
            known[place] = _logit(tokenizer, model, tokens[-longest:] if longest else tokens)
        return known[place]

    return score


def _load(path: str, trust_remote_code: bool) -> tuple[Any, Any]:
    from rlhf.models.adapters import adapter_at
    from rlhf.models.classifier import load_classifier
    from rlhf.models.errors import ModelError
    from rlhf.models.own_code import OwnCode
    from rlhf.models.tokenizers import tokenizer_at, tokenizer_place

    if _is_path(path) and not Path(path).is_dir():
        raise WinrateError(f"--reward-path {path}: no such folder; give one that holds a reward model")
    own_code = OwnCode(trust_remote_code, "--trust-remote-code")
    try:
        model = load_classifier(path, own_code=own_code, option="--reward-path")
        place = tokenizer_place(path, adapter_at(path, "--reward-path"))
        return tokenizer_at(place, own_code, "--reward-path"), model
    except ModelError as error:
        raise WinrateError(str(error)) from error


def _is_path(name: str) -> bool:
    """A hub name is a word, or two around one slash."""
    return name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1


def _logit(tokenizer: Any, model: Any, tokens: list[int]) -> float:
    batch = tokenizer.pad({"input_ids": [tokens]}, return_tensors="pt")
    return float(model(**batch).logits[0, 0])
