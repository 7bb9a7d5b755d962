"""Does the browser of tests see what is wrong with a page: errors, missing pictures, what is too wide?"""

import pytest

from tests.chromium import Browser

RIGHT = "<!doctype html><title>t</title><main><p>right</p></main>"
WRONG = """<!doctype html><title>t</title><main><img src="absent.png" alt="a missing picture">
<p class="wide" style="width: 800px">wide</p></main><script>console.error("said"); throw new Error("thrown")</script>"""


@pytest.mark.parametrize("dark", [False, True])
def test_a_page_without_faults_has_none(browser: Browser, tmp_path, dark):
    (tmp_path / "page.html").write_text(RIGHT)
    with browser.open(tmp_path / "page.html", 390, dark=dark) as opened:
        assert opened.problems == opened.broken_pictures() == opened.past_the_edge() == []
        assert opened.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == dark


def test_faults_are_seen(browser: Browser, tmp_path):
    (tmp_path / "page.html").write_text(WRONG)
    with browser.open(tmp_path / "page.html", 390) as opened:
        assert opened.broken_pictures() == ["a missing picture"]
        assert opened.past_the_edge() == ["P.wide"]
        assert [address.split("/")[-1] for address in opened.asked] == ["page.html", "absent.png"]
        said = "\n".join(opened.problems)
        for part in ("console: said", "script: thrown", "absent.png"):
            assert part in said
