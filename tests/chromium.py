"""Chromium for tests of pages, driven by Playwright; tests are skipped where it is missing."""

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
class OpenedPage:
    """An open page and its problems.

    Attributes:
        page: Playwright's page.
        problems: console errors, uncaught exceptions and failed requests.
        requested_urls: URLs of all requests.
    """

    page: object
    problems: list[str] = field(default_factory=list)
    requested_urls: list[str] = field(default_factory=list)

    def overflowing_elements(self) -> list[str]:
        """Elements of ``main`` and ``header`` that extend past the right edge of the window, except scrollable ones."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll('main *, header *')]
              .filter(e => !e.closest('.scroll, pre, svg') && e.getBoundingClientRect().right > innerWidth + 0.5)
              .map(e => e.tagName + '.' + e.className)"""
        )

    def broken_images(self) -> list[str]:
        """Text alternatives of images that cannot be decoded."""
        return self.page.evaluate(
            """async () => {
              for (const i of document.images) i.loading = 'eager';
              await Promise.all([...document.images].map(i => i.decode().catch(() => null)));
              return [...document.images].filter(i => !i.naturalWidth).map(i => i.alt || i.src);
            }"""
        )


class Browser:
    """A Chromium with an empty profile."""

    def __init__(self, chromium):
        self._chromium = chromium

    @contextmanager
    def open(
        self, address: Path | str, width: int = 1280, height: int = 900, dark: bool = False, javascript: bool = True
    ) -> Iterator[OpenedPage]:
        """Open a file or URL in a new context with a window of the given size."""
        context = self._chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            java_script_enabled=javascript,
        )
        try:
            opened = OpenedPage(context.new_page())
            page, problems = opened.page, opened.problems
            page.on("console", lambda message: message.type == "error" and problems.append(f"console: {message.text}"))
            page.on("pageerror", lambda error: problems.append(f"script: {error}"))
            page.on("request", lambda request: opened.requested_urls.append(request.url))
            page.on("requestfailed", lambda request: problems.append(f"request: {request.url[:200]} {request.failure}"))
            page.goto(address.resolve().as_uri() if isinstance(address, Path) else address)
            yield opened
        finally:
            context.close()


def check_screen_layout(browser: Browser, page_file: Path, dark: bool) -> None:
    """Assert that all images of a page load and nothing overflows on a wide and on a narrow screen."""
    with browser.open(page_file, dark=dark) as opened:
        page = opened.page
        assert opened.broken_images() == []
        for summary in page.locator("details > summary").all():
            summary.click()
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            assert opened.overflowing_elements() == [], width
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background != "rgb(255, 255, 255)") == dark
        assert opened.problems == []


def check_print_layout(browser: Browser, page_file: Path) -> None:
    """Assert that a page prints on white, without controls, and with no table wider than the paper."""
    with browser.open(page_file, 718, dark=True) as opened:
        page = opened.page
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.locator(".chips:visible, .controls:visible, nav:visible").count() == 0
        wide = "[...document.querySelectorAll('table')].filter(t => t.getBoundingClientRect().right > innerWidth + 1)"
        assert page.evaluate(f"{wide}.map(t => t.caption.textContent)") == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for the tests of a module."""
    if CHROMIUM is None:
        pytest.skip("no chromium or chrome is installed (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason='playwright is missing: pip install -e ".[dev]"')
    flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield Browser(chromium)
        chromium.close()
