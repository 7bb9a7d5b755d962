"""Does the page about several runs work in a browser: filtered and sorted by clicking, right at any width?"""

import pytest

from multitask_vl.reports.compare import compared, comparison_page
from multitask_vl.reports.html import write_page
from multitask_vl.reports.run import read_run
from tests.chromium import Browser, check_on_paper
from tests.reports.run_folders import HEADLINES, make_run, make_world


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """The page about three runs, one of them a blind control with a long name."""
    base = tmp_path_factory.mktemp("compare")
    world = make_world(base / "world")
    make_run(base / "runs" / "full", world, base / "world")
    make_run(base / "runs" / "seed43", world, base / "world", seed=43)
    long = "a_blind_control_whose_name_is_as_long_as_names_of_sweeps_are_adapter_mm1_0.001"
    make_run(base / "runs" / long, world, base / "world", skill=0.3, features__control="shuffled")
    runs = [read_run(base / "runs" / name) for name in ("full", "seed43", long)]
    return write_page(base / "comparison.html", comparison_page(compared(runs)))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_whole_in_every_width_and_theme(browser: Browser, comparison, width, dark):
    with browser.open(comparison, width, dark=dark) as opened:
        page = opened.page
        assert page.locator("img").count() > 20
        assert opened.broken_pictures() == []
        for summary in page.locator("details > summary").all():
            summary.click()
        assert opened.past_the_edge() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.problems == []


def test_differences_are_filtered_and_sorted_by_clicking(browser: Browser, comparison):
    with browser.open(comparison) as opened:
        page = opened.page
        region = page.get_by_role("region", name="Difference to full, split report", exact=True)
        rows = region.locator("tbody tr:visible")
        assert rows.count() == 8
        chips = page.locator("#differences ~ .chips").filter(has_text="task:").first
        chips.get_by_role("button", name="gqa").click()
        assert rows.count() == 2
        assert set(region.locator("tbody tr:visible td:nth-child(2)").all_inner_texts()) == {"gqa"}
        page.locator("#differences ~ .chips").filter(has_text="run:").first.get_by_role("button", name="seed43").click()
        assert rows.count() == 1
        chips.get_by_role("button", name="all").click()
        assert region.locator("tbody tr:visible td:nth-child(2)").all_inner_texts() == list(HEADLINES)
        region.get_by_role("button", name="difference").click()
        values = [
            float(text.replace("−", "-"))
            for text in region.locator("tbody tr:visible td:nth-child(6)").all_inner_texts()
        ]
        assert values == sorted(values, reverse=True)
        assert opened.problems == []


def test_the_gallery_shows_what_one_run_does_better(browser: Browser, comparison):
    with browser.open(comparison) as opened:
        page = opened.page
        shelf, controls = page.locator("ul.items").first, page.locator(".controls").first
        cards = shelf.locator("li.item:visible")
        every = cards.count()
        controls.get_by_role("button", name="seed43 better").click()
        assert 0 < cards.count() < every
        for card in cards.all():
            assert "seed43" in card.locator("dt.run").all_inner_texts()
        assert opened.problems == []


def test_on_paper_it_is_light_and_nothing_is_cut(browser: Browser, comparison):
    check_on_paper(browser, comparison)
