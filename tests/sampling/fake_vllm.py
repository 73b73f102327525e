"""A server that answers as vLLM does as far as the client asks, by transformers' forward pass; and ill at will."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

NOTHING = hashlib.sha256(b"").hexdigest()


@dataclass
class FakeVllm:
    folder: Path
    """Of the model that it starts with."""
    max_model_len: int = 64
    stale_from: int = 10**9
    """The load, counted from 1, from which on it answers that all is well and loads nothing."""
    stale_to: int = 10**9
    keeps: str = "no tensor"
    """What is in the names of tensors that no load renews."""
    checks: bool = True
    """Whether checksums say anything."""
    lives_for: int = 10**9
    """Responses until it is gone."""
    raw_logprobs: bool = False
    loads: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Requests for responses, those of a fixed text apart."""
    url: str = ""

    def __post_init__(self) -> None:
        self.lock, self.server = threading.Lock(), None
        self._load(self.folder)

    def _load(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def logprobs(self, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
        return (self.model(torch.tensor([ids])).logits[0] / temperature).log_softmax(-1)

    def answer(self, path: str, request: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "policy", "max_model_len": self.max_model_len}]}
        if path == "/collective_rpc":
            assert request["method"] == "reload_weights"
            self.loads.append(request["kwargs"]["weights_path"])
            if not self.stale_from <= len(self.loads) < self.stale_to:
                before = {name: tensor for name, tensor in self.model.state_dict().items() if self.keeps in name}
                self._load(Path(self.loads[-1]))
                self.model.load_state_dict(before, strict=False)
            return 200, {"results": [None]}
        if path == "/weight_checker":
            return 200, {"checksums": {f"dp0:pp0:pcp0:tp0:{n}": self._sha(t) for n, t in self.model.named_parameters()}}
        if path == "/v1/completions":
            return self._complete(request)
        return 200, {}

    def _sha(self, tensor: torch.Tensor) -> str:
        return hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest() if self.checks else NOTHING

    def _complete(self, request: dict[str, Any]) -> tuple[int, Any]:
        prompt = request["prompt"]
        if max(prompt) >= self.model.config.vocab_size:
            return 400, {"error": {"message": "out of vocabulary"}}
        if request.get("prompt_logprobs") is not None:
            table = self.logprobs(prompt)
            found = [{str(t): {"logprob": float(table[i, t])}} for i, t in enumerate(prompt[1:])]
            return 200, {"choices": [{"prompt_logprobs": [None, *found]}]}
        if "seed" not in request:
            return 200, {"choices": [{}]}
        self.asked.append(request)
        draws = torch.Generator().manual_seed(request["seed"])
        ids, tokens, known = list(prompt), [], []
        for _ in range(request["max_tokens"]):
            row = self.logprobs(ids, request["temperature"])[-1]
            token = int(torch.multinomial(row.exp(), 1, generator=draws))
            tokens.append(token)
            known.append(float((self.logprobs(ids)[-1] if self.raw_logprobs else row)[token]))
            ids.append(token)
            if token in request["stop_token_ids"]:
                break
        return 200, {"choices": [{"token_ids": tokens, "logprobs": {"token_logprobs": known}}]}


@contextmanager
def serving(fake: FakeVllm, port: int = 0) -> Iterator[FakeVllm]:
    """It at work at `fake.url`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({})

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, request: dict[str, Any]) -> None:
            with fake.lock:
                if len(fake.asked) >= fake.lives_for:
                    self.connection.close()
                    return
                status, answer = fake.answer(self.path, request)
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.handle_error = lambda *_: None  # of connections that were closed on purpose
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":  # in the place of `vllm serve FOLDER --port PORT ...`
    words = sys.argv[1:]
    torch.set_num_threads(1)
    made = FakeVllm(Path(words[1]), int(words[words.index("--max-model-len") + 1]))
    print("serves", *words, flush=True)
    with serving(made, int(words[words.index("--port") + 1])):
        threading.Event().wait()
