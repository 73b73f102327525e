"""The examples of docs/rewards.md and docs/algorithms.md, run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_run import TINY

ROOT = Path(__file__).resolve().parents[1]
NOT_FOR_SUMS = ("dataset.num_pairs", "dataset.num_test_pairs", "reward_model.", "dataset.max_new_tokens")


@pytest.mark.parametrize(
    ("page", "command", "more", "run"),
    [
        ("rewards.md", "python reward", "", "apa-s0-*"),
        # A sweep, whose runs are processes of their own.
        ("algorithms.md", "custom algorithm", "dataset=sums reward=verifiable seed=0,1 -m", "Reinforce-s?-*"),
    ],
)
def test_the_example_of_a_page_is_a_run(tmp_path: Path, page: str, command: str, more: str, run: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    (example,) = re.findall(r"<!-- example: (\S+) -->\n```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / example[0]).write_text(example[1])
    assert 5 <= len(example[1].splitlines()) <= 40
    (typed,) = re.findall(rf"<!-- command: {command} -->\n```\npython main\.py (.+)\n```", text)
    words = [*shlex.split(typed), *more.split()]
    tiny = TINY.replace("micro_batch_size=2", "micro_batch_size=4").split()  # a whole group
    small = [word for word in tiny if not word.startswith(NOT_FOR_SUMS)]
    folders = [f"output_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache"]
    main = [sys.executable, str(ROOT / "main.py"), *words, *small, *folders, "rollout.iterations=1"]
    done = subprocess.run(main, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    summaries = list((tmp_path / "runs" / "default").glob(f"{run}/summary.json"))
    assert len(summaries) == 1 + ("-m" in words)
    assert all(json.loads(summary.read_text())["status"] == "finished" for summary in summaries)
