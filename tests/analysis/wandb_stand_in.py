"""A stand-in for W&B's server, for what the dashboard asks of it; found by trying with wandb 0.31."""

from __future__ import annotations

import gzip
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """On a free port of 127.0.0.1; keeps what it was sent."""

    def __init__(self, *, rejects: bool) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.rejects = rejects
        self.asked: list[tuple[str, dict[str, Any]]] = []  # operation or path, variables or body


class Answers(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        if self.path != "/graphql":
            self.server.asked.append((self.path, json.loads(body) if self.path.startswith("/files") else {}))
            return self._answer(200, {})
        asked = json.loads(body)
        variables = asked.get("variables") or {}
        self.server.asked.append((asked["query"].split("(")[0].split()[1], variables))
        if self.server.rejects:
            return self._answer(401, {"errors": [{"message": "permission denied"}]})
        artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": {"id": "a"}}}
        project = {"id": "p", "name": "mine", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "b", "name": variables.get("name"), "config": "{}", "historyLineCount": 0, "project": project}
        data = {
            "viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
            "serverInfo": {"features": []},
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "project": None,  # no artifact of that name yet
            "createArtifact": {"artifact": artifact},
            "createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []},
            "upsertView": {"view": {"id": "view1", "name": variables.get("name")}, "inserted": True},
        }
        self._answer(200, {"data": data})

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass
