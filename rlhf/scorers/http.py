"""reward=http: a server that scores text.

A request is a POST of `reward.batch_size` texts at most, as application/json:

    {"prompts": ["...", ...], "responses": ["...", ...], "columns": {"answer": ["...", ...]}}

All lists are equally long. `columns` has what else the rows of the data have; without any it is left out. A response is
as the policy wrote it, its leading blank included and without EOS and stop string; prompt + response is the whole text.
The answer has status 200 and a finite number for each response, in order:

    {"scores": [0.7, ...]}

The server has `reward.timeout_seconds` for the whole answer. A try without one (nobody there, too late, status 408, 429
or 5xx, a body that is no JSON) is followed by up to `reward.retries` more, after 1, 2, 4 ... seconds; with 429 and 503
after as long as Retry-After asks for. Any other status, a wrong number of scores, or one that is not finite, ends the
run: another try would not mend it. The same text must get the same score, or runs cannot be repeated.

A server that asks for a token gets the one that the environment variable `reward.token_env` or the file
`reward.token_file` holds, as `Authorization: Bearer <token>`; it is written nowhere. Other headers come from the
environment too: `reward.headers_env=[X-Api-Key=MY_KEY]` sends what the variable MY_KEY holds. To an address of this
machine no proxy is asked; to others that of the environment (http_proxy, https_proxy, no_proxy).
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import requests.utils
import torch
from torch import Tensor
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from rlhf.config import RewardConfig, RunConfig
from rlhf.data.examples import NO_COLUMNS, Columns, TextData
from rlhf.distributed import rank
from rlhf.errors import UserError, printable, reason
from rlhf.terminal import say
from rlhf.urls import address, is_this_machine
from rlhf.waiting import pause

FIRST_WAIT, LONGEST_WAIT, LONGEST_WAIT_ASKED_FOR = 1.0, 60.0, 600.0
"""Seconds between tries: at first, at most by doubling, and at most because the server says so."""
FLOAT32_MAX = torch.finfo(torch.float32).max


class RewardServerError(UserError, RuntimeError):
    """A server that gives no scores; the message is one line that names reward.url."""


LISTENING_SECONDS = 5.0
"""Longest wait for a connection before SFT."""


class _TryAgain(Exception):
    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait
        """Seconds that the server asks for."""


@dataclass(frozen=True)
class HttpScorer:
    url: str
    batch_size: int
    timeout_seconds: float
    retries: int
    token: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def score(self, prompts: Sequence[str], answers: Sequence[str], columns: Columns = NO_COLUMNS) -> Tensor:
        """(B,) float32 on the CPU.

        Raises:
            RewardServerError: no scores after all tries, or an answer that makes no sense.
            StoppedWaiting: the run was asked to stop, and waits between two tries.
        """
        scores = []
        for first in range(0, len(prompts), self.batch_size):
            rows = slice(first, first + self.batch_size)
            request: dict[str, Any] = {"prompts": list(prompts[rows]), "responses": list(answers[rows])}
            if columns:
                request["columns"] = {name: list(entries[rows]) for name, entries in columns.items()}
            answer = self._ask(request)
            scores += self._checked(answer, len(answers[rows]))
        return torch.tensor(scores, dtype=torch.float32)

    def _ask(self, request: Mapping[str, Any]) -> Any:
        body, wait = json.dumps(request, default=str).encode(), FIRST_WAIT  # dates and the like, as text
        for left in reversed(range(self.retries + 1)):
            try:
                return self._try(body)
            except _TryAgain as failure:
                if not left:
                    raise self._error(
                        f"gave no scores in {self.retries + 1} tries, at last: {failure}; see that the server is up "
                        "and type the command again"
                    ) from None  # whose cause may hold what was sent
                seconds = max(wait, min(failure.wait, LONGEST_WAIT_ASKED_FOR))
                pause(seconds, f"waiting for the next try at reward.url ({failure})")
                wait = min(2 * wait, LONGEST_WAIT)

    def _try(self, body: bytes) -> Any:
        late = f"no whole answer within {self.timeout_seconds:g} seconds"
        deadline = time.monotonic() + self.timeout_seconds
        try:
            with requests.post(
                self.url,
                data=body,
                headers={"Content-Type": "application/json", **self.headers},
                auth=self._authorised if self.token else None,
                proxies=dict.fromkeys(("http", "https", "all")) if is_this_machine(self.url) else None,  # type: ignore
                timeout=self.timeout_seconds,
                allow_redirects=not self.headers,  # the library would take them along to another host
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
            broke = f"no connection, or it broke{_through_proxy(self.url)}"
            raise _TryAgain(late if time.monotonic() > deadline else broke) from error
        except requests.RequestException as error:
            raise self._error(f"cannot be asked ({type(error).__name__}: {reason(error)})") from None
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _TryAgain(f"an answer that is no JSON ({self._beginning(content)!r})") from error

    def _authorised(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Instead of headers alone, beside which requests would look for a password in ~/.netrc."""
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request

    def _check_status(self, response: requests.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        said = f"status {status} {self._beginning(response.reason or '')}".rstrip()
        if status in (407, 502, 503, 504):
            said += _through_proxy(self.url)
        if status in (408, 429) or status >= 500:
            raise _TryAgain(said, _retry_after(response) if status in (429, 503) else 0.0)
        if status in (401, 403):
            remedy = "see that the token is right" if self.token else "give it a token by reward.token_env=VARIABLE"
            raise self._error(f"answered with {said}; {remedy}")
        raise self._error(f"answered with {said}; is it a server that scores text?")

    def _error(self, what: str) -> RewardServerError:
        return RewardServerError(f"reward.url: {self.url} {self._without_token(what)}")

    def _beginning(self, said: str | bytes | bytearray) -> str:
        """Of what a server said, at most 80 characters, fit for a terminal."""
        text = said if isinstance(said, str) else said.decode(errors="replace")
        text = printable(self._without_token(text))
        return text if len(text) <= 80 else f"{text[:80]}..."

    def _without_token(self, text: str) -> str:
        """A server may say back what it was sent."""
        for secret in filter(None, [self.token, *self.headers.values()]):
            text = text.replace(secret, "***")
        return text

    def _checked(self, answer: Any, count: int) -> list[float]:
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list):
            raise self._error(f'answered without {{"scores": [...]}} ({self._beginning(json.dumps(answer))!r})')
        if len(scores) != count:
            raise self._error(f"gave {len(scores)} scores for {count} responses")
        for i, score in enumerate(scores):
            if type(score) not in (int, float) or not abs(score) <= FLOAT32_MAX:
                shown = f"{self._beginning(json.dumps(score))!r}, response {i + 1} of {count}"
                raise self._error(f"gave a score that is no finite number ({shown})")
        return [float(score) for score in scores]


