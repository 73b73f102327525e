"""The stand-in program of the sweep benchmark: a second's sleep, under each launcher the same."""

from __future__ import annotations

import json
import time
from typing import Any

from rlhf.config import RunConfig
from rlhf.config.identity import run_folder

SECONDS = 1.0


def execute(run: RunConfig) -> dict[str, Any]:
    folder = run_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    time.sleep(SECONDS)
    summary = {"status": "finished"}
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary
