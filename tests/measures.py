"""`python -m tests.measures`: how much a reader meets, counted. One run of APA is followed, then files are read.

Functions are those that run, with lambdas, without comprehensions and the bodies of modules and classes; a file counts
where one of its functions runs. Lines are all lines of the files, with blanks and docstrings.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("rlhf", "sweeps", "analysis", "main.py")
NETWORKS = ("rlhf/models", "rlhf/sampling")
"""An iteration is counted with and without them."""


def followed(overrides: list[str]) -> tuple[Counter[str], Counter[str]]:
    """{file: functions of it} that run before `execute`, and within the first `one_iteration`."""
    before: set[CodeType] = set()
    iteration: set[CodeType] = set()
    entered: set[CodeType] | None = before

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal entered
        code = frame.f_code
        if not code.co_filename.startswith(str(ROOT)):
            return
        if event == "call":
            if code.co_name == "execute" and entered is before:
                entered = None
            if code.co_name == "one_iteration" and not iteration:
                entered = iteration
            if entered is not None:
                entered.add(code)
        elif event == "return" and code.co_name == "one_iteration":
            entered = None

    import main

    sys.argv = ["main.py", *overrides]
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        with contextlib.suppress(SystemExit):
            main.main()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return by_file(before), by_file(iteration)


def by_file(codes: set[CodeType]) -> Counter[str]:
    """Of the product's functions, by file below the root."""
    functions = (
        code
        for code in codes
        if code.co_flags & inspect.CO_OPTIMIZED and code.co_name.strip("<>") in (code.co_name, "lambda")
    )
    paths = (Path(code.co_filename).relative_to(ROOT).as_posix() for code in functions)
    return Counter(path for path in paths if path.startswith(PRODUCT))


def lines(*paths: str) -> int:
    files = [
        file for path in paths for file in ([ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("*.py"))
    ]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def show() -> None:
    with tempfile.TemporaryDirectory() as folder:
        places = [f"output_dir={folder}/runs", f"cache_dir={folder}/cache"]
        before, iteration = followed(["algo=apa", "debug=one_step", "tracking=none", *places])
    loop = [path for path in iteration if not path.startswith(NETWORKS)]
    rows = {
        "functions before the run's own code, and their files": f"{before.total()} in {len(before)}",
        "files of one iteration of APA, without models/ and sampling/": f"{len(loop)} ({lines(*loop)} lines)",
        "files of one iteration of APA, with them": f"{len(iteration)}",
        "functions of one iteration of APA": f"{iteration.total()}",
        "lines of rlhf/ and sweeps/": f"{lines('rlhf', 'sweeps'):,}",
        "lines of analysis/": f"{lines('analysis'):,}",
        "lines of tests/": f"{lines('tests'):,}",
    }
    for name, value in rows.items():
        print(f"{name:62}{value:>22}")
    if "--files" in sys.orig_argv:
        for title, counts in {"one iteration": iteration, "before the run": before}.items():
            print(f"\n{title}:", *(f"  {path} ({count})" for path, count in sorted(counts.items())), sep="\n")


if __name__ == "__main__":
    show()
