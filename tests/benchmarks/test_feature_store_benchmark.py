"""Benchmark of feature store layouts."""

from pathlib import Path

import pytest

from benchmarks import feature_store
from multitask_vl.errors import InputError
from multitask_vl.reports.markers import replace_section

ROOT = Path(__file__).resolve().parents[2]


def test_benchmark_reads_every_layout_and_updates_page(tmp_path):
    text = feature_store.compare(tmp_path, images=6, reads=8, rounds=1, start_method="fork")
    for name in (feature_store.PUBLISHED, "ours, get_many", "ours, get_many, cache: memory"):
        assert f"| {name}" in text
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- rates: begin -->\nold\n<!-- rates: end -->\nafter\n")
    replace_section(page, text, "rates")
    assert page.read_text() == f"before\n<!-- rates: begin -->\n{text}\n<!-- rates: end -->\nafter\n"
    with pytest.raises(InputError, match="needs the line '<!-- step: begin -->' once"):
        replace_section(page, text, "step")
    shown = (ROOT / "docs" / "feature_extraction.md").read_text()
    for name in ("rates", "step"):
        assert shown.count(f"<!-- {name}: begin -->") == shown.count(f"<!-- {name}: end -->") == 1
