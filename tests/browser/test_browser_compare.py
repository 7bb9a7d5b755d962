"""Tests of the comparison page in a browser: layout, filters and sorting."""

import pytest

from multitask_vl.reports.compare import compare_runs, comparison_page
from multitask_vl.reports.html import write_page
from multitask_vl.reports.run import read_run
from tests.chromium import Browser, check_print_layout, check_screen_layout
from tests.reports.run_folders import PRIMARY_METRICS, make_run, make_scenes


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """The page of three runs, one of them a shuffled-image control with a long name."""
    base = tmp_path_factory.mktemp("compare")
    scenes = make_scenes(base / "world")
    make_run(base / "runs" / "full", scenes, base / "world")
    make_run(base / "runs" / "seed43", scenes, base / "world", seed=43)
    long = "a_shuffled_control_whose_name_is_as_long_as_names_of_sweeps_are_adapter_mm1_0.001"
    make_run(base / "runs" / long, scenes, base / "world", accuracy=0.3, features__shuffle_images=True)
    runs = [read_run(base / "runs" / name) for name in ("full", "seed43", long)]
    return write_page(base / "comparison.html", comparison_page(compare_runs(runs)))


@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_screens_and_themes(browser: Browser, comparison, dark):
    check_screen_layout(browser, comparison, dark)


def test_differences_can_be_filtered_and_sorted(browser: Browser, comparison):
    with browser.open(comparison) as opened:
        page = opened.page
        region = page.get_by_role("region", name="Difference to full, split test", exact=True)
        rows = region.locator("tbody tr:visible")
        assert rows.count() == 8
        chips = page.locator("#differences ~ .chips").filter(has_text="task:").first
        chips.get_by_role("button", name="gqa").click()
        assert rows.count() == 2
        assert set(region.locator("tbody tr:visible td:nth-child(2)").all_inner_texts()) == {"gqa"}
        page.locator("#differences ~ .chips").filter(has_text="run:").first.get_by_role("button", name="seed43").click()
        assert rows.count() == 1
        chips.get_by_role("button", name="all").click()
        assert region.locator("tbody tr:visible td:nth-child(2)").all_inner_texts() == list(PRIMARY_METRICS)
        region.get_by_role("button", name="difference").click()
        values = [
            float(text.replace("−", "-"))
            for text in region.locator("tbody tr:visible td:nth-child(6)").all_inner_texts()
        ]
        assert values == sorted(values, reverse=True)
        assert opened.problems == []


def test_gallery_filters_by_better_run(browser: Browser, comparison):
    with browser.open(comparison) as opened:
        page = opened.page
        cards = page.locator("ul.items").first.locator("li.item:visible")
        total = cards.count()
        assert page.locator("img").count() > 20
        page.locator(".controls").first.get_by_role("button", name="seed43 better").click()
        assert 0 < cards.count() < total
        for card in cards.all():
            assert "seed43" in card.locator("dt.run").all_inner_texts()
        assert opened.problems == []


def test_page_prints_on_white(browser: Browser, comparison):
    check_print_layout(browser, comparison)
