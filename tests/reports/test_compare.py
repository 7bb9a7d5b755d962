"""Tests of comparisons of runs: paired differences, notes on what is not comparable, pages and tables."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from multitask_vl.errors import InputError
from multitask_vl.metrics.bootstrap import bootstrap_mean_ci
from multitask_vl.reports.compare import compare_runs, comparison_page, comparison_tables
from multitask_vl.reports.options import COMPARISON_TABLES
from multitask_vl.reports.paired import pair_predictions
from multitask_vl.reports.run import Prediction, read_run
from multitask_vl.reports.table import Range
from tests import tiny_run
from tests.reports.run_folders import PRIMARY_METRICS, edit_json, edit_yaml


def runs_of(base, *names):
    return [read_run(base / "runs" / name) for name in names]


def edit_predictions(folder: Path, task: str, split: str, change) -> None:
    """Change a prediction file and its scores with ``change(rows, scores)``."""
    path = folder / "predictions" / task / f"{split}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edit_json(path.with_name(f"{split}.per_example.json"), lambda scores: change(rows, scores))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def remove_task(folder: Path, task: str) -> None:
    """Remove a task from the scores and the configuration of a run."""
    edit_json(folder / "scores.json", lambda scores: [one["tasks"].pop(task) for one in scores["splits"].values()])
    edit_yaml(folder / "resolved.yaml", lambda config: config["tasks"].pop(task))


def copy_with_other_answers(copy_run, to="other") -> Path:
    """A copy of `full` with different predictions and scores for a third of the examples."""
    folder = copy_run("full", to)

    def change(rows, scores):
        for row in rows[::3]:
            scores[row["id"]] = 100.0 - scores[row["id"]]
            row["prediction"] = "something else"

    for task in ("vqa", "gqa", "nlvr2"):
        edit_predictions(folder, task, "test", change)
    return folder


def test_differences_are_paired_by_example(base, copy_run, no_charts):
    runs = [read_run(base / "runs" / "full"), read_run(copy_with_other_answers(copy_run))]
    comparison = compare_runs(runs)
    tables = comparison_tables(comparison)
    table = tables["differences"][0]
    names = [column.name for column in table.columns]
    for row in table.rows:
        cells = dict(zip(names, row, strict=True))
        first, other = (run.predictions(cells["task"], "test") for run in runs)
        other_scores = {one.id: one.score for one in other}
        gains = np.array([other_scores[one.id] - one.score for one in first])
        assert (cells["run"], cells["count"]) == ("other", len(first))
        assert cells["difference"] == pytest.approx(gains.mean())
        assert cells["difference"] == pytest.approx(cells["score"] - cells["score of full"])
        interval = bootstrap_mean_ci(gains.tolist(), "examples")
        assert cells["95 % interval"] == Range(interval.low, interval.high)
        assert (cells["better"], cells["worse"]) == ((gains > 0).sum(), (gains < 0).sum())
    assert dict(zip(names, table.rows[-1], strict=True))["difference"] == 0
    breakdowns = tables["breakdowns"][0]
    assert sum(row[4] for row in breakdowns.rows if row[1:3] == ("vqa", "answer type")) == 24
    page = comparison_page(comparison, items=4)
    assert page.count('<li class="item"') == 12
    assert page.count("full better") > 4
    assert page.count("other better") > 4
    assert "data:image/jpeg;base64," in page


def test_unpaired_and_changed_examples_are_skipped(base, copy_run):
    folder = copy_run("full", "other")

    def change(rows, scores):
        scores.pop(rows.pop()["id"])
        rows[0]["references"] = ["another"]

    edit_predictions(folder, "vqa", "test", change)
    table = comparison_tables(compare_runs([read_run(base / "runs" / "full"), read_run(folder)]))["differences"][0]
    assert table.rows[0][2] == 22
    assert "vqa: 1 examples skipped: scored in only one of full and other." in table.notes
    assert any("vqa: 1 examples skipped: same id but different images" in note for note in table.notes)
    pairs = pair_predictions([], [Prediction(id="a", images=[], text="", prediction="", references=[])])
    assert (pairs.differences, pairs.unpaired) == ([], 1)


def test_runs_with_other_tasks_and_splits_are_compared(base, copy_run, no_charts):
    folder = copy_run("full", "fewer")
    remove_task(folder, "gqa")
    edit_json(folder / "scores.json", lambda scores: scores["splits"].pop("ood"))
    comparison = compare_runs([read_run(base / "runs" / "full"), read_run(folder)])
    assert "Split ood: not scored by fewer." in comparison.notes
    assert "Split test: only one of full and fewer was scored on gqa." in comparison.notes
    tables = comparison_tables(comparison)
    names = [column.name for column in tables["scores"][0].columns]
    first, other = tables["scores"][0].rows
    assert names[4:] == [*PRIMARY_METRICS, "average"]
    assert (other[names.index("gqa")], other[-1]) == (None, None)
    assert first[-1] is not None
    assert [row[1] for row in tables["differences"][0].rows] == ["vqa", "nlvr2", "coco_caption"]
    assert ("tasks.gqa", "present", "absent") in tables["settings"][0].rows
    assert not any(str(row[0]).startswith("tasks.gqa.") for row in tables["settings"][0].rows)
    unshared = compare_runs([read_run(folder), read_run(base / "runs" / "full")], split="ood")
    assert comparison_tables(unshared)["differences"] == []
    page = comparison_page(unshared)
    assert "Split ood: not scored by fewer." in page
    assert "Disagreements" not in page


def test_seeds_are_averaged_and_duplicates_noted(base, copy_run):
    tables = comparison_tables(compare_runs(runs_of(base, "full", "seed43", "shuffled")))
    assert [row[4] for row in tables["seeds"][0].rows] == [2, 1]
    assert len(tables["differences"][0].rows) == 8
    assert ("seed", "42", "43", "42") in tables["settings"][0].rows
    duplicate = compare_runs([read_run(base / "runs" / "full"), read_run(copy_run("full", "duplicate"))])
    assert any("No means over seeds: " in n and "same configuration and seed (42)" in n for n in duplicate.notes)
    tables = comparison_tables(duplicate)
    assert tables["seeds"] == []
    assert tables["settings"][0].rows == ()


def test_page_limits_charts_to_six_runs(copy_run, no_charts):
    page = comparison_page(compare_runs([read_run(copy_run("full", f"run{i}")) for i in range(7)]), items=0)
    assert "Charts show the first 6 of 7 runs." in page
    assert {len(runs) for runs in no_charts} == {6}
    assert '<li class="item"' not in page


def test_compare_runs_rejects_bad_input(base, copy_run, tmp_path):
    full = read_run(base / "runs" / "full")
    with pytest.raises(InputError, match="needs two or more runs, got 1"):
        compare_runs([full])
    with pytest.raises(InputError, match="name each run once"):
        compare_runs([full, full])
    with pytest.raises(InputError, match="no run was scored on 'dev'; choose one of val, test, ood"):
        compare_runs(runs_of(base, "full", "shuffled"), split="dev")
    folder = copy_run("seed43")
    shutil.rmtree(folder / "predictions" / "vqa")
    with pytest.raises(InputError) as caught:
        compare_runs([full, read_run(folder)])
    assert len(caught.value.problems) == 4
    edit_json(folder / "scores.json", lambda s: s["splits"]["test"]["tasks"]["gqa"].update(version=9))
    with pytest.raises(InputError, match="gqa was scored in different ways"):
        compare_runs([full, read_run(folder)])
    same_name = Path(shutil.copytree(base / "runs" / "full", tmp_path / "again" / "full"))
    assert compare_runs([full, read_run(same_name)]).first == str(full.folder)


def test_compare_command_writes_all_formats(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    full, control = str(base / "runs" / "full"), str(base / "runs" / "shuffled")
    assert not tiny_run.launch("compare", full, control, "--items", "2")
    assert capsys.readouterr().out == "comparison: comparison.html\n"
    assert (tmp_path / "comparison.html").read_text().startswith("<!doctype html>")
    options = ("--format", "csv", "--table", "differences", "--split", "test")
    assert not tiny_run.launch("compare", full, control, *options)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["task"] for row in rows] == list(PRIMARY_METRICS)
    assert float(rows[0]["95 % interval low"]) <= float(rows[0]["difference"]) <= float(rows[0]["95 % interval high"])
    options = ("--format", "latex", "--table", "scores", "--out", "scores.tex")
    assert not tiny_run.launch("compare", full, control, *options)
    assert (tmp_path / "scores.tex").read_text().count(r"\bottomrule") == 2
    assert not tiny_run.launch("compare", full, control, "--format", "markdown")
    out = capsys.readouterr().out
    for title in ("**Split test: vqa accuracy", "**Difference to full, split test**", "**Parameters**", "**Settings"):
        assert title in out
    for arguments, message in [
        ((full,), "needs two or more runs"),
        ((full, control, "--items", "-1"), "--items: got -1"),
        ((full, control, "--table", "scores"), "--table: the page has them all"),
        ((full, control, "--format", "csv"), f"add --table with one of {', '.join(COMPARISON_TABLES)}"),
        ((full, control, "--format", "csv", "--table", "scores"), "choose one with --split"),
        ((full, control, "--format", "csv", "--table", "seeds"), "these runs have none"),
        ((full, control, "--format", "csv", "--table", "time", "--out", "no/x.csv"), "Run: mkdir -p no"),
    ]:
        assert tiny_run.launch("compare", *arguments) == 2
        assert message in capsys.readouterr().err
