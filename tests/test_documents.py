"""What README and DEVELOPING say is there, is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from analysis.diagnoses import CHECKS
from rlhf.config.build import ConfigError
from tests.config.composed import typed

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


@pytest.mark.parametrize("which", ["main", "test"])
def test_readme_has_the_command_that_ci_runs(which: str) -> None:
    found = re.search(rf"<!-- command: {which} -->\n```\n(.+)\n```\n", README)
    assert found is not None and found.group(1).startswith("pip install -c requirements.lock -e ")


def test_readme_is_short_and_leads_to_every_page_and_group() -> None:
    assert len(README.splitlines()) < 200
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(re.findall(r"\(docs/([\w.]+)\)", README))
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()} - {"tuned"}
    named = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", README, re.MULTILINE))
    assert groups <= set(named)
    for group in groups:
        assert set(named[group].split(", ")) <= {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}, group


def runs_of(text: str) -> list[list[str]]:
    """What each `python main.py` of a text's code blocks gives a run; of a sweep, a run of each algorithm.

    Left out are commands with an ellipsis, flags, and those that make no run of their own: a file of sweeps/, a chat.
    """
    found = []
    for block in re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in re.findall(r"^python main\.py (.*?)(?:  +#.*)?$", block, re.MULTILINE):
            words = [word for word in shlex.split(line) if word != "-m"]
            if any(word.startswith(("...", "--", "+sweep=", "stage=chat")) for word in words):
                continue
            algos = next((word[5:].split(",") for word in words if word.startswith("algo=")), ["apa"])
            values = [one_value(word) for word in words if not word.startswith("algo=")]
            found += [[f"algo={algo}", *values] for algo in algos]
    return found


def one_value(word: str) -> str:
    """The first of a swept option's values."""
    name, _, value = word.partition("=")
    return f"{name}={0 if value.startswith('range(') else value if value[:1] in '[{' else value.split(',')[0]}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_accepted(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Composed and checked as what was typed, where the files that it names lie."""
    monkeypatch.chdir(tmp_path)
    for name, source in {"my_rewards.py": "README.md", "my_algorithm.py": "algorithms.md"}.items():
        Path(name).write_text(re.findall(r"```python\n(.*?)```", PAGES[source], re.DOTALL)[0])
    refused = {}
    for words in runs_of(PAGES[page]):
        for path in (word.partition("=")[2] for word in words):
            if re.search(r"\.(jsonl|parquet|csv|gz)$|^runs/|MODEL$", path):
                Path(path).mkdir(parents=True, exist_ok=True)
        try:
            typed(*words)
        except ConfigError as error:
            refused[" ".join(words)] = error.problems
    assert refused == {}


def test_readme_has_no_placeholder_and_no_dead_picture() -> None:
    assert not re.search(r"@[A-Z_]+@", README)
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file(), picture


def test_every_diagnosis_is_explained() -> None:
    assert [check.what for check in CHECKS if check.what not in PAGES["report.md"]] == []


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
