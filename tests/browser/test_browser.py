"""Tests of the browser helper: it detects errors, broken images and overflowing elements."""

import pytest

from tests.chromium import Browser

VALID = "<!doctype html><title>t</title><main><p>valid</p></main>"
INVALID = """<!doctype html><title>t</title><main><img src="missing.png" alt="a missing image">
<p class="wide" style="width: 800px">wide</p></main><script>console.error("logged"); throw new Error("thrown")</script>
"""


@pytest.mark.parametrize("dark", [False, True])
def test_valid_page_has_no_problems(browser: Browser, tmp_path, dark):
    (tmp_path / "page.html").write_text(VALID)
    with browser.open(tmp_path / "page.html", 390, dark=dark) as opened:
        assert opened.problems == opened.broken_images() == opened.overflowing_elements() == []
        assert opened.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == dark


def test_problems_are_detected(browser: Browser, tmp_path):
    (tmp_path / "page.html").write_text(INVALID)
    with browser.open(tmp_path / "page.html", 390) as opened:
        assert opened.broken_images() == ["a missing image"]
        assert opened.overflowing_elements() == ["P.wide"]
        assert [url.split("/")[-1] for url in opened.requested_urls] == ["page.html", "missing.png"]
        problems = "\n".join(opened.problems)
        for part in ("console: logged", "script: thrown", "missing.png"):
            assert part in problems
