"""`python -m analysis kl-check logprobs.jsonl`: is the KL that another trainer reports what it says?

A line is a response: `logprobs` and `reference_logprobs`, natural logs of the sampled tokens' probabilities under the
policy that sampled them and under the reference policy; and where they are known `mask` (1 on the response's tokens),
`sampler_logprobs` (what the sampler said) and `kl` (what the trainer reported for this response). Every estimate is
worked out from the logprobs, in nats, and compared with what was reported:

| name | estimate, with d = log pi - log pi_ref at each token |
| --- | --- |
| k1 | sum d |
| k2 | sum d^2 / 2 |
| k3 | sum (exp(-d) - 1 + d) |
| k3 with the policies swapped | sum (exp(d) - 1 - d) |
| absolute value of k1 | sum abs(d) |

each also with its sign turned, per token, over prompt and response together, and with a mask shifted by a token.
Schulman 2020, joschu.net/blog/kl-approx.html. Where `kl` is the same on every line it is that of all of them together.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.errors import AnalysisError
from analysis.run_files import json_lines
from rlhf.terminal import say

CLOSE = 1e-3
"""Of the spread of reported values: an estimate that is nearer than this is the one that was reported."""
SIGMAS = 4.0
CLOSE_OF_ALL = 1e-4
"""The same of one number for all responses, which more estimates come near by chance."""
_FEWEST = 8
_LABELS = {True: "WRONG", False: "right", None: "not checked"}
_BOTH_LENGTHS = "nats a token, divided by the tokens of prompt and response"
_COLUMNS = ("logprobs", "reference_logprobs", "sampler_logprobs", "mask")


def _k3(d: np.ndarray) -> np.ndarray:
    return np.expm1(-d) + d


ESTIMATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "k1": lambda d: d,
    "k2": lambda d: d**2 / 2.0,
    "k3": _k3,
    "k3 with the two policies swapped (its mean is a chi-square less the KL)": lambda d: _k3(-d),
    "the absolute value of k1, which estimates no KL,": np.abs,
}
"""Per token. The first three estimate the KL, or in k2's case nearly."""
RIGHT = ("k1", "k2", "k3")
REGIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda mask: mask,
    "over prompt and response: the mask counts prompts": np.ones_like,
    "one token too early: the mask is shifted": lambda mask: np.append(mask[1:], False),
    "one token too late: the mask is shifted": lambda mask: np.append(False, mask[:-1]),
}
"""Tokens that may have been counted, from the mask of the response; the first are right."""


@dataclass(frozen=True)
class Response:
    """One line of the file; all arrays are (T,), the prompt's tokens included where the file has them."""

    logprobs: np.ndarray
    reference_logprobs: np.ndarray
    mask: np.ndarray  # True on the response's tokens
    sampler_logprobs: np.ndarray | None
    kl: float | None  # reported, in whatever unit


