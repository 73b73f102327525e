"""`python -m tests.analysis.screenshot runs/<sweep> OUT.png [--dark] [--width N] [--height N]`: its report's picture.

The whole page, or its first `--height` pixels. README's: `runs/default docs/report.png --height 1190`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.analysis.browser import chromium, opened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep_folder", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int)
    options = parser.parse_args()
    html = options.sweep_folder / "report.html"
    with (
        chromium() as browser,
        opened(browser, html, options.width, options.height or 900, options.dark) as seen,
    ):
        seen.page.screenshot(path=options.picture, full_page=options.height is None)


if __name__ == "__main__":
    main()
