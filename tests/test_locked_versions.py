"""requirements.lock against pyproject.toml; no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.locked_versions import LOCK, ROOT, problems

PROJECT = (ROOT / "pyproject.toml").read_text()
LOCKED = (ROOT / LOCK).read_text()
PINNED_OPTUNA = next(line for line in LOCKED.splitlines() if line.startswith("optuna==")).replace("==", " ")


def test_the_lock_fits_pyproject():
    assert problems() == [], "run `make lock`"


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ('"torch>=2', '"torch>2', "the requirements of pyproject.toml changed"),
        ('requires-python = ">=3.11', 'requires-python = ">=3.12', "the requirements of pyproject.toml changed"),
        ('"optuna>=5,<6"', '"optuna>=6,<7"', f"{PINNED_OPTUNA} is not <7,>=6"),
        (
            '"playwright>=1.50,<2"',
            '"playwright>=1.50,<2", "nowhere"',
            "nowhere is not in it for Python 3.13",
        ),
    ],
)
def test_what_pyproject_has_gained_since_is_found(tmp_path: Path, before: str, after: str, problem: str):
    assert before in PROJECT
    (tmp_path / "pyproject.toml").write_text(PROJECT.replace(before, after))
    (tmp_path / LOCK).write_text(LOCKED)
    assert problem in problems(tmp_path)


def test_a_pin_for_some_pythons_alone_is_found(tmp_path: Path):
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / LOCK).write_text(LOCKED.replace("\ntorch==", "\n# torch=="))
    assert problems(tmp_path) == [f"torch is not in it for Python {python}" for python in ("3.11", "3.12", "3.13")]
    with_marker = LOCKED.replace("\nwandb==", "\nwandb==0.0.1 ; python_full_version < '3.12'\nwandb-moved==")
    (tmp_path / LOCK).write_text(with_marker)
    assert any(line.startswith("wandb 0.0.1 is not <1,>=") for line in problems(tmp_path))
    assert "wandb is not in it for Python 3.12" in problems(tmp_path)
