"""Tests of the parts of a report: breakdowns, confusion tables, parameters, time, and printed tables."""

import csv
import io
import json
import random

import pytest

from multitask_vl.cli.main import main
from multitask_vl.metrics.bootstrap import bootstrap_mean_ci
from multitask_vl.reports.breakdowns import breakdown_tables
from multitask_vl.reports.confusion import OTHER, confusion
from multitask_vl.reports.cost import mixture_table, parameter_table, time_table
from multitask_vl.reports.gallery import read_predictions
from multitask_vl.reports.page import render_report
from multitask_vl.reports.run import Prediction, read_run
from multitask_vl.reports.table import Range
from tests.reports.run_folders import edit_json


def predictions(pairs) -> list[Prediction]:
    """Predictions from (references, predicted answer) pairs."""
    return [
        Prediction(id=str(i), images=[], text="", prediction=predicted, references=references)
        for i, (references, predicted) in enumerate(pairs)
    ]


# ---- breakdowns


def test_breakdown_has_counts_and_intervals(base):
    run, control = read_run(base / "runs" / "full"), read_run(base / "runs" / "shuffled")
    rows = read_predictions(run, "test")
    (by_answer, by_question) = breakdown_tables(run, "test", control, rows)["vqa"]
    names = [column.name for column in by_answer.columns]
    assert names == ["answer type", "count", "score", "95 % interval", "shuffled images", "difference"]
    for group, count, score, interval, control_score, difference in by_answer.rows:
        scores = [one.score for one in rows["vqa"] if one.groups["answer_type"] == group]
        expected = bootstrap_mean_ci(scores, "examples")
        assert (count, interval) == (len(scores), Range(expected.low, expected.high))
        assert score == pytest.approx(sum(scores) / len(scores))
        assert difference == pytest.approx(score - control_score)
    assert by_answer.notes[0].startswith("95 % interval: percentile bootstrap")
    # No prediction has a question type.
    assert [column.name for column in by_question.columns] == ["question type", "score", *names[-2:]]
    assert by_question.notes == ()


def test_breakdown_without_groups_has_scores_only(copy_run):
    folder = copy_run("full")
    path = folder / "predictions" / "vqa" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "groups"}) + "\n" for row in rows))
    run = read_run(folder)
    (table, _) = breakdown_tables(run, "test", None, read_predictions(run, "test"))["vqa"]
    assert [column.name for column in table.columns] == ["answer type", "score"]


# ---- confusion tables


def test_confusion_counts_each_example_once():
    rng = random.Random(1)
    words = [f"w{i}" for i in range(30)]
    pairs = [(["Yes "] * 7 + ["no"] * 3, rng.choice(["yes", "YES", "no", *words])) for _ in range(60)]
    pairs += [(["no"], rng.choice(["yes", "no", "maybe", ""])) for _ in range(40)]
    pairs += [([word], word) for word in words]
    table = confusion("a task", predictions(pairs), max_references=2)
    assert [row.reference for row in table.rows] == ["yes", "no"]
    assert table.answers[:2] == ("yes", "no")
    assert table.answers[-1] == OTHER
    assert len(table.answers) <= 5
    for row, start in zip(table.rows, (0, 60), strict=True):
        of_row = pairs[start : start + row.total]
        assert sum(row.counts) == row.total == (60, 40)[start > 0]
        assert row.counts[row.correct_column] == sum(predicted.lower() == row.reference for _, predicted in of_row)
    assert table.notes == ("2 answers, 100 of 130 examples (77 %).",)


def test_confusion_is_omitted_for_rare_answers():
    assert confusion("captions", predictions([([f"an image of {i}"], "an image") for i in range(50)])) is None
    assert confusion("one answer", predictions([(["yes"], "yes")] * 9)) is None
    assert confusion("hidden", predictions([([], "yes")] * 9)) is None
    assert confusion("no examples", []) is None
    some_hidden = confusion("some", predictions([(["a"], "a")] * 3 + [(["b"], "")] * 3 + [([], "a")] * 2))
    assert some_hidden.notes[1] == "2 examples have hidden answers."
    assert "(empty)" in some_hidden.answers


