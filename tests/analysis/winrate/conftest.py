"""Three models with made-up responses, and a fair judge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.analysis.winrate.judge_server import JudgeServer, judging, longer
from tests.analysis.winrate.made_up import KEY, answers


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Lengths apa 3 3 3 3, ppo 1 3 5 1, sft 2 2 2 2; the second responses of apa and ppo are the same text.

    The longer wins: sft vs ppo won on p1 and p4, lost on p2 and p3; sft vs apa lost 4 times; ppo vs apa: loss,
    identical, win, loss.
    """
    texts = {"sft": ("ss", "ss", "ss", "ss"), "ppo": ("p", "xxx", "ppppp", "p"), "apa": ("aaa", "xxx", "aaa", "aaa")}
    prompts = {name: {f"p{i}": text for i, text in enumerate(responses, start=1)} for name, responses in texts.items()}
    return [f"{name}={answers(tmp_path / f'{name}.jsonl', made)}" for name, made in prompts.items()]


@pytest.fixture
def fair() -> Iterator[JudgeServer]:
    with judging(longer) as server:
        yield server
