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
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("rlhf", "sweeps", "analysis", "main.py")
APART = ("rlhf/models", "rlhf/sampling")
"""Where networks are computed; an iteration is counted with and without them."""


class Followed:
    """The functions that a run enters: before `execute`, and within its first `one_iteration`."""

    def __init__(self) -> None:
        self.before: set[CodeType] = set()
        self.iteration: set[CodeType] = set()
        self.phase = "before"

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(str(ROOT)):
            return
        if event == "call":
            if code.co_name == "execute" and self.phase == "before":
                self.phase = "between"
            if code.co_name == "one_iteration" and self.phase == "between":
                self.phase = "iteration"
            if self.phase in ("before", "iteration"):
                getattr(self, self.phase).add(code)
        elif event == "return" and code.co_name == "one_iteration" and self.phase == "iteration":
            self.phase = "over"

    def run(self, overrides: list[str]) -> None:
        import main

        sys.argv = ["main.py", *overrides]
        threading.setprofile(self)
        sys.setprofile(self)
        try:
            with contextlib.suppress(SystemExit):
                main.main()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)


def by_file(codes: set[CodeType]) -> dict[str, int]:
    """{file below the root: functions of it}, of the product's own files."""
    counts: dict[str, int] = defaultdict(int)
    for code in codes:
        path = Path(code.co_filename).relative_to(ROOT).as_posix()
        function = code.co_flags & inspect.CO_OPTIMIZED and code.co_name.strip("<>") in (code.co_name, "lambda")
        if path.startswith(PRODUCT) and function:
            counts[path] += 1
    return dict(counts)


def lines(*paths: str) -> int:
    files = [
        file for path in paths for file in ([ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("*.py"))
    ]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        followed = Followed()
        followed.run(
            ["algo=apa", "debug=one_step", "tracking=none", f"output_dir={folder}/runs", f"cache_dir={folder}/cache"]
        )
    before, iteration = by_file(followed.before), by_file(followed.iteration)
    loop = {path: count for path, count in iteration.items() if not path.startswith(APART)}
    rows = [
        ("functions before the run's own code, and their files", f"{sum(before.values())} in {len(before)}"),
        ("files of one iteration of APA, without models/ and sampling/", f"{len(loop)} ({lines(*loop)} lines)"),
        ("files of one iteration of APA, with them", f"{len(iteration)}"),
        ("functions of one iteration of APA", f"{sum(iteration.values())}"),
        ("lines of rlhf/ and sweeps/", f"{lines('rlhf', 'sweeps'):,}"),
        ("lines of analysis/", f"{lines('analysis'):,}"),
        ("lines of tests/", f"{lines('tests'):,}"),
    ]
    for name, value in rows:
        print(f"{name:62}{value:>22}")
    if "--files" in sys.orig_argv:
        print("\none iteration:", *(f"  {path} ({count})" for path, count in sorted(iteration.items())), sep="\n")
        print("\nbefore the run:", *(f"  {path} ({count})" for path, count in sorted(before.items())), sep="\n")


if __name__ == "__main__":
    main()