# ---- parameters and time


def test_cost_tables_show_recorded_values(base):
    run, other = read_run(base / "runs" / "full"), read_run(base / "runs" / "shuffled")
    table = parameter_table([run], [run.name])
    assert [column.name for column in table.columns] == ["component", "trainable", "total"]
    assert table.rows[-1] == ("adapter", 275_200, 275_200)
    assert table.foot == (("all", 349_696, 2_874_112), ("percent trainable", "12.17 %", None))
    times = dict(time_table([run], [run.name]).rows)
    assert times["start to end, evaluation included"] == "4.5 min"
    steps = [times[f"time per step{phase}"] for phase in ("", ": wait", ": backward")]
    assert steps == ["100 ms", "10 ms", "30 ms"]
    assert times["peak memory of the main process"] == "1,300 MiB"
    assert (times["devices"], times["processes"]) == ("A processor, 2 cores", "2")
    assert times["code"] == "0.1.0, commit 0123456789ab, with uncommitted changes"
    mixture = mixture_table([run, other], ["full", "shuffled"])
    assert [column.name for column in mixture.columns][1:3] == ["full, steps", "full, examples"]
    assert mixture.rows[0] == ("vqa", 150, 9_600, 150, 9_600)


def test_report_works_without_optional_files(copy_run, no_charts):
    folder = copy_run("full")
    (folder / "record.json").unlink()
    (folder / "adapter" / "adapter_config.json").unlink()
    (folder / "predictions" / "gqa" / "test.jsonl").unlink()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("time", None)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_run(folder)
    assert dict(time_table([run], ["x"]).rows) == {"steps": "600", "time per step": "110 ms"}
    assert mixture_table([run], ["x"]) is None
    assert parameter_table([run], ["x"]).rows == ()
    page = render_report(run, items=0)
    assert "Split test has no intervals and no confusion tables: " in page
    assert "Split ood has no" not in page


def test_time_table_notes_interruptions(copy_run):
    folder = copy_run("full")
    edit_json(folder / "record.json", lambda record: record.update(resumes=[{}, {}], ended=None))
    times = dict(time_table([read_run(folder)], ["x"]).rows)
    assert times["resumed"].startswith("2 times")
    assert "start to end, evaluation included" not in times


# ---- tables


def test_report_command_prints_tables(base, capsys):
    full, control = str(base / "runs" / "full"), str(base / "runs" / "shuffled")
    options = ["--format", "csv", "--table", "breakdowns", "--split", "test", "--control", control]
    assert main(["report", full, *options]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 22
    by_answer = [row for row in rows if row["breakdown"] == "answer type"]
    assert sum(int(row["count"]) for row in by_answer) == 24
    assert all(float(row["95 % interval low"]) <= float(row["score"]) for row in by_answer)
    assert {row["count"] for row in rows if row["breakdown"] == "question type"} == {""}
    assert main(["report", full, "--format", "markdown"]) == 0
    out = capsys.readouterr().out
    for title in ("**full, split test, step 600**", "**Breakdowns, split ood**", "**Parameters**", "**Time"):
        assert title in out
    assert main(["report", full, "--format", "latex", "--table", "scores"]) == 0
    assert capsys.readouterr().out.count(r"\begin{tabular}") == 2
    for options, message in [
        (["--format", "csv"], "--format csv writes one table, got 9; add --table"),
        (["--format", "csv", "--table", "norms"], "--table norms:"),
        (["--format", "csv", "--table", "scores", "--split", "dev"], "no split 'dev'"),
    ]:
        assert main(["report", full, *options]) == 2
        assert message in capsys.readouterr().err
