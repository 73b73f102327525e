"""What comes before the work: `python -m tests.benchmarks.startup`.

Wall and CPU seconds (user and system) of `python main.py --cfg job`; of a run of `--threads` whose SFT policy and
reward model are cached until its first row of metrics stands in metrics.jsonl, which is an evaluation's; and, with
`--main-job`, of README's six-run main job from a cold cache to its report. The first two alternate; medians of several.
"""

from __future__ import annotations

import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.measuring import ROOT, Table, begin, parser_of

MAIN_JOB = ["-m", "algo=apa,ppo,awr", "seed=0,100"]
"""README's first command."""
LOOK_SECONDS = 0.005
Seconds = tuple[float, float]
"""Wall and CPU."""


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__, repeats=5)
    parser.add_argument("--cache-dir", help="where SFT policy and reward model may lie already; else made first")
    parser.add_argument("--main-job", action="store_true", help="README's six runs too: minutes")
    parser.add_argument("--overrides", nargs="*", default=["tracking=none"], help="of every run, as debug=one_step")
    options = parser.parse_args(arguments)
    begin(options)
    table = Table("", "min s", "median s", "CPU median s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = Path(options.cache_dir).resolve() if options.cache_dir else folder / "cache"
        words = [*options.overrides, f"hardware.threads={options.threads}", f"cache_dir={cache}"]
        # Fills the cache.
        seconds_of(["algo=apa", "rollout.iterations=1", *words, f"output_dir={folder / 'warm-up'}"])
        taken: dict[str, list[Seconds]] = {"--cfg job": [], "first metrics row, warm cache": []}
        for repeat in range(options.repeats):
            output = folder / str(repeat)
            taken["--cfg job"].append(seconds_of(["--cfg", "job"]))
            taken["first metrics row, warm cache"].append(seconds_of(["algo=apa", *words], first_row_in=output))
        if options.main_job:
            where = [f"output_dir={folder / 'main'}", f"cache_dir={folder / 'cold'}"]
            taken["six-run main job, cold cache"] = [seconds_of([*MAIN_JOB, *options.overrides, *where])]
    for what, seconds in taken.items():
        wall, busy = zip(*seconds, strict=True)
        table.row(what, min(wall), statistics.median(wall), statistics.median(busy))


def seconds_of(words: list[str], first_row_in: Path | None = None) -> Seconds:
    """Of main.py with these words: to its end, or until its first row stands below a folder, when it is killed."""
    output = [f"output_dir={first_row_in}"] if first_row_in else []
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "main.py", *words, *output], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        if first_row_in and any(file.stat().st_size for file in first_row_in.glob("*/*/metrics.jsonl")):
            process.kill()
            break
        time.sleep(LOOK_SECONDS)
    wall = time.monotonic() - began
    if process.wait() not in (0, -signal.SIGKILL):
        sys.exit(f"python main.py {' '.join(words)} failed; type it to see why")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
