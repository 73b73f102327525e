"""`--judge reward_model`: scores by a sequence classifier of transformers with a single logit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from analysis.winrate.errors import WinrateError
from analysis.winrate.scores import Score
from analysis.winrate.sources import Answer
from rlhf.errors import reason
from rlhf.terminal import complain
from rlhf.text import encode_judged


def reward_model_scores(path: str, *, trust_remote_code: bool = False) -> Score:
    """The model at a folder or hub name as a score of (prompt, answer); each text is scored once.

    The text is prompt, response and, unless the row says `"ended": false`, the EOS, as reward models of this project
    read it; BOS and EOS stand once, also where prompt and response spell them out. One text at a time: no padding, so
    nothing hangs on which token a model takes for padding. A text longer than the model can read loses the start of its
    prompt.

    Args:
        trust_remote_code: run Python code that the model brings.

    Raises:
        WinrateError: nothing there that can be loaded, weights missing, a head of several logits, or code of the
            model's own that is not to be run.
    """
    tokenizer, model = _load(path, trust_remote_code)
    longest = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    known: dict[tuple[str, str, bool], float] = {}

    def score(prompt: str, answer: Answer) -> float:
        ended = answer.row.get("ended") is not False
        place = (prompt, answer.response, ended)
        if place not in known:
            tokens = encode_judged(tokenizer, prompt, answer.response, longest, ended=ended)
            known[place] = _logit(tokenizer, model, tokens)
        return known[place]

    return score


def _load(path: str, trust_remote_code: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if _is_path(path) and not Path(path).is_dir():
        raise WinrateError(f"--reward-path {path}: no such folder; give one that holds a reward model")
    if trust_remote_code:
        complain(f"warning: --trust-remote-code: Python code that {path} may bring runs with your rights")
    own_code = {"trust_remote_code": trust_remote_code}  # said either way, or transformers asks
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **own_code)
        model, loading = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True, **own_code)
    except Exception as error:  # whatever transformers and safetensors raise on what they cannot load
        code = "trust_remote_code" in str(error) and not trust_remote_code
        remedy = "; it brings Python code of its own, which --trust-remote-code runs with your rights" if code else ""
        raise WinrateError(f"--reward-path: cannot load {path} ({reason(error)}){remedy}") from error
    if loading["missing_keys"]:
        names = ", ".join(sorted(loading["missing_keys"]))
        raise WinrateError(f"--reward-path {path}: lacks the weights {names}; give a reward model, not a policy")
    if model.config.num_labels != 1:
        raise WinrateError(
            f"--reward-path {path}: gives {model.config.num_labels} logits; give a model with a single one"
        )
    return tokenizer, model.eval().requires_grad_(False)


def _is_path(name: str) -> bool:
    """A hub name is a word, or two around one slash."""
    return name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1


def _logit(tokenizer: Any, model: Any, tokens: list[int]) -> float:
    batch = tokenizer.pad({"input_ids": [tokens]}, return_tensors="pt")
    return float(model(**batch).logits[0, 0])
