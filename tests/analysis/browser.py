"""A page in the Chromium that this machine has, through Playwright; what it takes, where it is missing."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NEEDED = "needs a browser: apt-get install chromium && pip install playwright"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Opened:
    """A page on which all charts are drawn, and what it complained of or asked for until now."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser; without its sandbox for root, who may not have one."""
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(
    browser: Browser, html: Path, width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True
) -> Iterator[Opened]:
    """`html` from its file, in a window of `width` pixels."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        java_script_enabled=scripts,
    )
    seen = Opened(context.new_page())
    seen.page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.goto(html.resolve().as_uri())
    if scripts:
        seen.page.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
        seen.page.wait_for_timeout(200)  # a chart follows its container's width a frame later
    yield seen
    context.close()
