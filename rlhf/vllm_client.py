"""What is said to a vLLM server, and what it answers. Imports no torch.

The server is vLLM's own (`vllm serve`) with VLLM_SERVER_DEV_MODE=1, which opens the paths that load weights. Token ids
go in and come out: no text is tokenised on its side.

| request | for |
| --- | --- |
| GET /v1/models | its model's name, and the longest text that it takes |
| POST /v1/completions | a response: token ids and their logprobs; the logprobs of a text |
| POST /collective_rpc reload_weights | weights from a folder as save_pretrained writes it |
| POST /reset_prefix_cache | forget what other weights have computed |
| POST /weight_checker | a SHA-256 of each tensor as the server holds it |
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from rlhf.errors import UserError, printable, reason
from rlhf.urls import is_this_machine

LARGEST_SEED = 2**31
"""Seeds are below it: one of 63 bits has ended a server (vLLM 0.32)."""
MAX_SHOWN = 200


class RolloutServerError(UserError, RuntimeError):
    """A vLLM server that does not do its part; the message is one line that names the option."""


@dataclass(frozen=True)
class VllmClient:
    """One server. Its calls may come from several threads.

    Every call raises RolloutServerError where no answer comes within `timeout_seconds`, or one that makes no sense.
    """

    url: str
    timeout_seconds: float
    option: str = "rollout.url"
    """What names the server in messages."""

    def error(self, what: str) -> RolloutServerError:
        return RolloutServerError(f"{self.option}: the vLLM server at {self.url} {what}")

    def check_length(self, longest: int) -> str:
        """The name of its model.

        Raises:
            RolloutServerError: also where it does not take texts of `longest` tokens.
        """
        answer = self._ask("/v1/models")
        try:
            model = answer["data"][0]
            name, limit = str(model["id"]), model.get("max_model_len")
        except (LookupError, TypeError, AttributeError):
            raise self.error("names no model; is it a vLLM server?") from None
        if isinstance(limit, int) and limit < longest:
            raise self.error(
                f"takes texts of {limit} tokens, and dataset.max_total_length is {longest}; start it with "
                f"--max-model-len {longest}"
            )
        return name

    def check_vocabulary(self, model: str, size: int) -> None:
        """Raise RolloutServerError where the server's vocabulary lacks the last of `size` tokens.

        A token too many is not tried: a server whose tokenizer knows it reads beyond its embeddings, and dies.
        """
        response = self._post("/v1/completions", {"model": model, "prompt": [size - 1], "max_tokens": 1})
        if response.status_code == 400:
            raise self.error(
                f"has a vocabulary smaller than the policy's of {size} tokens; start it with the run's own model"
            )
        self._answer(response)

    def sample(
        self, model: str, prompt: Sequence[int], *, length: int, temperature: float, stops: Sequence[int], seed: int
    ) -> tuple[list[int], list[float]]:
        """A response and the sampler's logprob of each token: at most `length` tokens, the last of them one of `stops`
        where it is shorter."""
        # All that a model's generation_config.json could set is said, so that none of it is.
        request = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": length,
            "seed": seed,
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "ignore_eos": True,  # of the server's model; ours is among the stops
            "stop_token_ids": list(stops),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "add_special_tokens": False,
            "logprobs": 0,
            "return_token_ids": True,
        }
        choice = self._choice(self._ask("/v1/completions", request))
        tokens, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if not isinstance(tokens, list) or not isinstance(logprobs, list) or len(tokens) != len(logprobs):
            raise self.error("answered without token_ids and their logprobs; it is older than return_token_ids")
        if not 0 < len(tokens) <= length or not all(map(_is_logprob, logprobs)):
            raise self.error("gave a response that is none: no tokens, too many, or logprobs that are no numbers")
        if len(tokens) < length and tokens[-1] not in stops:
            raise self.error(f"ended a response after {len(tokens)} of {length} tokens, at none that ends one")
        return tokens, [float(logprob) for logprob in logprobs]

    def logprobs(self, model: str, tokens: Sequence[int]) -> list[float]:
        """log pi of tokens 1, 2, ... of a text, at temperature 1 whatever is sampled at."""
        request = {"model": model, "prompt": list(tokens), "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
        found: Any = self._choice(self._ask("/v1/completions", request)).get("prompt_logprobs")
        logprobs: list[Any] = [None]
        with contextlib.suppress(LookupError, TypeError):
            logprobs = [found[i][str(tokens[i])]["logprob"] for i in range(1, len(tokens))]
        if not all(map(_is_logprob, logprobs)):
            raise self.error("answered without the logprobs of a text")
        return [float(logprob) for logprob in logprobs]

    def load(self, folder: Path) -> None:
        """Take the weights of a folder in save_pretrained form."""
        self._ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        self._ask("/reset_prefix_cache", {})

    def checksums(self) -> dict[str, str]:
        """SHA-256 of each tensor's bytes as the server holds it, by rank and name (dp0:pp0:pcp0:tp0:model.norm.weight);
        none where it has no such path."""
        response = self._post("/weight_checker", {"action": "checksum"})
        if response.status_code == 404:
            return {}
        found = self._answer(response)
        checksums = found.get("checksums") if isinstance(found, dict) else None
        return {str(name): str(value) for name, value in (checksums or {}).items()}

    def _choice(self, answer: Any) -> dict[str, Any]:
        try:
            choice = answer["choices"][0]
        except (LookupError, TypeError):
            choice = None
        if not isinstance(choice, dict):
            raise self.error("answered a request for a completion with none")
        return choice

    def _ask(self, path: str, request: dict[str, Any] | None = None) -> Any:
        return self._answer(self._post(path, request))

    def _post(self, path: str, request: dict[str, Any] | None = None) -> requests.Response:
        """A POST, or a GET without a request."""
        key = os.environ.get("VLLM_API_KEY")
        try:
            with requests.Session() as session:
                session.trust_env = not is_this_machine(self.url)  # no proxy
                return session.request(
                    "GET" if request is None else "POST",
                    self.url.rstrip("/") + path,
                    json=request,
                    headers={"Authorization": f"Bearer {key}"} if key else None,
                    timeout=self.timeout_seconds,
                )
        except requests.Timeout:
            raise self.error(f"gave no answer within {self.timeout_seconds:g} seconds") from None
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            raise self.error("does not answer; see that it is up, and type the command again") from None
        except requests.RequestException as error:
            raise self.error(f"cannot be asked ({type(error).__name__}: {reason(error)})") from None

    def _answer(self, response: requests.Response) -> Any:
        path = response.request.path_url
        if response.status_code == 404 and path == "/collective_rpc":
            raise self.error("takes no weights; start it with VLLM_SERVER_DEV_MODE=1 in its environment")
        if response.status_code != 200:
            said = printable(response.text)[:MAX_SHOWN]
            raise self.error(f"answered {path} with status {response.status_code} ({said})")
        if not response.content:
            return {}
        try:
            return response.json()
        except ValueError:
            raise self.error(f"answered {path} with no JSON; is it a vLLM server?") from None


def _is_logprob(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value <= 1e-3
