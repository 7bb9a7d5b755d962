"""Are the pages a site: built without a warning, whole in a browser at two widths, with nothing from elsewhere?"""

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


def test_the_drawings_are_current():
    drawn = runpy.run_path(str(DOCS / "pictures.py"))["ALL"]
    assert set(drawn) == {path.name for path in DOCS.glob("routing_*.svg")}
    for name, draw in drawn.items():
        assert (DOCS / name).read_text() == str(draw()), "run: python docs/pictures.py"


def test_every_page_is_in_the_navigation():
    chapters = yaml.safe_load((tiny_run.ROOT / "mkdocs.yml").read_text())["nav"]
    named = sorted(page for chapter in chapters for pages in chapter.values() for page in pages)
    assert named == sorted([*(path.name for path in DOCS.glob("*.md")), "quickstart.md"]), "mkdocs.yml: nav"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("material", reason='mkdocs-material is missing: pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = tiny_run.environment(NO_MKDOCS_2_WARNING="1")
    done = subprocess.run(command, cwd=tiny_run.ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Says nothing of each request."""

    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_page_is_there_and_no_markdown_is_left_in_it(site):
    pages = {path.stem for path in DOCS.glob("*.md")} | {"quickstart"}
    assert {path.stem for path in site.glob("*.html")} == pages | {"404"}
    for path in site.glob("*.html"):
        text = path.read_text()
        assert "```" not in text, path.name
        left = [line for line in text.splitlines() if line.startswith(("| ", "|-"))]
        assert not left, (path.name, left[:1])


def test_all_of_it_in_a_browser(browser: Browser, site, address):
    """No error, no picture missing, nothing past the edge, at 1280 and at 390 pixels, and no other address asked."""
    for path in sorted(site.glob("*.html")):
        if path.stem == "404":
            continue
        with browser.open(f"{address}/{path.name}") as opened:
            for width in (1280, 390):
                opened.page.set_viewport_size({"width": width, "height": 900})
                assert opened.page.evaluate("document.documentElement.scrollWidth") <= width, (path.name, width)
            assert opened.broken_pictures() == [], path.name
            assert opened.problems == [], path.name
            assert [one for one in opened.asked if not one.startswith((address, "data:"))] == [], path.name


def test_the_search_finds_a_key(browser: Browser, address):
    with browser.open(f"{address}/index.html") as opened:
        # it has read its index then
        opened.page.get_by_text("Type to start searching").wait_for(state="attached")
        opened.page.locator("input[name=query]").press_sequentially("micro_batch_size")
        opened.page.locator(".md-search-result__item").first.wait_for()
        assert opened.problems == []
