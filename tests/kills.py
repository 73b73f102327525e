"""`python -m tests.kills --count 100`: runs killed at random moments, typed again, and compared bit for bit.

SFT, reward model, RL of each algorithm, a sweep and a study, all tiny. Each is run once undisturbed; then the same is
killed (SIGKILL, with all that it has started in its process group) one to three times at moments drawn over its whole
work, begun again until it is through, and what it leaves is compared: rows of metrics without times, samples, final
weights, the last checkpoint's tensors and state, summaries, and of a study its trials. Sweeps and studies are commands;
a single run is a fork of this process, which imports and computes nothing, since imports take longer than the run.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from rlhf.config import RunConfig
from rlhf.run import execute
from tests.config.composed import config

ROOT = Path(__file__).resolve().parents[1]
LONGEST_SECONDS = 1200.0
"""Of one command, undisturbed, on a busy machine."""
COMMON = ["debug=one_step", "tracking=none", "hardware.threads=1", "model.width=32", "model.num_layers=2"]
SUPERVISED = ["steps=40", "eval_every=10"]
RL = ["rollout.iterations=6", "checkpoint.checkpoint_every=2", "evaluation.eval_every=2", "model.train.last_k=1"]
SEARCH = ["optimization.learning_rate=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.sampler=random"]


@dataclass(frozen=True)
class Kind:
    words: list[str]
    """What is typed after `python main.py`."""
    keeps: tuple[str, ...]
    """Inputs that are there beforehand, so that kills fall into the stage itself: starts of run ids."""


KINDS = {
    "sft": Kind(["stage=sft", *(f"sft.{one}" for one in SUPERVISED), "checkpoint.checkpoint_every=7"], ()),
    "reward_model": Kind(
        ["stage=reward_model", *(f"reward_model.{one}" for one in SUPERVISED), "checkpoint.checkpoint_every=7"],
        ("sft",),
    ),
    **{algo: Kind([f"algo={algo}", *RL], ("sft", "reward_model")) for algo in ("apa", "ppo", "awr")},
    "sweep": Kind(["-m", "algo=apa,awr", "seed=0,1", *RL, "hardware.parallel_runs=2"], ()),
    "study": Kind(["-m", *SEARCH, "hydra.sweeper.n_trials=3", *RL, "hardware.parallel_runs=1"], ()),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--count", type=int, default=100, help="kills in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", choices=sorted(KINDS), nargs="+", help="these kinds alone")
    parser.add_argument("--folder", type=Path, default=Path("kills"), help="for the runs; must not exist")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further command after so long")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    killed, differing = campaign(
        options.folder.absolute(), options.count, options.seed, options.only or list(KINDS), options.minutes
    )
    print(f"{killed} kills, {len(differing)} results that differ" + "".join(f"\n{line}" for line in differing))
    return 1 if differing else 0


def campaign(folder: Path, count: int, seed: int, names: list[str], minutes: float) -> tuple[int, list[str]]:
    """Kill `count` times, each kind in turn; returns the kills and a line for each result that differs."""
    draws, killed, differing, round_ = random.Random(seed), 0, [], 0
    ends = time.monotonic() + 60 * minutes
    undisturbed: dict[str, tuple[dict[str, Any], float]] = {}
    while killed < count and time.monotonic() < ends:
        name = names[round_ % len(names)]
        kind = KINDS[name]
        round_ += 1
        inputs = folder / name / "undisturbed"
        if name not in undisturbed:
            _finish(inputs, kind)
            undisturbed[name] = results(inputs), _seconds_of_work(inputs, kind)
        expected, seconds = undisturbed[name]
        own = folder / name / f"{round_:03d}"
        for kept in (inputs / "cache" / "inputs").glob("*"):
            if kept.is_dir() and kind.keeps and kept.name.startswith(kind.keeps):
                shutil.copytree(kept, own / "cache" / "inputs" / kept.name)
        times = _killed_at_random(own, kind, draws, seconds, min(draws.randint(1, 3), count - killed))
        killed += len(times)
        odd = _differences(expected, results(own))
        moments = ", ".join(f"{moment:.1f} s" for moment in times) or "never: it was faster"
        print(f"{name} killed after {moments} of {seconds:.1f} s: {'; '.join(odd) or 'the same'}", flush=True)
        differing += [f"{own}: {line}" for line in odd]
        if not odd:
            shutil.rmtree(own)
    return killed, differing


def _seconds_of_work(own: Path, kind: Kind) -> float:
    """Of all runs but the inputs that are kept, side by side as they may be."""
    runs = [path for path in own.rglob("summary.json") if not (kind.keeps and path.parent.name.startswith(kind.keeps))]
    return sum(json.loads(path.read_text())["wall_seconds"] for path in runs)


def _killed_at_random(own: Path, kind: Kind, draws: random.Random, seconds: float, kills: int) -> list[float]:
    """The runs until they are through; returns the moments of their kills, from the first that was at work."""
    times = []
    for _ in range(kills):
        began, moment = time.time(), draws.uniform(0.0, seconds)
        process = _start(own, kind)
        while _ended(process, 0.02) is None and not _at_work(own, began):
            pass
        if _ended(process, moment) is not None:
            break  # it was through before its time
        _kill(process)
        times.append(moment)
    _finish(own, kind)
    return times


def _at_work(own: Path, since: float) -> bool:
    """Whether a run has taken its folder since then."""
    with contextlib.suppress(FileNotFoundError):  # taken over just now
        return any(lock.stat().st_mtime > since for lock in own.rglob("lock.json"))
    return False


def _be_a_run(config: RunConfig, output: Path) -> None:
    os.setsid()
    with output.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.exit(0 if execute(config)["status"] == "finished" else 1)


def _ended(process: subprocess.Popen[bytes] | ForkProcess, seconds: float) -> int | None:
    """Its exit code; None where it is at work after so long."""
    if isinstance(process, ForkProcess):
        process.join(seconds)
        return process.exitcode
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)


def _start(own: Path, kind: Kind) -> subprocess.Popen[bytes] | ForkProcess:
    own.mkdir(parents=True, exist_ok=True)
    words = [*COMMON, *kind.words, f"output_dir={own / 'runs'}", f"cache_dir={own / 'cache'}"]
    if "-m" not in words:
        fork = multiprocessing.get_context("fork").Process(target=_be_a_run, args=(config(*words), own / "output.txt"))
        fork.start()
        return fork
    command = [sys.executable, str(ROOT / "main.py"), "-m", *(word for word in words if word != "-m")]
    with (own / "output.txt").open("ab") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)


def _finish(own: Path, kind: Kind) -> None:
    process = _start(own, kind)
    code = _ended(process, LONGEST_SECONDS)
    if code is None:
        _kill(process)
    if code != 0:
        said = (own / "output.txt").read_text(errors="replace").splitlines()[-5:]
        raise SystemExit("\n".join([f"{own}: {'no end' if code is None else code}", *said]))


def _kill(process: subprocess.Popen[bytes] | ForkProcess) -> None:
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGKILL)
    _ended(process, LONGEST_SECONDS)


def results(own: Path) -> dict[str, Any]:
    """What must not depend on kills, by file."""
    found: dict[str, Any] = {}
    for summary in sorted(own.rglob("summary.json")):
        folder, name = summary.parent, summary.parent.relative_to(own).as_posix()
        whole = json.loads(summary.read_text())
        found[f"{name}/summary"] = {key: value for key, value in whole.items() if key == "status" or "/" in key}
        found[f"{name}/metrics"] = [*_rows(folder / "metrics.jsonl")]
        for file in sorted([*folder.glob("samples.jsonl"), *folder.glob("final/*"), *_last_tensors(folder)]):
            found[f"{name}/{file.relative_to(folder)}"] = hashlib.sha256(file.read_bytes()).hexdigest()
        found[f"{name}/state"] = _last_state(folder)
    for journal in own.rglob("study.journal"):
        found["study"] = _trials(journal)
    return found


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text().splitlines():
        row = json.loads(line)
        yield {key: value for key, value in row.items() if key != "seconds" and not key.startswith("perf/")}


def _last_tensors(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoints/[0-9]*/tensors.safetensors"))[-1:]


def _last_state(folder: Path) -> dict[str, Any]:
    """But for times, and what follows from how many digits they have."""
    state = json.loads(sorted(folder.glob("checkpoints/[0-9]*/state.json"))[-1].read_text())
    return {key: value for key, value in state.items() if key not in ("seconds", "log_lengths", "state_sha256")}


def _trials(journal: Path) -> list[Any]:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(journal)))
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    return [(trial.number, trial.state.name, trial.params, trial.values) for one in studies for trial in one.trials]


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    names = dict.fromkeys([*expected, *found])
    return [f"{name} differs" for name in names if expected.get(name) != found.get(name)]


if __name__ == "__main__":
    sys.exit(main())
