"""The command line: mistakes are one line and exit code 2, help is quick, a sweep ends in a table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import main
from rlhf.config import ALGO_CONFIGS
from rlhf.config.build import option_types

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = "hydra.launcher.target=tests.sweeps.counting:execute"
HEAVY = ("torch", "transformers", "optuna", "wandb", "altair", "pandas", "peft", "submitit")
ALGOS = ", ".join(sorted(ALGO_CONFIGS))


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """`python main.py ...` in this process and an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
        code: Any = 0
        try:
            main.main()
        except SystemExit as left:
            code = left.code
        return code, *capsys.readouterr()

    return run


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "main.py"), *arguments]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=250)


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["algo.name=ppo"], ["config error: algo.name: typed as algo=NAME"]),
        (["+algo.lamda=1"], ["config error: algo.lamda: no such option; did you mean algo.lam?"]),
        (
            ["-m", "algo=apaa,ppo"],
            [f"config error: algo=apaa: no such option; did you mean apa? There are {ALGOS}"],
        ),
        (
            ["rollout.sampling=nonsense"],
            ["config error: rollout.sampling: 'nonsense' is not one of fast, plain, vllm"],
        ),
        (
            ["dataset.path=pairs.jsonl", "model.path=mine"],
            [
                "config error: dataset.path: dataset=letters does not read it; leave it out, or use "
                "dataset=preferences or dataset=prompts or dataset=hh or dataset=tldr or dataset=stackexchange or "
                "dataset=reviews",
                "config error: model.path: model.source=random does not read it; leave it out, or use model=hub",
            ],
        ),
        (
            ["algo=apa,ppo"],
            ["config error: algo=apa,ppo: several values need -m, as in python main.py -m algo=apa,ppo"],
        ),
        (
            ["+sweep=frontier", "hydra.sweeper.n_trials=3"],
            [
                "config error: +sweep=frontier: a sweep's file needs -m, as in python main.py -m +sweep=frontier",
                "config error: hydra.sweeper.n_trials=3: a setting of sweeps needs -m, as in python main.py -m "
                "hydra.sweeper.n_trials=3",
            ],
        ),
        (["hardware=gpu"], ["config error: hardware.device: cuda, but this machine shows no GPU; use hardware=cpu"]),
        (
            ["algo=ppo", "-m", "algo.kl.controller=fixed,adaptive", "algo.kl.target=4"],
            [
                "config error: algo.kl.controller=fixed: algo.kl.target: algo.kl.controller=fixed does not read it; "
                "leave it out, or use algo.kl.controller=adaptive"
            ],
        ),
        (
            ["hardware.slurm.partition=a"],
            [
                "config error: hardware.slurm.partition: hardware=cpu or gpu does not read it; leave it out, or use "
                "hardware=slurm"
            ],
        ),
        (
            ["-m", "seed=0,abc", "algo=apa,ppo", "optimization.betas=[0.9]"],
            [
                "config error: seed=0 algo=apa (and 1 more): optimization.betas: 1 numbers; AdamW has two",
                "config error: seed=abc algo=apa (and 1 more): seed: 'abc' is not an integer",
            ],
        ),
        (
            ["-m", "hardware=cpu,gpu"],
            ["config error: hardware: no sweep axis, since other hardware gives other bits; choose one"],
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_launched(tmp_path, typed, arguments, lines):
    code, output, errors = typed(*arguments, STAND_IN)
    assert code == 2
    assert sorted(errors.splitlines()) == sorted(lines)
    assert output == ""
    assert list(tmp_path.iterdir()) == []


def test_help_fits_a_screen_and_names_every_group(typed):
    pages = [typed(word)[1] for word in ("--help", "help")]
    assert pages[0] == pages[1]
    lines = pages[0].splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    assert {folder.name for folder in (ROOT / "conf").iterdir() if folder.is_dir()} - {"tuned"} <= set(pages[0].split())


def test_every_option_is_listed_with_its_meaning(typed):
    whole = typed("--options")[1]
    assert all(f"\n{path}" in f"\n{whole}" for path in option_types()) and "algo.name" not in whole
    kl = typed("--options", "algo.kl")[1]
    assert "algo.kl.target (algo=ppo): number > 0" in kl.splitlines() and "seed" not in kl
    wrong = "config error: --options optimisation: no such option or section; did you mean optimization?\n"
    assert typed("--options", "optimisation") == (2, "", wrong)


@pytest.mark.parametrize("arguments", [["--help"], ["--options"], ["--cfg", "job", "algo=ppo"]])
def test_help_and_cfg_import_nothing_heavy(tmp_path, arguments):
    program = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
sys.argv = ["main.py", *{arguments!r}]
try:
    runpy.run_path({str(ROOT / "main.py")!r}, run_name="__main__")
finally:
    print("heavy:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr
    assert "ratio_clip: 0.2" in done.stdout or "--cfg" not in arguments


def test_a_single_run_imports_no_launcher_study_or_display(tmp_path):
    program = f"""
import runpy, sys, types
sys.path.insert(0, {str(ROOT)!r})

def execute(run):
    print("imported:", *sorted(name for name in sys.modules if name.startswith("sweeps.") or name in {HEAVY!r}))
    return {{"status": "finished"}}

sys.modules["rlhf.run"] = types.SimpleNamespace(execute=execute)
sys.argv = ["main.py", "algo=apa"]
runpy.run_path({str(ROOT / "main.py")!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    (imported,) = [line for line in done.stdout.splitlines() if line.startswith("imported: ")]
    allowed = {"chat", "command_line", "machine", "runs", "settings", "single", "sources", "usage"}
    assert set(imported.split()[1:]) == {f"sweeps.{name}" for name in allowed}
    finished = [line for line in done.stdout.splitlines() if " finished" in line]
    assert len(finished) == 1, done.stdout  # and its end is told once


def test_hydras_keys_pass(tmp_path, typed):
    code, output, errors = typed("--cfg", "job", "-p", "algo", "hydra.job.name=x", "~tracking.tags", "++algo.lam=0.25")
    assert code == 0, errors
    assert "lam: 0.25" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("words", "sampling"), [([], "fast"), (["rollout=plain"], "plain")])
def test_a_way_of_sampling_is_a_group(typed, words, sampling):
    code, output, errors = typed(*words, "--cfg", "job", "-p", "rollout")
    assert code == 0, errors
    assert f"sampling: {sampling}" in (line.strip() for line in output.splitlines())


def test_a_sweep_from_any_folder_goes_on_when_typed_again_and_ends_in_a_table(tmp_path, typed):
    arguments = ["-m", "algo=apa,awr", "seed=range(2)", "sweep_name=first", STAND_IN]
    (tmp_path / "fates.json").write_text(json.dumps({"awr-s1": "raise"}))
    code, output, _ = typed(*arguments)
    assert code == 1
    assert "3 of 4 runs finished" in output
    assert output.splitlines()[-1].startswith("rerun just these: python ")

    (tmp_path / "fates.json").write_text("{}")
    done = command(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "4 runs, 3 finished earlier" in done.stdout and "4 of 4 runs finished" in done.stdout
    assert "report: runs/first/report.html" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "fates.json", "runs", "started.jsonl"]
    ids = sorted(folder.name[:6] for folder in (tmp_path / "runs/first").iterdir() if folder.name[:3] in ("apa", "awr"))
    assert ids == ["apa-s0", "apa-s1", "awr-s0", "awr-s1"]

    again = typed(*arguments)[1]
    assert "all 4 runs finished" in again and "report: runs/first/report.html" in again
    assert len((tmp_path / "started.jsonl").read_text().splitlines()) == 8  # 4 runs, one twice, 3 inputs


@pytest.mark.parametrize("wrapped", [False, True])
def test_ctrl_c_is_told_as_such_also_where_a_library_wraps_it(monkeypatch, capsys, wrapped):
    """transformers raises a ModuleNotFoundError out of an import that Ctrl-C broke off."""

    def broken_off(_: list[str]) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interruption:
            if wrapped:
                raise ModuleNotFoundError("Could not import module 'PreTrainedModel'") from interruption
            raise

    monkeypatch.setattr(main, "_hydra", broken_off)
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on where it stopped\n"
