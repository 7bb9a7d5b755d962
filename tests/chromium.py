"""A real browser for tests of pages: Debian's Chromium, driven by playwright; where it is absent, tests skip."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass
class Opened:
    """An open page and what went wrong in it.

    Attributes:
        page: playwright's page.
        problems: errors of the console, exceptions of scripts, requests that failed.
        asked: addresses of all requests.
    """

    page: object
    problems: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def past_the_edge(self) -> list[str]:
        """Elements of ``main`` and ``header`` that reach over the window's right edge, but for what scrolls itself."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll('main *, header *')]
              .filter(e => !e.closest('.scroll, pre, svg') && e.getBoundingClientRect().right > innerWidth + 0.5)
              .map(e => e.tagName + '.' + e.className)"""
        )

    def broken_pictures(self) -> list[str]:
        """Texts of pictures that show nothing."""
        return self.page.evaluate(
            """async () => {
              for (const i of document.images) i.loading = 'eager';
              await Promise.all([...document.images].map(i => i.decode().catch(() => null)));
              return [...document.images].filter(i => !i.naturalWidth).map(i => i.alt || i.src);
            }"""
        )


class Browser:
    """Opens pages in a Chromium with an empty profile."""

    def __init__(self, chromium):
        self._chromium = chromium

    @contextmanager
    def open(
        self, where: Path | str, width: int = 1280, height: int = 900, dark: bool = False, javascript: bool = True
    ) -> Iterator[Opened]:
        """A file or address in a window of a size, in a context of its own."""
        context = self._chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            java_script_enabled=javascript,
        )
        try:
            opened = Opened(context.new_page())
            page, problems = opened.page, opened.problems
            page.on("console", lambda said: said.type == "error" and problems.append(f"console: {said.text}"))
            page.on("pageerror", lambda error: problems.append(f"script: {error}"))
            page.on("request", lambda asked: opened.asked.append(asked.url))
            page.on("requestfailed", lambda asked: problems.append(f"request: {asked.url[:200]} {asked.failure}"))
            page.goto(where.resolve().as_uri() if isinstance(where, Path) else where)
            yield opened
        finally:
            context.close()


def check_on_paper(browser: Browser, page_file: Path) -> None:
    """A report's page prints on white, without what is there to be clicked, no table wider than the paper."""
    with browser.open(page_file, 718, dark=True) as opened:
        page = opened.page
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.locator(".chips:visible, .controls:visible, nav:visible").count() == 0
        cut = "[...document.querySelectorAll('table')].filter(t => t.getBoundingClientRect().right > innerWidth + 1)"
        assert page.evaluate(f"{cut}.map(t => t.caption.textContent)") == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser that ends with the module's tests."""
    if CHROMIUM is None:
        pytest.skip("no chromium or chrome is installed (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason='playwright is missing: pip install -e ".[dev]"')
    flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield Browser(chromium)
        chromium.close()
