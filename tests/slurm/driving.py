"""Drives sweeps on the test cluster as a user would, with runs that count instead of training."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.config import RunConfig
from rlhf.config.identity import run_folder
from sweeps.experiment import run_experiment
from tests.config.composed import config
from tests.slurm.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
COUNTING = "tests.sweeps.counting:execute"


class Sweep:
    """`python main.py -m hardware=slurm ...` in a folder of its own, on a cluster."""

    def __init__(self, cluster: Cluster, folder: Path, *, seconds: float = 0.3, target: str = COUNTING) -> None:
        """Args: seconds: of each counted iteration."""
        self.cluster = cluster
        self.folder = folder
        self.target = target
        self.root = ROOT
        self.environment = {**cluster.env, "COUNTING_SECONDS": str(seconds)}

    def places(self) -> list[str]:
        return [f"output_dir={self.folder}/runs", f"cache_dir={self.folder}/cache", "tracking=none"]

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(self.root / "main.py"), "-m", "hardware=slurm", *self.without_inputs()]
        command += [f"hydra.launcher.target={self.target}", *self.places(), *overrides]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def break_squeue(self) -> Path:
        """A file that makes squeue fail for this sweep's drivers while it is there."""
        folder, flag = self.folder / "bin", self.folder / "broken"
        folder.mkdir()
        real = shutil.which("squeue", path=self.environment["PATH"])
        script = (
            f'#!/bin/sh\n[ -e "{flag}" ] && echo "Unable to contact slurm controller" >&2 && exit 1\nexec {real} "$@"\n'
        )
        (folder / "squeue").write_text(script)
        (folder / "squeue").chmod(0o755)
        self.environment["PATH"] = f"{folder}:{self.environment['PATH']}"
        return flag

    def without_inputs(self) -> list[str]:
        """Neither SFT nor reference samples, and some file in place of a reward model: a sweep has no input runs."""
        file = self.folder / "reward"
        file.touch()
        return ["model.sft=false", f"reward.path={file}", "evaluation.reference_responses=0"]

    def finish(self, driver: subprocess.Popen[str], seconds: float = 240) -> str:
        """The driver's output; it must end by itself."""
        try:
            output, _ = driver.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            driver.kill()
            output, _ = driver.communicate()
            raise AssertionError(f"the driver hung:\n{output}\n{self.cluster.squeue('--states=all')}") from None
        return output

    def run(self, *overrides: str, seconds: float = 240) -> tuple[int, str]:
        """Exit code and output."""
        driver = self.start(*overrides)
        output = self.finish(driver, seconds)
        return driver.returncode, output

    def tool(self, *words: str) -> tuple[int, str]:
        """`python -m sweeps ...` on this sweep."""
        command = [sys.executable, "-m", "sweeps", *words]
        command.insert(4, str(self.folder / "runs/default"))
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def starts(self) -> list[dict[str, Any]]:
        """What each start of a run noted, in order."""
        file = self.folder / "started.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def starts_of(self, name: str) -> list[dict[str, Any]]:
        return [start for start in self.starts() if start["run"].startswith(name)]

    def wait_for_rows(self, name: str, count: int, seconds: float = 240) -> None:
        """Until the run whose id begins so has logged that many rows."""
        self.cluster.wait_until(lambda: len(self.rows(name)) >= count, seconds)

    def rows(self, name: str) -> list[str]:
        files = list((self.folder / "runs/default").glob(f"{name}*/metrics.jsonl"))
        return files[0].read_text().splitlines() if files else []

    def job(self, name: str) -> str:
        """The number of the job that the run was submitted as."""
        record = next((self.folder / "runs/default/jobs").glob(f"{name}*.json"))
        return json.loads(record.read_text())["job_id"]

    def status(self, name: str) -> str:
        file = next((self.folder / "runs/default").glob(f"{name}*/summary.json"), None)
        return json.loads(file.read_text())["status"] if file else "none"

    def fates(self, **fates: str) -> None:
        (self.folder / "fates.json").write_text(json.dumps(fates))

    def assert_as_undisturbed(self, tmp: Path, names: Sequence[str], *overrides: str) -> None:
        """Every run's metrics are those of a local run that nothing happened to."""
        tmp.mkdir()
        undisturbed = [self.local(tmp, name, *overrides) for name in names]
        run_experiment(undisturbed, self.target)
        for name, run in zip(names, undisturbed, strict=True):
            expected = (run_folder(run) / "metrics.jsonl").read_text().splitlines()
            assert list(map(without_time, self.rows(name))) == list(map(without_time, expected)), name
            assert self.status(name) == "finished"

    def local(self, tmp: Path, name: str, *overrides: str) -> RunConfig:
        algo, _, seed = name.partition("-s")
        places = (f"output_dir={tmp}/runs", f"cache_dir={tmp}/cache", "tracking=none")
        return config(f"algo={algo}", f"seed={seed}", *self.without_inputs(), *places, *overrides)


def without_time(line: str) -> dict[str, Any]:
    return {key: v for key, v in json.loads(line).items() if key != "seconds" and not key.startswith("perf/")}