def load_http(config: RunConfig, _trained: Path | None, _device: torch.device, _data: TextData) -> HttpScorer:
    reward = config.reward
    assert reward.url is not None, "checked in rlhf.config.check"
    limits = reward.batch_size, reward.timeout_seconds, reward.retries
    return HttpScorer(reward.url, *limits, _token(reward), _headers(reward))


def check_server(config: RunConfig) -> None:
    """Say where nothing listens at reward.url, which may be started later; a proxy is not asked.

    Raises:
        RewardServerError: what the server is to be sent is not there.
    """
    url = config.reward.url
    assert url is not None, "checked in rlhf.config.check"
    _token(config.reward)
    _headers(config.reward)
    parts = urlsplit(url)
    if _through_proxy(url) or parts.hostname is None or rank() != 0:
        return
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    try:
        socket.create_connection((parts.hostname, port), timeout=LISTENING_SECONDS).close()
    except OSError as error:
        say(f"reward.url: nothing answers at {address(url)} yet ({reason(error)}); it is asked for scores after SFT")


def _token(reward: RewardConfig) -> str | None:
    """What the server asks for; None where the config names no place that holds it.

    Raises:
        RewardServerError: nothing there, or something that is no token.
    """
    if reward.token_env is not None:
        option, token = f"reward.token_env={reward.token_env}", os.environ.get(reward.token_env, "")
        remedy = f"export {reward.token_env}=..."
    elif reward.token_file is not None:
        option, remedy = f"reward.token_file={reward.token_file}", "put it there, on one line"
        try:
            token = Path(reward.token_file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = reason(error) if isinstance(error, OSError) else "it is no text"
            raise RewardServerError(f"{option}: cannot be read ({why}); {remedy}") from None
    else:
        return None
    token = token.strip()
    if not token:
        raise RewardServerError(f"{option}: holds no token; {remedy}")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise RewardServerError(f"{option}: holds no token but a text that no header can have; {remedy}")
    return token


def _headers(reward: RewardConfig) -> dict[str, str]:
    """{header: what its environment variable holds}.

    Raises:
        RewardServerError: nothing there, or something that no header can have.
    """
    headers = {}
    for entry in reward.headers_env or ():
        name, _, variable = entry.partition("=")
        value = os.environ.get(variable, "").strip()
        if not value or not value.isascii() or not value.isprintable():
            held = "holds a text that no header can have" if value else "holds nothing"
            raise RewardServerError(f"reward.headers_env: {name}={variable}: {variable} {held}; export {variable}=...")
        headers[name] = value
    return headers


def _through_proxy(url: str) -> str:
    """The proxy that stands before `url`, without its password; empty where there is none."""
    proxy = None if is_this_machine(url) else requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    if proxy is None:
        return ""
    place = urlsplit(proxy if "://" in proxy else f"//{proxy}").netloc.rpartition("@")[2]
    return f" (through the proxy {place} of the environment; no_proxy={urlsplit(url).hostname} goes past it)"


def _retry_after(response: requests.Response) -> float:
    """Seconds; 0 where the header is absent or makes no sense. It holds seconds or a date."""
    try:
        return Retry().parse_retry_after(response.headers.get("Retry-After", ""))
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0
