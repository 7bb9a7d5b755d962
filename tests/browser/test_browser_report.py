"""Does the report work in a browser: sorted and filtered by clicking, whole without scripts, right at any width?"""

import pytest

from tests.chromium import Browser, check_on_paper
from tests.reports.run_folders import hostile_page


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return hostile_page(tmp_path_factory.mktemp("browser"))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_whole_in_every_width_and_theme(browser: Browser, report, width, dark):
    with browser.open(report, width, dark=dark) as opened:
        page = opened.page
        assert opened.broken_pictures() == []
        for summary in page.locator("details > summary").all():
            summary.click()
        assert opened.past_the_edge() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        small = (
            "[...document.querySelectorAll('.panel svg text')].filter(e => e.getBoundingClientRect().height < 9).length"
        )
        assert page.locator(".panel svg text").count() > 40
        assert page.evaluate(small) == 0
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground != "rgb(255, 255, 255)") == dark
        assert opened.problems == []


def test_tables_are_sorted_by_their_headings(browser: Browser, report):
    with browser.open(report) as opened:
        table = opened.page.locator("table.sortable").first
        rows = table.locator("tbody th")
        before = rows.all_inner_texts()
        assert before == ["vqa", "gqa", "nlvr2", "coco_caption"]
        head = table.locator("thead th", has_text="score")
        scores = table.locator("tbody td.score:nth-child(4)")
        head.locator("button").click()
        values = [float(text) for text in scores.all_inner_texts()]
        assert values == sorted(values, reverse=True)
        assert head.get_attribute("aria-sort") == "descending"
        head.locator("button").press("Enter")
        values = [float(text) for text in scores.all_inner_texts()]
        assert values == sorted(values)
        head.locator("button").press("Space")
        assert rows.all_inner_texts() == before
        assert head.get_attribute("aria-sort") is None
        table.locator("thead th").first.locator("button").click()
        assert rows.all_inner_texts() == sorted(before)
        assert opened.problems == []


def test_the_gallery_shows_errors_or_disagreements_alone(browser: Browser, report):
    with browser.open(report) as opened:
        page = opened.page
        shelf = page.locator("ul.items").first
        controls = page.locator(".controls").first
        cards = shelf.locator("li.item:visible")
        assert cards.count() == 24
        controls.get_by_role("button", name="wrong").click()
        assert cards.count() > 0
        for card in cards.all():
            assert "✗ wrong" in card.inner_text()
        assert controls.get_by_role("status").inner_text() == f"{cards.count()} of 24 shown"
        controls.get_by_role("button", name="runs disagree").click()
        for card in cards.all():
            marks = card.locator(".mark").all_inner_texts()
            assert len(marks) == 2
            assert marks[0] != marks[1]
        controls.get_by_role("button", name="all").click()
        assert cards.count() == 24
        controls.get_by_role("button", name="lowest score first").click()
        scores = [float(card.get_attribute("data-score")) for card in cards.all()]
        assert scores == sorted(scores)
        assert opened.problems == []


def test_without_scripts_nothing_is_missing_but_the_buttons(browser: Browser, report):
    with browser.open(report) as scripted, browser.open(report, javascript=False) as plain:
        assert scripted.page.locator("button").count() > 20
        assert plain.page.locator("button").count() == 0
        for what in ("li.item:visible", "table", "svg", "img"):
            assert plain.page.locator(what).count() == scripted.page.locator(what).count()
        assert plain.problems == []


def test_all_can_be_reached_by_the_keyboard(browser: Browser, report):
    with browser.open(report) as opened:
        page = opened.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the scores"
        assert page.locator(".skip").bounding_box()["x"] >= 0
        focusable = page.locator("a[href], button, summary, [tabindex='0']").count()
        seen = set()
        for _ in range(focusable + 1):
            seen.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
            page.keyboard.press("Tab")
        closed = page.locator("details:not([open]) [tabindex], details:not([open]) button").count()
        assert len(seen) >= focusable - closed


def test_on_paper_it_is_light_and_nothing_is_cut(browser: Browser, report):
    check_on_paper(browser, report)
