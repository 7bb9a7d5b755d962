"""Do comparisons pair what can be paired, say what cannot, and write one source as page, Markdown, LaTeX and CSV?"""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from multitask_vl.errors import InputError
from multitask_vl.metrics.bootstrap import interval_of_mean
from multitask_vl.reports.compare import TABLES, compared, comparison_page, tables_of
from multitask_vl.reports.paired import pair
from multitask_vl.reports.run import Prediction, read_run
from multitask_vl.reports.table import Range
from tests import tiny_run
from tests.reports.run_folders import HEADLINES


def runs_of(place, *names):
    return [read_run(place / "runs" / name) for name in names]


def rewrite(folder: Path, task: str, split: str, change) -> None:
    """Change a prediction file and its scores: ``change(rows, scores)``."""
    path = folder / "predictions" / task / f"{split}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    scores_path = path.with_name(f"{split}.per_example.json")
    scores = json.loads(scores_path.read_text())
    change(rows, scores)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores_path.write_text(json.dumps(scores))


def forget(folder: Path, split: str, task: str) -> None:
    """Take a task out of a run as if it had never been in it."""
    scores = json.loads((folder / "scores.json").read_text())
    for one in scores["splits"].values():
        one["tasks"].pop(task)
    (folder / "scores.json").write_text(json.dumps(scores))
    config = yaml.safe_load((folder / "resolved.yaml").read_text())
    config["tasks"].pop(task)
    (folder / "resolved.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def same_examples(place, copy, to="other") -> Path:
    """A copy of `full` whose model answers otherwise on some examples."""
    folder = copy("full", to)

    def change(rows, scores):
        for number, row in enumerate(rows):
            if number % 3 == 0:
                scores[row["id"]] = 100.0 - scores[row["id"]]
                row["prediction"] = "something else"

    for task in ("vqa", "gqa", "nlvr2"):
        rewrite(folder, task, "report", change)
    return folder


def test_differences_are_those_of_the_same_examples(place, copy):
    runs = [read_run(place / "runs" / "full"), read_run(same_examples(place, copy))]
    found = compared(runs)
    table = tables_of(found)["differences"][0]
    names = [column.name for column in table.columns]
    for row in table.rows:
        cells = dict(zip(names, row, strict=True))
        first, other = (run.predictions(cells["task"], "report") for run in runs)
        theirs = {one.id: one.score for one in other}
        gains = np.array([theirs[one.id] - one.score for one in first])
        assert (cells["run"], cells["items"]) == ("other", len(first))
        assert cells["difference"] == pytest.approx(gains.mean())
        assert cells["difference"] == pytest.approx(cells["score"] - cells["score of full"])
        interval = interval_of_mean(gains.tolist(), "examples")
        assert cells["95 % interval"] == Range(interval.low, interval.high)
        assert (cells["better"], cells["worse"]) == ((gains > 0).sum(), (gains < 0).sum())
    assert dict(zip(names, table.rows[-1], strict=True))["difference"] == 0
    kinds = tables_of(found)["kinds"][0]
    assert sum(row[4] for row in kinds.rows if row[1:3] == ("vqa", "answer type")) == 24


def test_examples_of_one_run_alone_or_changed_ones_are_left_out_and_told(place, copy):
    folder = copy("full", "other")

    def change(rows, scores):
        scores.pop(rows.pop()["id"])
        rows[0]["references"] = ["another"]

    rewrite(folder, "vqa", "report", change)
    table = tables_of(compared([read_run(place / "runs" / "full"), read_run(folder)]))["differences"][0]
    assert table.rows[0][2] == 22
    assert "vqa: 1 examples were scored in only one of full and other; left out." in table.notes
    assert any("vqa: 1 examples of full and other have one id but other pictures" in note for note in table.notes)
    nothing = pair([], [Prediction(id="a", images=[], text="", prediction="", references=[])])
    assert (nothing.differences, nothing.alone) == ([], 1)


def test_runs_with_unlike_tasks_and_splits_are_compared_where_they_meet(place, copy):
    folder = copy("full", "fewer")
    forget(folder, "report", "gqa")
    scores = json.loads((folder / "scores.json").read_text())
    del scores["splits"]["heldout"]
    (folder / "scores.json").write_text(json.dumps(scores))
    found = compared([read_run(place / "runs" / "full"), read_run(folder)])
    assert "Split heldout: not scored by fewer." in found.notes
    assert "Split report: only one of full and fewer was scored on gqa." in found.notes
    written = tables_of(found)
    names = [column.name for column in written["scores"][0].columns]
    ours, theirs = written["scores"][0].rows
    assert names[4:] == [*HEADLINES, "average"]
    assert (theirs[names.index("gqa")], theirs[-1]) == (None, None)
    assert ours[-1] is not None
    assert [row[1] for row in written["differences"][0].rows] == ["vqa", "nlvr2", "coco_caption"]
    assert ("tasks.gqa", "there", "absent") in written["settings"][0].rows
    assert not any(str(row[0]).startswith("tasks.gqa.") for row in written["settings"][0].rows)
    page = comparison_page(found)
    assert "Split heldout: not scored by fewer." in page
    apart = compared([read_run(folder), read_run(place / "runs" / "full")], split="heldout")
    assert tables_of(apart)["differences"] == []
    assert "Disagreements" not in comparison_page(apart)


def test_seeds_are_counted_together_and_twins_are_not(place, copy):
    written = tables_of(compared(runs_of(place, "full", "seed43", "blind")))
    assert [row[4] for row in written["seeds"][0].rows] == [2, 1]
    assert len(written["differences"][0].rows) == 8
    assert ("seed", "42", "43", "42") in written["settings"][0].rows
    twin = compared([read_run(place / "runs" / "full"), read_run(copy("full", "twin"))])
    assert any(
        "No means over seeds: " in note and "one configuration with one seed (42)" in note for note in twin.notes
    )
    assert tables_of(twin)["seeds"] == []
    assert tables_of(twin)["settings"][0].rows == ()


def test_disagreements_are_drawn_from_both_sides(place, copy):
    found = compared([read_run(place / "runs" / "full"), read_run(same_examples(place, copy))])
    page = comparison_page(found, items=4)
    assert page.count('<li class="item"') == 12
    assert page.count("full better") > 4
    assert page.count("other better") > 4
    assert "data:image/jpeg;base64," in page
    assert '<li class="item"' not in comparison_page(found, items=0)


def test_more_runs_than_colours_have_their_curves_left_out_and_told(place, copy):
    runs = [read_run(copy("full", f"run{i}")) for i in range(7)]
    page = comparison_page(compared(runs), items=0)
    assert "Curves are those of the first 6 of 7 runs." in page


def test_what_cannot_be_compared_is_refused(place, copy, tmp_path):
    full = read_run(place / "runs" / "full")
    with pytest.raises(InputError, match="needs two runs or more, got 1"):
        compared([full])
    with pytest.raises(InputError, match="named twice"):
        compared([full, full])
    with pytest.raises(InputError, match=r"no run was scored on 'test' \(there are: tune, report, heldout\)"):
        compared(runs_of(place, "full", "blind"), split="test")
    folder = copy("seed43")
    shutil.rmtree(folder / "predictions" / "vqa")
    with pytest.raises(InputError) as caught:
        compared([full, read_run(folder)])
    assert len(caught.value.problems) == 4
    scores = json.loads((folder / "scores.json").read_text())
    scores["splits"]["report"]["tasks"]["gqa"]["version"] = 9
    (folder / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(InputError, match="gqa was scored in different ways"):
        compared([full, read_run(folder)])
    same_name = Path(shutil.copytree(place / "runs" / "full", tmp_path / "again" / "full"))
    assert compared([full, read_run(same_name)]).first == str(full.folder)


def test_the_command_writes_every_form(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    full, blind = str(place / "runs" / "full"), str(place / "runs" / "blind")
    assert not tiny_run.launch("compare", full, blind)
    assert capsys.readouterr().out == "comparison: comparison.html\n"
    assert (tmp_path / "comparison.html").read_text().startswith("<!doctype html>")
    assert not tiny_run.launch("compare", full, blind, "--format", "csv", "--table", "differences", "--split", "report")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["task"] for row in rows] == list(HEADLINES)
    assert float(rows[0]["95 % interval low"]) <= float(rows[0]["difference"]) <= float(rows[0]["95 % interval high"])
    assert not tiny_run.launch("compare", full, blind, "--format", "latex", "--table", "scores", "--out", "scores.tex")
    assert (tmp_path / "scores.tex").read_text().count(r"\bottomrule") == 2
    assert not tiny_run.launch("compare", full, blind, "--format", "markdown")
    out = capsys.readouterr().out
    for said in (
        "**Split report: vqa accuracy",
        "**Difference to full, split report**",
        "**Parameters**",
        "**Settings",
    ):
        assert said in out
    for words, told in [
        ((full,), "needs two runs"),
        ((full, blind, "--items", "-1"), "--items: got -1"),
        ((full, blind, "--table", "scores"), "--table: a page has them all"),
        ((full, blind, "--format", "csv"), f"add --table with one of {', '.join(TABLES)}"),
        ((full, blind, "--format", "csv", "--table", "scores"), "choose one by --split"),
        ((full, blind, "--format", "csv", "--table", "seeds"), "there is none for these runs"),
        ((full, blind, "--format", "csv", "--table", "time", "--out", "no/x.csv"), "Run: mkdir -p no"),
    ]:
        assert tiny_run.launch("compare", *words) == 2
        assert told in capsys.readouterr().err
