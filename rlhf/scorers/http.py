"""reward=http: a server that scores text.

A request is a POST of `reward.batch_size` texts at most, as application/json:

    {"prompts": ["...", ...], "responses": ["...", ...]}

Both lists are equally long. A response is as the policy wrote it, its leading blank included and without EOS and stop
string; prompt + response is the whole text. The answer has status 200 and a finite number for each response, in order:

    {"scores": [0.7, ...]}

The server has `reward.timeout_seconds` for the whole answer. A try without one (nobody there, too late, status 408, 429
or 5xx, a body that is no JSON) is followed by up to `reward.retries` more, after 1, 2, 4 ... seconds; with 429 and 503
after as long as Retry-After asks for. Any other status, a wrong number of scores, or one that is not finite, ends the
run: another try would not mend it. The same text must get the same score, or runs cannot be repeated.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests
import torch
from torch import Tensor

from rlhf.config import RunConfig
from rlhf.errors import UserError

FIRST_WAIT, LONGEST_WAIT, LONGEST_WAIT_ASKED_FOR = 1.0, 60.0, 600.0
"""Seconds between tries: at first, at most by doubling, and at most because the server says so."""
FLOAT32_MAX = torch.finfo(torch.float32).max


class RewardServerError(UserError, RuntimeError):
    """A server that gives no scores; the message is one line that names reward.url."""


class _TryAgain(Exception):
    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait
        """Seconds that the server asks for."""


class HttpScorer:
    def __init__(self, url: str, *, batch_size: int, timeout_seconds: float, retries: int) -> None:
        self.url = url
        self.batch_size = batch_size
        self.timeout_seconds = timeout_seconds
        self.retries = retries

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """(B,) float32 on the CPU.

        Raises:
            RewardServerError: no scores after all tries, or an answer that makes no sense.
        """
        scores = []
        for first in range(0, len(prompts), self.batch_size):
            rows = slice(first, first + self.batch_size)
            answer = self._ask({"prompts": list(prompts[rows]), "responses": list(answers[rows])})
            scores += self._checked(answer, len(answers[rows]))
        return torch.tensor(scores, dtype=torch.float32)

    def _ask(self, request: dict[str, list[str]]) -> Any:
        body, wait = json.dumps(request).encode(), FIRST_WAIT
        for left in reversed(range(self.retries + 1)):
            try:
                return self._try(body)
            except _TryAgain as failure:
                if not left:
                    raise RewardServerError(
                        f"reward.url: {self.url} gave no scores in {self.retries + 1} tries, at last: {failure}; see "
                        "that the server is up and type the command again"
                    ) from failure
                time.sleep(max(wait, min(failure.wait, LONGEST_WAIT_ASKED_FOR)))
                wait = min(2 * wait, LONGEST_WAIT)

    def _try(self, body: bytes) -> Any:
        late = f"no whole answer within {self.timeout_seconds:g} seconds"
        deadline = time.monotonic() + self.timeout_seconds
        try:
            with requests.post(
                self.url,
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=self.timeout_seconds,
                stream=True,
            ) as response:
                self._check_status(response)
                content = bytearray()
                # The library's time-out starts anew with every byte that comes in.
                for byte in response.iter_content(1):
                    content += byte
                    if time.monotonic() > deadline:
                        raise _TryAgain(late)
        except requests.Timeout as error:
            raise _TryAgain(late) from error
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            # A time-out amid the body comes as a ConnectionError.
            raise _TryAgain(late if time.monotonic() > deadline else "no connection, or it broke") from error
        except requests.RequestException as error:
            raise RewardServerError(
                f"reward.url: {self.url} cannot be asked ({type(error).__name__}: {error})"
            ) from error
        try:
            return json.loads(content)
        except ValueError as error:
            raise _TryAgain(f"an answer that is no JSON ({_beginning(content)})") from error

    def _check_status(self, response: requests.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        said = f"status {status} {response.reason}"
        if status in (408, 429) or status >= 500:
            raise _TryAgain(said, _retry_after(response) if status in (429, 503) else 0.0)
        raise RewardServerError(f"reward.url: {self.url} answered with {said}; is it a server that scores text?")

    def _checked(self, answer: Any, count: int) -> list[float]:
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list):
            shown = _beginning(json.dumps(answer).encode())
            raise RewardServerError(f'reward.url: {self.url} answered without {{"scores": [...]}} ({shown})')
        if len(scores) != count:
            raise RewardServerError(f"reward.url: {self.url} gave {len(scores)} scores for {count} responses")
        for i, score in enumerate(scores):
            number = isinstance(score, int | float) and not isinstance(score, bool)
            if not number or not abs(score) <= FLOAT32_MAX:
                shown = f"{_beginning(json.dumps(score).encode())}, response {i + 1} of {count}"
                raise RewardServerError(f"reward.url: {self.url} gave a score that is no finite number ({shown})")
        return [float(score) for score in scores]


def load_http(config: RunConfig, _trained: Path | None, _device: torch.device) -> HttpScorer:
    reward = config.reward
    assert reward.url is not None, "checked in rlhf.config.check"
    return HttpScorer(
        reward.url, batch_size=reward.batch_size, timeout_seconds=reward.timeout_seconds, retries=reward.retries
    )


def _retry_after(response: requests.Response) -> float:
    """Seconds; 0 where the header is absent or makes no sense. It holds seconds or a date."""
    asked = response.headers.get("Retry-After", "")
    if asked.strip().isdigit():
        return float(asked)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _beginning(content: bytes | bytearray) -> str:
    text = " ".join(content.decode(errors="replace").split())
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
