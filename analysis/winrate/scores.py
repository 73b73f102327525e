"""Judges that give each response a number of its own: higher wins, equal ties. Neither order nor reference counts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from analysis.errors import WinrateError
from analysis.winrate.matching import Comparison, Models, Row
from analysis.winrate.prompt import Asked, Verdict
from analysis.winrate.results import Judgement
from rlhf.errors import reason
from rlhf.terminal import complain
from rlhf.text import encode_judged

Score = Callable[[str, Row], float]
"""(prompt, row of the response) -> score; NaN where there is none."""


def judge_by_score(comparisons: Sequence[Comparison], score: Score) -> list[Judgement]:
    """A comparison of which a score is not a number counts as unparsed."""
    judgements = []
    for one in comparisons:
        a, b = score(one.prompt, one.row_a), score(one.prompt, one.row_b)
        verdicts: tuple[Verdict | None, Verdict | None] = (
            ("A", "B") if a > b else ("B", "A") if a < b else ("TIE", "TIE")
        )
        if math.isnan(a) or math.isnan(b):
            verdicts = None, None
        judgements.append(Judgement(one, *map(Asked, verdicts)))
    return judgements


def stored_scores(models: Models, field: str) -> Score:
    """The numbers in `field` of the sources' rows.

    Raises:
        WinrateError: a source has no row with that field; the message names those that it has.
    """
    for source in (source for sources in models.values() for source in sources):
        rows = list(source.answers.values())
        if not any(field in row for row in rows):
            numbers = ", ".join(name for name, value in rows[0].items() if isinstance(value, float)) or "no scores"
            raise WinrateError(f"--judge scores:{field}: {source.path} has no field {field!r}; it has {numbers}")

    def score(_: str, row: Row) -> float:
        value = row.get(field)
        return float(value) if isinstance(value, int | float) else math.nan  # JSON's null stands for NaN

    return score


def reward_model_scores(path: str, *, trust_remote_code: bool = False) -> Score:
    """The sequence classifier of transformers with a single logit at a folder or hub name; each text is scored once.

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

    def score(prompt: str, row: Row) -> float:
        text = (prompt, row["response"], row.get("ended") is not False)
        if text not in known:
            tokens = encode_judged(tokenizer, *text[:2], longest, ended=text[2])
            batch = tokenizer.pad({"input_ids": [tokens]}, return_tensors="pt")
            known[text] = float(model(**batch).logits[0, 0])
        return known[text]

    return score


def _load(path: str, trust_remote_code: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    # A hub name is a word, or two around one slash.
    is_path = path.startswith(("/", ".", "~")) or path.endswith("/") or path.count("/") > 1
    if is_path and not Path(path).is_dir():
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
    if missing := ", ".join(sorted(loading["missing_keys"])):
        raise WinrateError(f"--reward-path {path}: lacks the weights {missing}; give a reward model, not a policy")
    if (labels := model.config.num_labels) != 1:
        raise WinrateError(f"--reward-path {path}: gives {labels} logits; give a model with a single one")
    return tokenizer, model.eval().requires_grad_(False)
