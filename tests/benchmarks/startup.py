"""What comes before the work: `python -m tests.benchmarks.startup`.

Wall and CPU seconds (user and system) of `python main.py --cfg job`; of a run of `--threads` whose SFT policy and
reward model are cached until its first row of metrics stands in metrics.jsonl, which is an evaluation's; and, with
`--main-job`, of README's six-run main job from a cold cache to its report. The first two alternate; medians of several.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.benchmarks.measuring import Table, Times, add_options, begin

ROOT = Path(__file__).resolve().parents[2]
MAIN_JOB = ["-m", "algo=apa,ppo,awr", "seed=0,100"]
"""README's first command."""
LOOK_SECONDS = 0.005
Seconds = tuple[float, float]
"""Wall and CPU."""


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    begin(options, torch.device("cpu"))
    table = Table("", "min s", "median s", "CPU median s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = Path(options.cache_dir).resolve() if options.cache_dir else folder / "cache"
        words = [*options.overrides, f"hardware.threads={options.threads}", f"cache_dir={cache}"]
        to_end(["algo=apa", "rollout.iterations=1", *words, f"output_dir={folder / 'warm-up'}"])  # fills the cache
        found: dict[str, list[Seconds]] = {"--cfg job": [], "first metrics row, warm cache": []}
        for repeat in range(options.repeats):
            found["--cfg job"].append(to_end(["--cfg", "job"]))
            output = folder / str(repeat)
            found["first metrics row, warm cache"].append(to_first_row(["algo=apa", *words], output))
        for what, taken in found.items():
            show(table, what, taken)
        if options.main_job:
            where = [f"output_dir={folder / 'main'}", f"cache_dir={folder / 'cold'}"]
            show(table, "six-run main job, cold cache", [to_end([*MAIN_JOB, *options.overrides, *where])])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache-dir", help="where SFT policy and reward model may lie already; else made first")
    parser.add_argument("--main-job", action="store_true", help="README's six runs too: minutes")
    parser.add_argument("--overrides", nargs="*", default=["tracking=none"], help="of every run, as debug=one_step")
    add_options(parser, repeats=5)
    return parser


def show(table: Table, what: str, taken: list[Seconds]) -> None:
    wall, busy = Times([one[0] for one in taken]), Times([one[1] for one in taken])
    table.row(what, wall.least, wall.median, busy.median)


def to_end(words: list[str]) -> Seconds:
    """Of the whole command."""
    began = time.monotonic()
    process = start(words)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"python main.py {' '.join(words)} failed; type it to see why")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime


def to_first_row(words: list[str], output: Path) -> Seconds:
    """Of a run up to its first row; it is ended then."""
    began = time.monotonic()
    process = start([*words, f"output_dir={output}"])
    try:
        wait_until(lambda: any(file.stat().st_size for file in output.glob("*/*/metrics.jsonl")), process)
        return time.monotonic() - began, cpu_seconds(process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def start(words: list[str]) -> subprocess.Popen[bytes]:
    """main.py with these words, in its folder, silent."""
    return subprocess.Popen(
        [sys.executable, "main.py", *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_until(there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not there():
        if process.poll() is not None and not there():
            sys.exit("a run ended before its first row; type `python main.py` to see why")
        time.sleep(LOOK_SECONDS)


def cpu_seconds(process: int) -> float:
    """User and system so far; of Linux's /proc, elsewhere not a number."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
