"""What `mkdocs build` makes by itself: the page of all options, and pages of the texts that lie outside docs/.

Links are written as they work in the repository; here they are turned to the pages, so that a strict build checks them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

from sweeps.usage import described, group_files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "DEVELOPING.md": "developing.md",
    "CHANGELOG.md": "changelog.md",
    "sweeps/README.md": "results.md",
    "tests/benchmarks/README.md": "benchmarks.md",
}
"""Page by text outside docs/."""


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "options.md", content=options_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    sources = {name: source for source, name in PAGES.items()}
    text = PurePosixPath(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def turned(link: re.Match[str]) -> str:
        path, hash_, anchor = link[2].partition("#")
        if not path or "://" in path:
            return link[0]
        target = os.path.normpath(text.parent / path)
        target = PAGES.get(target) or os.path.relpath(target, "docs")
        return f"{link[1]}({target}{hash_}{anchor})"

    return re.sub(r"(\])\(([^()\s]+)\)", turned, markdown)


def options_page() -> str:
    lines = [
        "# Options",
        "",
        "A run is one file of each group, and single values on top: `python main.py algo=ppo seed=3 algo.kl.target=4`. "
        "This page is made from the classes in `rlhf/config/` and the files in `conf/`, as are `python main.py --help` "
        "and `python main.py --options`. The values stand in `conf/`; `python main.py ... --cfg job` prints those of a "
        "run. An option that a run does not read is refused when it is set. Files of your own lie in any folder: "
        "`--config-dir mine` finds `mine/experiment/name.yaml`; what an experiment sets for one algorithm alone stands "
        "in it under `algos: {apa: {lam: 0.3}}`.",
        "",
        "## Groups",
        "",
    ]
    for group, files in group_files(ROOT / "conf").items():
        lines += [f"### `{group}`", "", "| typed | what |", "| --- | --- |"]
        lines += [f"| `{group}={path.stem}` | {_cell(_first_sentence(path))} |" for path in files]
        lines.append("")
    section = None
    for option in described():
        name = option.path.partition(".")[0] if "." in option.path else "Of the whole run"
        if name != section:
            section = name
            title = name if "." not in option.path else f"`{name}`"
            lines += ["", f"## {title}", "", "| option | value | meaning |", "| --- | --- | --- |"]
        lines.append(f"| `{option.path}`{option.of_algos} | {_cell(option.kind)} | {_cell(option.meaning)} |")
    return "\n".join(lines) + "\n"


def _first_sentence(path: Path) -> str:
    """Of the comment that a file of conf/ begins with."""
    words = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        words += [] if line.startswith("# @package") else line.removeprefix("#").split()
    return re.split(r"(?<=[.:])\s(?=[A-Z])", " ".join(words), maxsplit=1)[0].rstrip(".:")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
