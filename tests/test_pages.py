"""The examples of docs/rewards.md and docs/algorithms.md, run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rlhf.config.identity import run_folder
from rlhf.run import execute
from rlhf.runs.state import read_rows
from tests.config.composed import config
from tests.test_run import TINY

ROOT = Path(__file__).resolve().parents[1]
NOT_FOR_SUMS = ("dataset.num_pairs", "dataset.num_test_pairs", "reward_model.", "dataset.max_new_tokens")

pytestmark = pytest.mark.usefixtures("torchs_switches")


def example(page: str, command: str, folder: Path) -> list[str]:
    """The words of the page's command, with what makes its run tiny; its file is written into the folder."""
    text = (ROOT / "docs" / page).read_text()
    ((name, source),) = re.findall(r"<!-- example: (\S+) -->\n```python\n(.*?)```", text, re.DOTALL)
    assert 5 <= len(source.splitlines()) <= 40
    (folder / name).write_text(source)
    (typed,) = re.findall(rf"<!-- command: {command} -->\n```\npython main\.py (.+)\n```", text)
    tiny = TINY.replace("micro_batch_size=2", "micro_batch_size=4").split()  # a whole group
    tiny = [word for word in tiny if not word.startswith(NOT_FOR_SUMS)]
    folders = [f"output_dir={folder}/runs", f"cache_dir={folder}/cache"]
    return [*shlex.split(typed), *tiny, *folders, "rollout.iterations=1", "evaluation.reference_responses=0"]


def test_the_reward_of_the_page(tmp_path: Path, monkeypatch) -> None:
    words = example("rewards.md", "python reward", tmp_path)
    monkeypatch.chdir(tmp_path)
    run = config(*words)
    assert execute(run)["status"] == "finished"
    assert "eval/reward" in read_rows(run_folder(run))[-1]


def test_the_algorithm_of_the_page(tmp_path: Path, monkeypatch) -> None:
    words = example("algorithms.md", "custom algorithm", tmp_path)
    monkeypatch.chdir(tmp_path)
    run = config(*words, "dataset=sums", "reward=verifiable")
    assert execute(run)["status"] == "finished"
    assert run_folder(run).name.startswith("Reinforce-s0-")
    assert "beta: 0.3" in (run_folder(run) / "config.yaml").read_text()
