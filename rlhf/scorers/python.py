"""reward=python: a function of the user's own, in one process with the run.

It has the signature of TRL's reward functions:

    def score(prompts, completions, **columns) -> list[float]

All are lists, one entry for each response. A response is as the policy wrote it, its leading blank included and without
EOS and stop string; what else the rows of the data have comes by column. The same texts must get the same scores, or
runs cannot be repeated. One call has `reward.timeout_seconds`; an error, a wrong number of scores, or one that is no
finite number, ends the run in one line that names the row. To find it the function is asked once more, row by row.
"""

from __future__ import annotations

import inspect
import math
import numbers
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.config import RunConfig
from rlhf.config.user_code import UserCodeError, load, place_of, where_it_failed
from rlhf.data.examples import NO_COLUMNS, Columns, TextData
from rlhf.errors import printable
from rlhf.waiting import LateError, within

OPTION = "reward.path"
FLOAT32_MAX = torch.finfo(torch.float32).max
SHOWN = 60
"""Letters of a prompt or response in a line."""

Function = Callable[..., Any]


@dataclass(frozen=True)
class _Rows:
    prompts: list[str]
    answers: list[str]
    columns: Columns

    def only(self, number: int) -> _Rows:
        at = slice(number, number + 1)
        return _Rows(self.prompts[at], self.answers[at], {name: entries[at] for name, entries in self.columns.items()})


@dataclass(frozen=True)
class PythonScorer:
    """The weighted sum of some functions' scores."""

    spec: str
    functions: Sequence[Function]
    weights: Sequence[float]
    timeout_seconds: float

    def score(self, prompts: Sequence[str], answers: Sequence[str], columns: Columns = NO_COLUMNS) -> Tensor:
        """(B,) float32 on the CPU.

        Raises:
            UserCodeError: what the function did wrong.
        """
        texts = [str(prompt) for prompt in prompts], [str(answer) for answer in answers]
        place, names = place_of(self.spec)
        total = torch.zeros(len(prompts), dtype=torch.float64)
        for name, function, weight in zip(names, self.functions, self.weights, strict=True):
            scores = self._scores(f"{place}:{name}", function, _Rows(*texts, columns))
            total += weight * torch.tensor(scores, dtype=torch.float64)
        return total.float()

    def _scores(self, spec: str, function: Function, rows: _Rows) -> list[float]:
        count = len(rows.answers)
        try:
            return self._asked(spec, function, rows, time.monotonic() + self.timeout_seconds)
        except UserCodeError as error:
            failure = error
        deadline = time.monotonic() + self.timeout_seconds
        for number in range(count):
            row = rows.only(number)
            try:
                self._asked(spec, function, row, deadline)
            except UserCodeError as error:
                if type(error.__cause__) is type(failure.__cause__):  # it alone fails in the same way
                    shown = f"prompt {_beginning(row.prompts[0])}, response {_beginning(row.answers[0])}"
                    line = f"{failure} (row {number + 1} of {count}: {shown})"
                    raise UserCodeError(line) from failure.__cause__
        raise UserCodeError(f"{failure} (in a call with {count} responses, none of which does it alone)")

    def _asked(self, spec: str, function: Function, rows: _Rows, deadline: float) -> list[float]:
        # Lists of its own: what the function changes in them changes nothing here.
        named = {column: list(entries) for column, entries in rows.columns.items()}
        try:
            with within(max(deadline - time.monotonic(), 0.001)):
                scores = function(prompts=list(rows.prompts), completions=list(rows.answers), **named)
        except LateError:
            line = f"gave no scores within reward.timeout_seconds={self.timeout_seconds:g}"
            raise UserCodeError(f"{OPTION}: {spec} {line}; make it faster, or give it longer") from None
        except Exception as error:
            raise where_it_failed(error, spec, OPTION) from error
        return _checked(scores, len(rows.answers), f"{OPTION}: {spec}")


def _checked(scores: Any, count: int, who: str) -> list[float]:
    if hasattr(scores, "tolist"):  # an array or a tensor
        scores = scores.tolist()
    if not isinstance(scores, Sequence) or isinstance(scores, str):
        raise UserCodeError(f"{who} returned {type(scores).__name__}, not a list of {count} numbers")
    if len(scores) != count:
        raise UserCodeError(f"{who} returned {len(scores)} scores for {count} responses")
    return [_number(score, who) for score in scores]


def _number(score: Any, who: str) -> float:
    if hasattr(score, "item"):  # numpy's and torch's numbers
        score = score.item()
    if not isinstance(score, numbers.Real):
        raise UserCodeError(f"{who} gave the score {printable(repr(score))[:SHOWN]}, which is no number")
    value = float(score)
    if not math.isfinite(value) or abs(value) > FLOAT32_MAX:
        raise UserCodeError(f"{who} gave the score {value}, which is not finite")
    return value


def _beginning(text: str) -> str:
    shown = printable(text)
    return repr(shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}...")


def load_python(config: RunConfig, _trained: Path | None, _device: torch.device, data: TextData) -> PythonScorer:
    reward = config.reward
    assert reward.path is not None, "checked in rlhf.config.check"
    functions = load(reward.path, OPTION)
    for name, function in zip(place_of(reward.path)[1], functions, strict=True):
        _check_columns(f"{reward.path.rpartition(':')[0]}:{name}", function, data)
    weights = reward.weights or [1.0] * len(functions)
    return PythonScorer(reward.path, functions, weights, reward.timeout_seconds)


def _check_columns(spec: str, function: Function, data: TextData) -> None:
    """Refuse, before anything is sampled, a function that asks for a column that the data does not have."""
    example = next((examples[0] for examples in (data.eval_prompts, data.prompts, data.pairs) if len(examples)), None)
    there = dict.fromkeys(() if example is None else example.columns, None)
    try:
        inspect.signature(function).bind(prompts=[], completions=[], **there)
    except TypeError as error:
        columns = f"the data has {', '.join(there) or 'none'}" if there else "the data has no others"
        remedy = f"columns: {columns}; let it take **columns, or leave out what is not there"
        raise UserCodeError(
            f"{OPTION}: {spec} cannot be called with prompts, completions and {remedy} ({error})"
        ) from None
    except ValueError:  # written in C: no signature to look at
        return
