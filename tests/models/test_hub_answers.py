"""What a hub answers to a name it does not give: a local server in its place, asked by the real client."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

ANSWERS = {
    "lab/gated": (403, "GatedRepo"),
    "lab/missing": (404, "RepoNotFound"),
    "lab/private": (401, "RepoNotFound"),
    "lab/forbidden": (403, ""),
}
"""{hub name: (status, the hub's own code of the error)}."""

ASK = """
import sys
from rlhf.models.loading import ModelError, load_pretrained
for name in sys.argv[1:]:
    try:
        load_pretrained(name)
    except ModelError as error:
        print(" ".join(str(error).split()))
"""


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, code = next((answer for name, answer in ANSWERS.items() if name in self.path), (404, "EntryNotFound"))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_each_refusal_is_one_line_with_its_remedy(hub, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    done = subprocess.run([sys.executable, "-c", ASK, *ANSWERS], env=environment, capture_output=True, text=True)
    gated, missing, private, forbidden = done.stdout.splitlines()
    assert gated.startswith("model.path: ") and "lab/gated" in gated
    assert gated.endswith(
        "; ask for access at https://huggingface.co/lab/gated, then set HF_TOKEN or type hf auth login"
    )
    for line, name in ((missing, "lab/missing"), (private, "lab/private"), (forbidden, "lab/forbidden")):
        assert line.startswith("model.path: ") and name in line
        assert line.endswith("what is private needs HF_TOKEN, or hf auth login")
