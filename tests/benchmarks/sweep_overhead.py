"""What a launcher costs beyond the runs: `python -m tests.benchmarks.sweep_overhead`, our command line against Hydra's.

The others may live in an environment of their own (`--peer-python`), with hydra-core and, for the third row,
hydra-submitit-launcher. A run is one second of sleep. Overhead is what the command takes beyond ceil(runs / slots)
seconds, for each run; the peak of the driver's memory is its own.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.measuring import ROOT, Table

# A Hydra program that does as little as a run does; imports what ours imports before a run: nothing heavy.
PROGRAM = """
import time, hydra
@hydra.main(config_path=None, config_name=None, version_base="1.3")
def main(config):
    time.sleep(1.0)
if __name__ == "__main__":
    main()
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500, help="runs of our launcher")
    parser.add_argument("--peer-runs", type=int, default=60, help="runs of the others; 500 take half an hour")
    parser.add_argument("--slots", type=int, default=8, help="our runs at a time")
    parser.add_argument("--peer-python", default=sys.executable, help="python of the environment with the others")
    options = parser.parse_args(arguments)
    peers = {"hydra basic": (1, [])}
    submitit = [options.peer_python, "-c", "import hydra_plugins.hydra_submitit_launcher"]
    if subprocess.run(submitit, capture_output=True, check=False).returncode == 0:
        # Its local jobs all start together unless Hydra's sweeper hands them over in batches.
        batches = f"hydra.sweeper.max_batch_size={options.slots}"
        peers["hydra-submitit local"] = (options.slots, ["hydra/launcher=submitit_local", batches])
    table = Table("launcher", "runs", "slots", "seconds", "overhead a run, ms", "driver MB", width=22)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "program.py").write_text(PROGRAM)
        (folder / "reward").touch()
        # Each once, where both numbers of runs are equal.
        sizes = [(options.runs, options.slots), (options.peer_runs, options.slots), (options.peer_runs, 1)]
        for runs, slots in dict.fromkeys(sizes):
            measure(table, "ours", runs, slots, [sys.executable, *ours(folder, runs, slots)], folder)
        for peer, (slots, words) in peers.items():
            sweep = ["program.py", "-m", f"+seed=range(0,{options.peer_runs})", *words]
            measure(table, peer, options.peer_runs, slots, [options.peer_python, *sweep], folder)


def ours(folder: Path, runs: int, slots: int) -> list[str]:
    return [
        str(ROOT / "main.py"),
        "-m",
        f"seed=range(0,{runs})",
        f"hardware.parallel_runs={slots}",
        "hydra.launcher.target=tests.benchmarks.one_second:execute",
        "model.sft=false",
        f"reward.path={folder}/reward",
        f"output_dir={folder}/runs-{runs}-{slots}",
        f"cache_dir={folder}/cache",
        "tracking=none",
    ]


def measure(table: Table, name: str, runs: int, slots: int, command: list[str], folder: Path) -> None:
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = status
    overhead = (seconds - math.ceil(runs / slots)) / runs
    megabytes = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    table.row(name + (", failed" if status else ""), str(runs), str(slots), seconds, 1000 * overhead, megabytes)


if __name__ == "__main__":
    main()
