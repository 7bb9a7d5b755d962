"""Does the table of parameters count what the doctor counts, agree with the papers, and stand in the README?"""

from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml

from multitask_vl.config import load_config
from multitask_vl.doctor import parameter_report
from multitask_vl.errors import InputError
from multitask_vl.reproduction.parameters import NAME, as_markdown, as_text, markers, read_published, rows
from tests import tiny_run

CONFIGS = tiny_run.ROOT / "configs"
BEGIN, END = markers(NAME)
FOLDER = CONFIGS / "parameters"
PUBLISHED = CONFIGS / "published_percent.yaml"


@pytest.fixture(scope="module")
def table():
    """Every file of configs/parameters, counted."""
    return rows(sorted(FOLDER.glob("*.yaml")), read_published(PUBLISHED))


def test_the_readme_has_the_table_as_it_is_counted(table):
    readme = (tiny_run.ROOT / "README.md").read_text()
    stands = readme.split(BEGIN)[1].split(END)[0].strip()
    assert stands == as_markdown(table), "run: python launch/count_params.py --markdown README.md"


def test_every_count_is_the_published_one_as_far_as_that_was_printed(table):
    assert [row.name for row in table if row.agrees is False] == []
    assert {row.name for row in table if row.agrees} == set(yaml.safe_load(PUBLISHED.read_text()))
    assert all(re.search(r"Table \d", row.published.source) for row in table if row.published)


def test_the_parts_are_those_of_the_doctor(table):
    for row in table:
        assert row.trainable == row.language_model + row.visual_embedding + row.added
    report = parameter_report(load_config(FOLDER / "lora_single.yaml"))
    (lora,) = (row for row in table if row.name == "lora_single")
    assert (lora.trainable, lora.total, lora.added) == (report["trainable"], report["total"], 7_077_888)


def test_a_figure_that_is_another_one_is_told(tmp_path):
    path = tmp_path / "published.yaml"
    path.write_text("frozen: {percent: 1.1, source: 'A paper, Table 1'}\nbitfit: {percent: 1.20, source: Table 2}\n")
    found = rows([FOLDER / "frozen.yaml", FOLDER / "bitfit.yaml", FOLDER / "full.yaml"], read_published(path))
    assert [row.agrees for row in found] == [True, False, None]
    cells = [line.split("  ") for line in as_text(found).splitlines()]
    assert [" ".join(line).split()[-5:] for line in cells[1:3]] == [
        ["1.1", "A", "paper,", "Table", "1"],
        ["0", "1.20", "(differs)", "Table", "2"],
    ]
    assert "| 1.20 (differs) | Table 2 |" in as_markdown(found)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("frozen: {percent: lots, source: T}", "frozen.percent"),
        ("frozen: {percent: 120, source: T}", "less than or equal to 100"),
        ("frozen: {percent: 1.2}", "frozen.source"),
        ("frozen: {percent: 1.2, source: T, tabel: 1}", "frozen.tabel"),
        ("- 1.2", "valid dictionary"),
    ],
)
def test_published_figures_that_are_none(tmp_path, text, says):
    (tmp_path / "published.yaml").write_text(text)
    with pytest.raises(InputError, match=says):
        read_published(tmp_path / "published.yaml")


class TestCommand:
    """launch/count_params.py, on two files."""

    FILES = (str(FOLDER / "frozen.yaml"), str(FOLDER / "bitfit.yaml"))

    def test_print_and_json(self, capsys):
        assert tiny_run.launch("parameter_table", *self.FILES) == 0
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == 3
        assert "1,582,848 of 141,156,864" in printed[1]
        assert tiny_run.launch("parameter_table", *self.FILES, "--json") == 0
        frozen, bitfit = json.loads(capsys.readouterr().out)
        assert (frozen["published"], frozen["agrees"], frozen["trained"]["visual_embedding"]) == (None, None, 1_582_848)
        assert bitfit["published"] == {"percent": "1.21", "source": "VL-PET, Table 2"}
        assert (bitfit["trained"]["language_model"], round(bitfit["percent"], 4)) == (125_952, 1.2106)

    def test_what_stands_around_the_markers_stays(self, tmp_path, capsys):
        page = tmp_path / "page.md"
        page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
        assert tiny_run.launch("parameter_table", *self.FILES, "--markdown", str(page)) == 0
        lines = page.read_text().splitlines()
        assert lines[:2] == ["before", BEGIN]
        assert lines[-2:] == [END, "after"]
        assert "old" not in lines
        assert [line.split(" | ")[0] for line in lines[2:-2]] == ["| configuration", "| ---", "| frozen", "| bitfit"]
        again = page.read_text()
        assert tiny_run.launch("parameter_table", *self.FILES, "--markdown", str(page)) == 0
        assert page.read_text() == again

    def test_bad_input(self, tmp_path, capsys):
        page = tmp_path / "page.md"
        shutil.copy(tiny_run.ROOT / "LICENSE", page)
        for words, says in (
            ((*self.FILES, "--markdown", str(page)), "has no line"),
            ((*self.FILES, "--markdown", str(tmp_path / "absent.md")), "there is no file"),
            ((str(tmp_path / "absent.yaml"),), "absent.yaml"),
            ((str(CONFIGS / "base.yaml"),), "method: none given"),
        ):
            assert tiny_run.launch("parameter_table", *words) == 2
            said = capsys.readouterr().err
            assert says in said
            assert "Traceback" not in said
        assert page.read_bytes() == (tiny_run.ROOT / "LICENSE").read_bytes()