@dataclass(frozen=True)
class Finding:
    wrong: bool | None  # None: could not be checked
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m analysis kl-check`."""
    parser.add_argument("file", type=Path, help="JSON lines, one response each: logprobs, reference_logprobs and more")
    parser.add_argument("--kl-key", default="kl", help="the key of the KL that the trainer reported")


def run(options: argparse.Namespace) -> int:
    """Print what is found; 1 where something is wrong, 0 otherwise.

    Raises:
        AnalysisError: the file is no JSON lines, or a line is not as it should be.
    """
    responses = read_responses(options.file, options.kl_key)
    findings = check(responses)
    say(f"{options.file}: {len(responses)} responses, {int(sum(one.mask.sum() for one in responses)):,} tokens")
    for finding in findings:
        say(f"{_LABELS[finding.wrong]}: {finding.text}")
    return int(any(finding.wrong for finding in findings))


def read_responses(file: Path, kl_key: str = "kl") -> list[Response]:
    """The file's responses, in order.

    Raises:
        AnalysisError: there is none, or a line lacks what is needed; it names file and line.
    """
    if not file.is_file():
        raise AnalysisError(f"{file}: no such file; give JSON lines with logprobs and reference_logprobs")
    rows, bad_lines = json_lines(file)
    if bad_lines:
        raise AnalysisError(f"{file}:{bad_lines[0]}: no JSON object; give one a line, each a response")
    responses = [_response(f"{file}:{number}", row, kl_key) for number, row in enumerate(rows, 1)]
    if len(responses) < _FEWEST:
        raise AnalysisError(f"{file}: {len(responses)} responses say too little; give at least {_FEWEST}")
    if kl_key != "kl" and all(one.kl is None for one in responses):
        raise AnalysisError(f"{file}: no line has {kl_key} (--kl-key); the first has {', '.join(rows[0])}")
    return responses


def _response(place: str, row: Mapping[str, Any], kl_key: str) -> Response:
    arrays = {}
    for name in _COLUMNS:
        if name not in row:
            continue
        try:
            arrays[name] = np.array(row[name], dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise AnalysisError(f"{place}: {name} is no list of numbers") from None
        if arrays[name].ndim != 1 or not len(arrays[name]) or not np.isfinite(arrays[name]).all():
            raise AnalysisError(f"{place}: {name} is no list of finite numbers")
    if missing := [name for name in _COLUMNS[:2] if name not in arrays]:
        raise AnalysisError(f"{place}: has no {missing[0]}; it has {', '.join(row) or 'nothing'}")
    if len({len(values) for values in arrays.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in arrays.items())
        raise AnalysisError(f"{place}: lists of different lengths ({lengths})")
    if any((arrays[name] > 1e-4).any() for name in _COLUMNS[:3] if name in arrays):
        raise AnalysisError(f"{place}: a logprob above 0; give natural logs of probabilities")
    mask = arrays.get("mask", np.ones(len(arrays["logprobs"]))) > 0.5
    if not mask.any():
        raise AnalysisError(f"{place}: the mask has no token of the response")
    kl = row.get(kl_key)
    if kl is not None and (isinstance(kl, bool) or not isinstance(kl, int | float) or not abs(kl) < np.inf):
        raise AnalysisError(f"{place}: {kl_key} is no finite number")
    return Response(arrays["logprobs"], arrays["reference_logprobs"], mask, arrays.get("sampler_logprobs"), kl)


def check(responses: Sequence[Response]) -> list[Finding]:
    """What can be told, in the order in which one would look."""
    with np.errstate(over="ignore", invalid="ignore"):
        return [*_direction(responses), *_sampler(responses), *_reported(responses)]


def _direction(responses: Sequence[Response]) -> Iterator[Finding]:
    """On the policy's samples the mean of k1 is the KL, at least 0, and that of exp(-d) is 1 at every token."""
    sums = np.array([_d(one)[one.mask].sum() for one in responses])
    mean, error = float(sums.mean()), float(sums.std(ddof=1) / np.sqrt(len(sums)))
    if mean < -SIGMAS * error and mean < -1e-6:
        yield Finding(
            True,
            f"log pi - log pi_ref is {mean:.4g} nats a response on average (standard error {error:.2g}), below 0, "
            "which no KL is: logprobs and reference_logprobs are swapped, or the policy did not sample these responses",
        )
        return
    yield Finding(False, f"KL by k1: {mean:.4g} nats a response, standard error {error:.2g}")
    off, ratio_error = _off([np.exp(-_d(one)[one.mask]) for one in responses])
    if not _told_from_0(off, ratio_error):
        return
    halves = [np.array_split(np.exp(-_d(one)[one.mask]), 2) for one in responses]
    (first, first_error), (second, second_error) = (_off(half) for half in zip(*halves, strict=True))
    differ = _told_from_0(first - second, float(np.hypot(first_error, second_error)))
    if differ and not _told_from_0(second, second_error):
        why = "but it is in the second half of the tokens: the mask counts prompts, whose tokens no policy drew"
    else:
        why = (
            "the logprobs are not of the distribution that the tokens were drawn from, or are renormalised by top-p or "
            "top-k and the reference's are not; look for these, another temperature, stale weights, or a mask that "
            "counts prompts"
        )
    yield Finding(
        True,
        f"the mean of pi_ref / pi over tokens is {1.0 + off:.4g}, not 1 (standard error {ratio_error:.2g}): {why}",
    )


def _off(ratios: Sequence[np.ndarray]) -> tuple[float, float]:
    """By how much the mean of all is off 1, and its standard error."""
    pooled = np.concatenate(ratios)
    return float(pooled.mean() - 1.0), float(pooled.std(ddof=1) / np.sqrt(len(pooled)))


def _told_from_0(value: float, error: float) -> bool:
    return abs(value) > max(1e-3, SIGMAS * error)


def _sampler(responses: Sequence[Response]) -> Iterator[Finding]:
    pairs = [(one.sampler_logprobs, one) for one in responses if one.sampler_logprobs is not None]
    if not pairs:
        yield Finding(None, "without sampler_logprobs a temperature or top-k of the sampler can go unseen")
        return
    gaps = np.concatenate([(sampler - one.logprobs)[one.mask] for sampler, one in pairs])
    typical = float(np.abs(gaps).mean())
    if typical < 1e-2:
        yield Finding(False, f"sampler and trainer agree: logprobs differ by {typical:.2g} nats a token")
        return
    why = "to both sides: another temperature, precision or weights"
    for higher, lower, sign in (("sampler", "trainer", 1.0), ("trainer", "sampler", -1.0)):
        if float((sign * gaps > -1e-3).mean()) > 0.99:
            why = (
                f"the {higher}'s nearly always the higher ones: they are renormalised by top-p, top-k or min-p, and "
                f"the {lower}'s are not"
            )
    yield Finding(True, f"logprobs of sampler and trainer differ by {typical:.3g} nats a token, {why}")


def _reported(responses: Sequence[Response]) -> Iterator[Finding]:
    known = [one for one in responses if one.kl is not None]
    if not known:
        yield Finding(None, "no line has the KL that the trainer reported (kl, or what --kl-key names)")
        return
    reported = np.array([one.kl for one in known], dtype=np.float64)
    if np.ptp(reported) == 0.0:  # of the whole batch
        reported, close = reported[:1], CLOSE_OF_ALL
    else:
        close = CLOSE
    scale = max(float(np.abs(reported).mean()), 1e-12)
    for sign, (region, counted), (name, estimate) in itertools.product((1, -1), REGIONS.items(), ESTIMATES.items()):
        values = [sign * estimate(_d(one)) for one in known]
        masks = [counted(one.mask) for one in known]
        for unit, found in _in_units(values, masks, len(reported) == 1):
            if float(np.abs(found - reported).mean()) < close * scale:
                wrong = [region] * bool(region) + ["with its sign turned"] * (sign < 0)
                said = " ".join([f"what is reported is {name} in {unit}", *wrong])
                yield Finding(bool(wrong) or name not in RIGHT or unit == _BOTH_LENGTHS, said)
                return
    estimates = ", ".join(
        f"{name} {np.mean([ESTIMATES[name](_d(one))[one.mask].sum() for one in known]):.4g}" for name in RIGHT
    )
    yield Finding(
        True,
        f"what is reported ({reported.mean():.4g} on average) is none of the known estimates of these logprobs "
        f"({estimates} nats a response): clamped, of other logprobs or another mask, or of another temperature",
    )


def _in_units(
    values: Sequence[np.ndarray], masks: Sequence[np.ndarray], of_all: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """(responses,) in every unit; the mean over responses alone where it is of all together."""
    sums, tokens, lengths = (
        np.array(each, dtype=np.float64)
        for each in (
            [value[mask].sum() for value, mask in zip(values, masks, strict=True)],
            [max(int(mask.sum()), 1) for mask in masks],
            [len(mask) for mask in masks],
        )
    )
    found = {
        "nats a response": sums,
        "nats a token": sums / tokens,
        "bits a response": sums / np.log(2.0),
        "bits a token": sums / tokens / np.log(2.0),
        _BOTH_LENGTHS: sums / lengths,
    }
    for unit, each in found.items():
        yield unit, each.mean(keepdims=True) if of_all else each
    if of_all:
        yield "nats a token of all responses together", np.array([sums.sum() / tokens.sum()])


def _d(one: Response) -> np.ndarray:
    return one.logprobs - one.reference_logprobs
