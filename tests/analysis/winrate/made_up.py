"""Made-up responses, and the command as the tests type it."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.winrate.command import add_arguments, run

KEY = "sk-very-secret-0123456789"
FAST = ("--max-retries", "1", "--timeout", "5", "--yes")
RIGHT = [
    ("sft", "ppo", "2", "0", "2", "0", "0", "0.5"),
    ("sft", "apa", "0", "0", "4", "0", "0", "0.0"),
    ("ppo", "apa", "1", "1", "2", "0", "0", "0.375"),
]
# 12 comparisons in two orders. One has the same text twice and needs none; on p2 sft meets one text in ppo and apa.
REQUESTS = 24 - 2 - 2


def answers(file: Path, responses: Mapping[str, str]) -> Path:
    """A JSONL source: prompt -> response, with a reference each."""
    return write_rows(file, [{"prompt": p, "response": r, "reference": f"good {p}"} for p, r in responses.items()])


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def winrate(folder: Path, *arguments: str) -> int:
    """Run the command in this process, with its output and cache in `folder`."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    places = ["--output", str(folder / "out"), "--cache", str(folder / "cache.jsonl")]
    return run(parser.parse_args([*arguments, *places]))


def pair_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "winrates.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "winrate.json").read_text())


def totals(folder: Path) -> list[tuple[str, ...]]:
    names = ("model_a", "model_b", "wins", "ties", "losses", "inconsistent", "unparsed", "win_rate")
    return [tuple(row[name] for name in names) for row in pair_rows(folder)]
