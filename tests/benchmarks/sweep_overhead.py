"""What a launcher costs beside the runs: `python -m tests.benchmarks.sweep_overhead`, our command line against Hydra's.

The others may live in an environment of their own (`--peer-python`), with hydra-core and, for the third row,
hydra-submitit-launcher. A run is one second of sleep. Overhead is what the whole
command takes beyond ceil(runs / slots) seconds, for each run; the peak of the driver's memory is its own.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# A Hydra program that does as little as a run does; imports what ours imports before a run: nothing heavy.
PROGRAM = """
import time, hydra
@hydra.main(config_path=None, config_name=None, version_base="1.3")
def main(config):
    time.sleep(1.0)
if __name__ == "__main__":
    main()
"""


@dataclass(frozen=True)
class Measured:
    name: str
    runs: int
    slots: int
    seconds: float
    driver_mb: float
    failed: bool

    @property
    def overhead(self) -> float:
        """Seconds for each run."""
        return (self.seconds - math.ceil(self.runs / self.slots)) / self.runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500, help="runs of our launcher")
    parser.add_argument(
        "--peer-runs",
        type=int,
        default=60,
        help="runs of the others; 500 take half an hour",
    )
    parser.add_argument("--slots", type=int, default=8, help="our runs at a time")
    parser.add_argument("--peer-python", default=sys.executable, help="python of the environment with the others")
    options = parser.parse_args()
    ours = dict.fromkeys(
        [(options.runs, options.slots), (options.peer_runs, options.slots), (options.peer_runs, 1)]
    )  # each once, where both numbers of runs are one
    peers = {"hydra basic": (1, [])}
    if _has_submitit(options.peer_python):
        # Its local jobs all start at once unless Hydra's sweeper hands them over in batches.
        batches = f"hydra.sweeper.max_batch_size={options.slots}"
        peers["hydra-submitit local"] = (options.slots, ["hydra/launcher=submitit_local", batches])
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "program.py").write_text(PROGRAM)
        for runs, slots in ours:
            words = _ours(folder / f"ours-{runs}-{slots}", runs, slots)
            results.append(_measure("ours", sys.executable, runs, slots, words, folder))
        for peer, (slots, chosen) in peers.items():
            words = [str(folder / "program.py"), "-m", f"+seed=range(0,{options.peer_runs})", *chosen]
            results.append(_measure(peer, options.peer_python, options.peer_runs, slots, words, folder))
    _show(results)


def _ours(folder: Path, runs: int, slots: int) -> list[str]:
    places = [f"output_dir={folder}/runs", f"cache_dir={folder}/cache", "tracking=none"]
    folder.mkdir()
    (folder / "reward").touch()
    no_inputs = ["model.sft=false", f"reward.path={folder}/reward"]
    target = "hydra.launcher.target=tests.benchmarks.one_second:execute"
    return [
        str(ROOT / "main.py"),
        "-m",
        f"seed=range(0,{runs})",
        f"hardware.parallel_runs={slots}",
        target,
        *no_inputs,
        *places,
    ]


def _has_submitit(python: str) -> bool:
    imports = [python, "-c", "import hydra_plugins.hydra_submitit_launcher"]
    return subprocess.run(imports, capture_output=True, check=False).returncode == 0


def _measure(name: str, python: str, runs: int, slots: int, words: list[str], folder: Path) -> Measured:
    began = time.monotonic()
    process = subprocess.Popen([python, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    unit = 2**20 if sys.platform == "darwin" else 2**10
    measured = Measured(name, runs, slots, seconds, usage.ru_maxrss / unit, status != 0)
    print(measured, file=sys.stderr, flush=True)  # the whole takes half an hour
    return measured


def _show(results: list[Measured]) -> None:
    ours = results[0]
    print(f"{'launcher':22}{'runs':>6}{'slots':>7}{'seconds':>9}{'overhead a run':>16}{'to ours':>9}{'driver MB':>11}")
    for one in results:
        note = "  FAILED" if one.failed else ""
        print(
            f"{one.name:22}{one.runs:6}{one.slots:7}{one.seconds:9.1f}{one.overhead * 1000:13.0f} ms"
            f"{one.overhead / ours.overhead:9.1f}{one.driver_mb:11.0f}{note}"
        )


if __name__ == "__main__":
    main()
