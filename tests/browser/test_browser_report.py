"""Tests of the report in a browser: layout, sorting, filters, keyboard, no scripts, print."""

import pytest

from tests.chromium import Browser, check_print_layout, check_screen_layout


@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_screens_and_themes(browser: Browser, hostile_report, dark):
    check_screen_layout(browser, hostile_report, dark)


@pytest.mark.parametrize("width", [1280, 390])
def test_chart_labels_are_readable(browser: Browser, hostile_report, width):
    small = "[...document.querySelectorAll('.panel svg text')].filter(e => e.getBoundingClientRect().height < 9).length"
    with browser.open(hostile_report, width) as opened:
        assert opened.page.locator(".panel svg text").count() > 40
        assert opened.page.evaluate(small) == 0


def test_table_headings_sort_rows(browser: Browser, hostile_report):
    with browser.open(hostile_report) as opened:
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


def test_gallery_filters_and_sorts_cards(browser: Browser, hostile_report):
    with browser.open(hostile_report) as opened:
        page = opened.page
        controls = page.locator(".controls").first
        cards = page.locator("ul.items").first.locator("li.item:visible")
        assert cards.count() == 24
        controls.get_by_role("button", name="wrong").click()
        texts = cards.all_inner_texts()
        assert texts
        assert all("✗ wrong" in text for text in texts)
        assert controls.get_by_role("status").inner_text() == f"{len(texts)} of 24 shown"
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


def test_page_is_complete_without_scripts(browser: Browser, hostile_report):
    with browser.open(hostile_report) as scripted, browser.open(hostile_report, javascript=False) as plain:
        assert scripted.page.locator("button").count() > 20
        assert plain.page.locator("button").count() == 0
        for selector in ("li.item:visible", "table", "svg", "img"):
            assert plain.page.locator(selector).count() == scripted.page.locator(selector).count()
        assert plain.problems == []


def test_keyboard_reaches_all_controls(browser: Browser, hostile_report):
    with browser.open(hostile_report) as opened:
        page = opened.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the scores"
        assert page.locator(".skip").bounding_box()["x"] >= 0
        page.evaluate(
            "window.focused = new Set([document.activeElement]);"
            "document.addEventListener('focusin', event => focused.add(event.target))"
        )
        focusable = page.locator("a[href], button, summary, [tabindex='0']").count()
        for _ in range(focusable):
            page.keyboard.press("Tab")
        hidden = page.locator("details:not([open]) [tabindex], details:not([open]) button").count()
        assert page.evaluate("focused.size") >= focusable - hidden


def test_page_prints_on_white(browser: Browser, hostile_report):
    check_print_layout(browser, hostile_report)
