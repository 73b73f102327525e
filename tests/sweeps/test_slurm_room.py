"""Several arrays together keep to hardware.parallel_runs, which each array keeps by itself."""

from __future__ import annotations

from rlhf.config.identity import run_folder
from sweeps import slurm_launcher
from sweeps.slurm_launcher import SlurmRuns
from tests.config.composed import config


def test_no_more_jobs_than_parallel_runs(tmp_path, monkeypatch):
    sent: list[int] = []

    def submit(packs, slots, dependency):
        sent.append(len(packs))
        return [f"{len(sent)}_{index}" for index in range(len(packs))]

    monkeypatch.setattr(slurm_launcher, "submit", submit)
    monkeypatch.setattr(slurm_launcher.Queue, "refresh", lambda self: None)
    launcher = SlurmRuns()
    launcher._slots = 4
    runs = [
        config("hardware=slurm", f"seed={seed}", f"output_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache")
        for seed in range(11)
    ]
    for run in runs[:6]:
        launcher.announce(run)
        launcher.submit(run)
    launcher.poll()
    assert sent == [6]  # one array, which SLURM limits to 4 at a time
    for run in runs[6:]:
        launcher.announce(run)
        launcher.submit(run)
    launcher.poll()
    assert sent == [6]
    for run in runs[:3]:
        slurm_launcher.outcome_path(run).write_text('{"status": "finished", "reason": ""}')
    launcher._looked_at = 0.0
    assert {outcome.folder for outcome in launcher.poll()} == {run_folder(run) for run in runs[:3]}
    launcher.poll()
    assert sent == [6, 1]  # three of the six are left
