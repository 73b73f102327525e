"""What README and DEVELOPING say is there, is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("which", ["main", "test"])
def test_readme_has_the_command_that_ci_runs(which: str) -> None:
    found = re.search(rf"<!-- command: {which} -->\n```\n(.+)\n```\n", README)
    assert found is not None and found.group(1).startswith("pip install -c requirements.lock -e ")


def test_readme_is_short_and_leads_to_every_page_and_group() -> None:
    assert len(README.splitlines()) < 200
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(re.findall(r"\(docs/([\w.]+)\)", README))
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()} - {"tuned"}
    assert groups <= set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))


def test_readme_has_no_placeholder_and_no_dead_picture() -> None:
    assert not re.search(r"@[A-Z_]+@", README)
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file(), picture


def test_developing_names_every_part_of_the_tree() -> None:
    text = (ROOT / "DEVELOPING.md").read_text()
    for path in (ROOT / "rlhf").iterdir():
        if path.name.startswith("_"):
            continue
        assert (f"{path.name}/" if path.is_dir() else path.name) in text, path.name


def test_every_file_that_a_text_names_is_there() -> None:
    texts = [ROOT / ".ci" / "run", *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "sweeps").glob("*.md")]
    for place in ("rlhf", "sweeps", "analysis", "tests", "conf"):
        texts += [path for path in (ROOT / place).rglob("*") if path.suffix in (".py", ".md", ".yaml")]
    for text in texts:
        for name in re.findall(
            r"(?<![\w/])(?:tests|rlhf|sweeps|analysis|docs|conf)/[\w/.-]*\.(?:py|md|yaml)\b", text.read_text()
        ):
            assert (ROOT / name).is_file(), (text, name)


def test_everything_is_printed_by_one_module() -> None:
    """What goes past it would be markup, or obeyed by the terminal."""
    for path in [
        ROOT / "main.py",
        *(path for place in ("rlhf", "sweeps", "analysis") for path in (ROOT / place).rglob("*.py")),
    ]:
        if path != ROOT / "rlhf" / "terminal.py":
            assert not re.search(r"(?<![\w.])print\(|\bConsole\(|traceback\.print_", path.read_text()), path


def test_imports_go_one_way() -> None:
    """analysis and sweeps know of what runs only options and errors; rlhf.config and rlhf.data know no torch."""
    forbidden = {
        "analysis": (
            r"^\s*(from|import) (rlhf\b(?!\.(config|errors|files|runs\.mirror|runs\.state|terminal|text|urls"
            r"|waiting)\b)|sweeps|torch|hydra)\b"
        ),
        "sweeps": (
            r"^\s*(from|import) rlhf\."
            r"(?!(config|errors|files|processes|run|runs\.lock|runs\.mirror|runs\.state|terminal|urls|waiting)\b)"
        ),
        "rlhf/config": r"^\s*(from|import) (torch|transformers|hydra)\b",
        "rlhf/text.py": r"^(from|import) (torch|transformers|rlhf\b(?!\.(errors|control_tokens)\b))",
        "rlhf/runs/state.py": r"^\s*(from|import) (torch|transformers|rlhf\b(?!\.(config|errors|files)\b))",
        "rlhf/runs/mirror.py": r"^\s*(from|import) (torch|transformers|rlhf\b(?!\.(config|errors|files)\b))",
        "rlhf/runs/lock.py": (
            r"^\s*(from|import) (torch|transformers|rlhf\b(?!\.(errors|files|runs\.state|terminal|waiting)\b))"
        ),
    }
    for folder, pattern in forbidden.items():
        place = ROOT / folder
        for path in [place] if place.is_file() else place.rglob("*.py"):
            assert not re.search(pattern, path.read_text(), re.MULTILINE), path
