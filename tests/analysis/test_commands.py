"""How the commands end: one line for what a user can mend, no traceback, and nothing lost that was printed."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.__main__ import main
from tests.analysis.made_up import config, rows, write_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    write_run(tmp_path / "s", "apa-s0", config("apa", 0), rows([0, 1], [0, 1]))
    return tmp_path / "s"


@pytest.mark.parametrize("output", ["/dev/null/x", "README.md", "/proc/x"])
def test_what_cannot_be_written_is_one_line(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    monkeypatch.chdir(sweep.parent)
    Path("README.md").touch()
    assert main(["report", str(sweep), "--output", output]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"analysis: {output}") and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (PermissionError(13, "Permission denied", "s/runs.csv"), 2, "analysis: s/runs.csv: Permission denied\n"),
        (ConnectionError("no\nserver"), 2, "analysis: no server\n"),
        (OSError(), 2, "analysis: OSError\n"),
    ],
)
def test_how_a_command_ends(
    sweep: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr("analysis.report.write_report", stop)
    assert main(["report", str(sweep)]) == code
    assert capsys.readouterr().err == said


def test_output_that_nobody_reads(sweep: Path) -> None:
    command = [sys.executable, "-m", "analysis", "report", str(sweep)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() != 0
    assert (sweep / "report.html").is_file()


def test_a_terminal_that_knows_ascii_alone(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["report", str(sweep)]) == 0
    sys.stdout.flush()
    assert b"0.00 ? 1.00" in written.getvalue()
