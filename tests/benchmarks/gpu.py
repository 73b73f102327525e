"""The `gpu` tests and all benchmarks that want a GPU, one behind the other: `tests/benchmarks/gpu.sh` calls this.

Each step is a command of its own with a limit in seconds; one that fails, or does not end, costs its own figures alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.measuring import ROOT

MINUTES = 12
SMALL = ["--device", "cpu", "--repeats", "1", "--threads", "1", "--prompt", "4", "--new", "4"]


@dataclass(frozen=True)
class Step:
    title: str
    words: Sequence[str]
    """What python is given on a GPU."""
    rehearsal: Sequence[str]
    """And on a CPU, to see that it runs."""
    limit: int
    """Seconds."""


def benchmark(name: str, words: str) -> list[str]:
    return ["-m", f"tests.benchmarks.{name}", *words.split()]


def small(name: str, words: str) -> list[str]:
    return [*benchmark(name, words), *SMALL]


# The most wanted first: what is late is left out.
STEPS = (
    Step(
        "tests: captured graphs, bf16 and fp16, first ratio",
        ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"],
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/sampling/test_graphs.py"],
        180,
    ),
    Step(
        "one iteration, pythia_1b, last two blocks",
        benchmark("memory", "--device cuda --model pythia_1b --algo apa ppo rloo"),
        small("memory", "--model tiny --algo apa ppo rloo --responses 4 --minibatch 2"),
        120,
    ),
    Step(
        "sampling, pythia_1b",
        benchmark("sampling", "--model pythia_1b --batch 64 --prompt 128 --new 128 --repeats 3"),
        small("sampling", "--model tiny --batch 4"),
        100,
    ),
    Step(
        "update, pythia_1b",
        benchmark("updating", "--model pythia_1b --device cuda --prompt 128 --new 128 --repeats 3"),
        small("updating", "--model tiny --responses 4 --minibatch 2"),
        120,
    ),
    Step(
        "one iteration, llama_7b, LoRA, a reward model of 6B",
        benchmark("memory", "--device cuda --model llama_7b --reward gptj_6b --algo apa ppo rloo --repeats 2"),
        small("memory", "--model tiny --algo apa --responses 4 --minibatch 2"),
        160,
    ),
    Step(
        "sampling, llama_7b",
        benchmark("sampling", "--model llama_7b --batch 64 --prompt 128 --new 128 --repeats 2"),
        small("sampling", "--model tiny --batch 4"),
        140,
    ),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, at sizes that say nothing")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")), help="folder of results")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which no step begins or goes on")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here: --rehearse goes through the same steps on a CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    results: dict[str, Any] = {"machine": machine(), "rehearsal": options.rehearse, "steps": []}
    for step in STEPS:
        print(f"== {step.title}", flush=True)
        words = step.rehearsal if options.rehearse else step.words
        done = run(words, min(step.limit, end - time.monotonic()))
        results["steps"].append({"title": step.title, "command": " ".join(["python", *words]), **done})
        (options.out / "gpu.json").write_text(json.dumps(results, indent=2))
        (options.out / "gpu.md").write_text(page(results))
    print(page(results))
    failed = [step["title"] for step in results["steps"] if step["outcome"] != "passed"]
    if failed:
        sys.exit(f"{len(failed)} of {len(STEPS)} steps did not pass: {'; '.join(failed)} ({options.out / 'gpu.json'})")


def machine() -> dict[str, str | None]:
    """What the figures depend on."""
    names = ("torch", "transformers", "peft")
    found = {"date": time.strftime("%Y-%m-%d %H:%M"), "python": sys.version.split()[0], "device": "cpu"}
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found |= {"device": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
        found |= {"memory": f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"}
    words = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return found | {name: installed(name) for name in names} | {"commit": commit.stdout.strip() or None}


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def run(words: Sequence[str], seconds: float) -> dict[str, Any]:
    """Outcome, seconds, the tables' rows and the end of what python printed, given `words`."""
    if seconds <= 0:
        return {"outcome": "not begun: no time was left", "seconds": 0.0, "rows": [], "printed": ""}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows, printed = Path(folder) / "rows", Path(folder) / "printed"
        environment = os.environ | {"BENCHMARK_ROWS": str(rows), "HF_HUB_OFFLINE": "1"}
        with printed.open("w") as output:
            program = [sys.executable, *words]
            child = subprocess.Popen(
                program, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                code = child.wait(seconds)
                outcome = "passed" if code == 0 else f"failed with exit code {code}"
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)  # and its own children
                child.wait()
                outcome = f"not done after {seconds:.0f} s"
        lines = rows.read_text().splitlines() if rows.exists() else []
        tail = printed.read_text(errors="replace")[-4000:]
    found = [json.loads(line) for line in lines]
    if outcome == "passed" and any("failed" in row.values() for row in found):
        outcome = "failed in a row"
    return {"outcome": outcome, "seconds": round(time.monotonic() - began, 1), "rows": found, "printed": tail}


def page(results: Mapping[str, Any]) -> str:
    """The results as Markdown, a table a step."""
    about = ", ".join(f"{name} {value}" for name, value in results["machine"].items() if value)
    lines = [f"{'A rehearsal, whose figures say nothing. ' if results['rehearsal'] else ''}{about}.", ""]
    for step in results["steps"]:
        lines += [f"### {step['title']}", "", f"`{step['command']}`: {step['outcome']}, {step['seconds']} s.", ""]
        for titles, rows in tables(step["rows"]):
            lines += [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles)]
            lines += [f"| {' | '.join(cell(row.get(title)) for title in titles)} |" for row in rows] + [""]
        if step["outcome"] != "passed":
            lines += ["```", *step["printed"].splitlines()[-15:], "```", ""]
    return "\n".join(lines)


def tables(rows: Sequence[Mapping[str, Any]]) -> list[tuple[list[str], list[Mapping[str, Any]]]]:
    """Rows that follow each other and have the same columns, with these."""
    found: list[tuple[list[str], list[Mapping[str, Any]]]] = []
    for row in rows:
        if not found or (list(row) != found[-1][0] and "failed" not in row.values()):
            found.append((list(row), []))
        found[-1][1].append(row)
    return found


def cell(value: str | float | None) -> str:
    return f"{value:.4g}" if isinstance(value, float | int) else value or ""


if __name__ == "__main__":
    main()
