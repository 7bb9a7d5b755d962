"""Tests of the documentation site: built without warnings, complete in a browser, without external requests."""

from __future__ import annotations

import functools
import http.server
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from tests import tiny_run
from tests.chromium import Browser

DOCS = tiny_run.ROOT / "docs"


def test_figures_are_current():
    figures = runpy.run_path(str(DOCS / "figures.py"))["ALL"]
    assert set(figures) == {path.name for path in DOCS.glob("routing_*.svg")} | {"overview.svg"}
    for name, draw in figures.items():
        assert (DOCS / name).read_text() == str(draw()), "run: python docs/figures.py"


def test_navigation_lists_every_page():
    chapters = yaml.safe_load((tiny_run.ROOT / "mkdocs.yml").read_text())["nav"]
    listed = sorted(page for chapter in chapters for pages in chapter.values() for page in pages)
    assert listed == sorted([*(path.name for path in DOCS.glob("*.md")), "quickstart.md"]), "mkdocs.yml: nav"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("material", reason='mkdocs-material is missing: pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = tiny_run.environment(NO_MKDOCS_2_WARNING="1")
    done = subprocess.run(command, cwd=tiny_run.ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class SilentHandler(http.server.SimpleHTTPRequestHandler):
    """A file server without request logs."""

    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(SilentHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_site_has_all_pages_without_raw_markdown(site):
    pages = {path.stem for path in DOCS.glob("*.md")} | {"quickstart"}
    assert {path.stem for path in site.glob("*.html")} == pages | {"404"}
    for path in site.glob("*.html"):
        text = path.read_text()
        assert "```" not in text, path.name
        raw_rows = [line for line in text.splitlines() if line.startswith(("| ", "|-"))]
        assert not raw_rows, (path.name, raw_rows[:1])


def test_site_pages_render_without_problems(browser: Browser, site, address):
    """No errors, broken images, horizontal overflow or external requests, at 1280 and at 390 pixels."""
    paths = [path for path in sorted(site.glob("*.html")) if path.stem != "404"]
    with browser.open(f"{address}/{paths[0].name}") as opened:
        for path in paths:
            opened.page.set_viewport_size({"width": 1280, "height": 900})
            opened.page.goto(f"{address}/{path.name}")
            for width in (1280, 390):
                opened.page.set_viewport_size({"width": width, "height": 900})
                assert opened.page.evaluate("document.documentElement.scrollWidth") <= width, (path.name, width)
            assert opened.broken_images() == [], path.name
            # Navigation aborts background requests of the previous page.
            assert [one for one in opened.problems if "net::ERR_ABORTED" not in one] == [], path.name
            assert [url for url in opened.requested_urls if not url.startswith((address, "data:"))] == [], path.name


def test_site_search_finds_config_key(browser: Browser, address):
    with browser.open(f"{address}/index.html") as opened:
        # This text appears once the search index is loaded.
        opened.page.get_by_text("Type to start searching").wait_for(state="attached")
        opened.page.locator("input[name=query]").press_sequentially("micro_batch_size")
        opened.page.locator(".md-search-result__item").first.wait_for()
        assert opened.problems == []
