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
| k1 with its sign turned | -sum d |
| k3 with the policies swapped | sum (exp(d) - 1 - d) |

each also as a mean per token, and over prompt and response together. Schulman 2020, joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.errors import AnalysisError
from rlhf.files import read_json_lines
from rlhf.terminal import say

CLOSE = 1e-3
"""Of the spread of reported values: an estimate that is nearer than this is the one that was reported."""
SIGMAS = 4.0
_FEWEST = 8
_COLUMNS = ("logprobs", "reference_logprobs", "sampler_logprobs", "mask")


def _k1(d: np.ndarray) -> np.ndarray:
    return d


def _k2(d: np.ndarray) -> np.ndarray:
    return d**2 / 2.0


def _k3(d: np.ndarray) -> np.ndarray:
    return np.expm1(-d) + d


ESTIMATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "k1": _k1,
    "k2": _k2,
    "k3": _k3,
    "k1 with its sign turned": lambda d: -d,
    "k3 with the two policies swapped: on the policy's samples its mean is a chi-square less the KL": lambda d: _k3(-d),
}
"""Per token. The first three estimate the KL, or in k2's case nearly."""
RIGHT = ("k1", "k2", "k3")


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
    wrong: bool
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m analysis kl-check`."""
    parser.add_argument("file", type=Path, help="JSON lines, one response each: logprobs, reference_logprobs and more")
    parser.add_argument("--kl-key", default="kl", help="the key of the KL that the trainer reported")


def run(options: argparse.Namespace) -> int:
    """Print what is found; 1 where something is wrong, 0 otherwise.

    Raises:
        AnalysisError: the file cannot be read, or a line is not as it should be.
        rlhf.errors.FileError: it is no JSON lines.
    """
    responses = read_responses(options.file, options.kl_key)
    findings = check(responses)
    say(f"{options.file}: {len(responses)} responses, {int(sum(one.mask.sum() for one in responses)):,} tokens")
    for finding in findings:
        say(f"{'WRONG' if finding.wrong else 'right'}: {finding.text}")
    return int(any(finding.wrong for finding in findings))


def read_responses(file: Path, kl_key: str = "kl") -> list[Response]:
    """The file's responses, in order.

    Raises:
        AnalysisError: there is none, or a line lacks what is needed; it names file and line.
    """
    if not file.is_file():
        raise AnalysisError(f"{file}: no such file; give JSON lines with logprobs and reference_logprobs")
    responses = [_response(f"{file}:{number}", row, kl_key) for number, row in enumerate(read_json_lines(file), 1)]
    if len(responses) < _FEWEST:
        raise AnalysisError(f"{file}: {len(responses)} responses say too little; give at least {_FEWEST}")
    return responses


def _response(place: str, row: Mapping[str, Any], kl_key: str) -> Response:
    arrays = {}
    for name in _COLUMNS:
        if name not in row:
            continue
        try:
            arrays[name] = np.array(row[name], dtype=np.float64)
        except (TypeError, ValueError):
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
    if kl is not None and (isinstance(kl, bool) or not isinstance(kl, int | float) or not np.isfinite(kl)):
        raise AnalysisError(f"{place}: {kl_key} is no finite number")
    return Response(arrays["logprobs"], arrays["reference_logprobs"], mask, arrays.get("sampler_logprobs"), kl)


def check(responses: Sequence[Response]) -> list[Finding]:
    """What can be told, in the order in which one would look."""
    return [*_direction(responses), *_sampler(responses), *_reported(responses)]


def _direction(responses: Sequence[Response]) -> Iterator[Finding]:
    """On the policy's samples the mean of k1 is the KL, at least 0, and that of exp(-d) is 1 at every token."""
    sums = np.array([(one.logprobs - one.reference_logprobs)[one.mask].sum() for one in responses])
    mean, error = float(sums.mean()), float(sums.std(ddof=1) / np.sqrt(len(sums)))
    if mean < -SIGMAS * error and mean < -1e-6:
        yield Finding(
            True,
            f"log pi - log pi_ref is {mean:.4g} nats a response on average (standard error {error:.2g}), below 0, "
            "which no KL is: logprobs and reference_logprobs are swapped, or the policy did not sample these responses",
        )
        return
    yield Finding(False, f"KL by k1: {mean:.4g} nats a response, standard error {error:.2g}")
    ratios = np.concatenate([np.exp((one.reference_logprobs - one.logprobs)[one.mask]) for one in responses])
    off, ratio_error = float(ratios.mean() - 1.0), float(ratios.std(ddof=1) / np.sqrt(len(ratios)))
    if abs(off) > SIGMAS * ratio_error and abs(off) > 1e-3:
        yield Finding(
            True,
            f"the mean of pi_ref / pi over tokens is {1.0 + off:.4g}, not 1 (standard error {ratio_error:.2g}): the "
            "logprobs are not of the distribution that the tokens were drawn from, or are renormalised by top-p or "
            "top-k and the reference's are not; look for these, another temperature, or stale weights",
        )


def _sampler(responses: Sequence[Response]) -> Iterator[Finding]:
    pairs = [(one.sampler_logprobs, one) for one in responses if one.sampler_logprobs is not None]
    if not pairs:
        return
    gaps = np.concatenate([(sampler - one.logprobs)[one.mask] for sampler, one in pairs])
    typical = float(np.abs(gaps).mean())
    if typical < 1e-2:
        yield Finding(False, f"sampler and trainer agree: logprobs differ by {typical:.2g} nats a token")
    elif float((gaps > -1e-3).mean()) > 0.99:
        yield Finding(
            True,
            f"the sampler's logprobs lie {typical:.3g} nats a token above the trainer's, nearly always on that side: "
            "they are renormalised by top-p, top-k or min-p, and the trainer's are not",
        )
    else:
        yield Finding(
            True,
            f"sampler and trainer differ by {typical:.3g} nats a token, to both sides: another temperature, precision "
            "or weights",
        )


def _reported(responses: Sequence[Response]) -> Iterator[Finding]:
    known = [one for one in responses if one.kl is not None]
    if not known:
        return
    reported = np.array([one.kl for one in known], dtype=np.float64)
    scale = max(float(np.abs(reported).mean()), 1e-12)
    with_prompt = any(not one.mask.all() for one in known)
    for name, estimate in ESTIMATES.items():
        for whole in (False, True) if with_prompt else (False,):
            values = [estimate(_d(one))[slice(None) if whole else one.mask] for one in known]
            for unit, found in (
                ("a response", np.array([each.sum() for each in values])),
                ("a token", np.array([each.mean() for each in values])),
            ):
                if float(np.abs(found - reported).mean()) < CLOSE * scale:
                    yield _told(name, unit, whole)
                    return
    estimates = ", ".join(
        f"{name} {np.mean([ESTIMATES[name](_d(one))[one.mask].sum() for one in known]):.4g}" for name in RIGHT
    )
    yield Finding(
        True,
        f"what is reported ({reported.mean():.4g} on average) is none of the known estimates of these logprobs "
        f"({estimates} nats a response): clamped, of other logprobs, or of another temperature",
    )


def _told(name: str, unit: str, whole: bool) -> Finding:
    if whole:
        return Finding(
            True, f"what is reported is {name} in nats {unit} over prompt and response: the mask counts prompts"
        )
    if name not in RIGHT:
        return Finding(True, f"what is reported is {name}")
    return Finding(False, f"what is reported is {name} in nats {unit}")


def _d(one: Response) -> np.ndarray:
    return one.logprobs - one.reference_logprobs
