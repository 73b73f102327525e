"""A scripted OpenAI-compatible server on 127.0.0.1, which counts what it answered."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

IN, OUT = 100, 7
"""Tokens that every answer is said to have taken."""


@dataclass(frozen=True)
class Call:
    """One request as it came in."""

    messages: list[dict[str, str]]
    body: dict[str, Any]
    authorization: str
    number: int  # of the requests with these messages, from 0
    total: int  # of all requests, from 0

    @property
    def responses(self) -> tuple[str, str]:
        """What is shown as A and as B."""
        text = self.messages[0]["content"]
        a, b = (re.search(rf"^BEGIN RESPONSE {x} (\w+)\n(.*?)\nEND RESPONSE {x} \1$", text, re.M | re.S) for x in "AB")
        assert a is not None and b is not None
        return a[2], b[2]


@dataclass(frozen=True)
class Say:
    """An answer of the script. `text` makes a completion, `raw` any other body."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    delay: float = 0.0  # seconds
    finish_reason: str = "stop"

    @property
    def payload(self) -> bytes:
        if self.raw is not None:
            return self.raw
        if self.status != 200:
            return json.dumps({"error": {"message": self.text, "code": self.headers.get("X-Code")}}).encode()
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "finish_reason": self.finish_reason, "message": message}
        usage = {"prompt_tokens": IN, "completion_tokens": OUT, "total_tokens": IN + OUT}
        completion = {"id": "x", "object": "chat.completion", "created": 0, "model": "judge-0613"}
        return json.dumps({**completion, "choices": [choice], "usage": usage}).encode()


Script = Callable[[Call], Say]


class JudgeServer(ThreadingHTTPServer):
    """`answered` counts, by messages, the completions that were sent whole: what a real server would bill."""

    daemon_threads = True
    request_queue_size = 128  # with the usual 5, a connection can be kept waiting for a second and more

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.calls: list[Call] = []
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.at_a_time = self.most_at_a_time = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = json.dumps(body["messages"])
        with server.lock:
            numbers = server.asked[key], len(server.calls)
            call = Call(body["messages"], body, self.headers["Authorization"] or "", *numbers)
            server.asked[key] += 1
            server.calls.append(call)
            server.at_a_time += 1
            server.most_at_a_time = max(server.most_at_a_time, server.at_a_time)
        try:
            say = server.script(call)
            server.closing.wait(say.delay)
            self.send_response(say.status)
            headers = {"Content-Type": "application/json", **say.headers, "Content-Length": str(len(say.payload))}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(say.payload)
            if say.status == 200 and say.raw is None:
                with server.lock:
                    server.answered[key] += 1
        except OSError:  # the client is gone
            self.close_connection = True
        finally:
            with server.lock:
                server.at_a_time -= 1


@contextmanager
def judging(script: Script) -> Iterator[JudgeServer]:
    server = JudgeServer(script)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def longer(call: Call) -> Say:
    """A fair judge: the longer response is better."""
    a, b = (len(response) for response in call.responses)
    return Say(f"Some words.\n\n[[{'TIE' if a == b else 'A' if a > b else 'B'}]]\n")
