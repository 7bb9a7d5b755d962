"""Are kinds, confusions, parameters and times of a report what the files of the run say?"""

import csv
import io
import json
import random

import pytest

from multitask_vl.metrics.bootstrap import interval_of_mean
from multitask_vl.reports import __main__ as command
from multitask_vl.reports.breakdowns import groups_of
from multitask_vl.reports.confusion import OTHER, confusion
from multitask_vl.reports.cost import mixture_of, parameters_of, time_of
from multitask_vl.reports.gallery import read_predictions
from multitask_vl.reports.page import report, write_report
from multitask_vl.reports.run import Prediction, read_run
from multitask_vl.reports.table import Range


def answers(pairs) -> list[Prediction]:
    return [
        Prediction(id=str(i), images=[], text="", prediction=said, references=references)
        for i, (references, said) in enumerate(pairs)
    ]


# ---- kinds


def test_a_kind_has_its_number_and_the_interval_of_its_examples(place):
    run, blind = read_run(place / "runs" / "full"), read_run(place / "runs" / "blind")
    predictions = read_predictions(run, "report")
    (table, _) = groups_of(run, "report", blind, predictions)["vqa"]
    names = [column.name for column in table.columns]
    assert names == ["answer type", "items", "score", "95 % interval", "blind control", "difference"]
    for kind, count, score, interval, theirs, difference in table.rows:
        scores = [one.score for one in predictions["vqa"] if one.kinds["answer_type"] == kind]
        found = interval_of_mean(scores, "examples")
        assert (count, interval) == (len(scores), Range(found.low, found.high))
        assert score == pytest.approx(sum(scores) / len(scores))
        assert difference == pytest.approx(score - theirs)
    assert table.notes[0].startswith("95 % interval: percentile bootstrap")


def test_a_breakdown_of_which_predictions_know_nothing_has_scores_alone(place):
    run = read_run(place / "runs" / "full")
    (_, table) = groups_of(run, "report", None, read_predictions(run, "report"))["vqa"]
    assert [column.name for column in table.columns] == ["question type", "score"]
    assert table.notes == ()


def test_predictions_without_kinds_read_as_before(copy):
    folder = copy("full")
    for path in (folder / "predictions").rglob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "kinds"}) + "\n" for row in rows))
    run = read_run(folder)
    (table, _) = groups_of(run, "report", None, read_predictions(run, "report"))["vqa"]
    assert [column.name for column in table.columns] == ["answer type", "score"]


def test_a_page_without_gallery_needs_no_predictions_but_says_what_it_lacks(copy):
    folder = copy("full")
    (folder / "predictions" / "gqa" / "report.jsonl").unlink()
    page = report(read_run(folder), items=0)
    assert "Split report has no intervals and no confusions: " in page
    assert "Split heldout has no" not in page


# ---- confusions


def test_a_confusion_counts_each_example_of_its_answers_once():
    rng = random.Random(1)
    words = [f"w{i}" for i in range(30)]
    pairs = [(["Yes "] * 7 + ["no"] * 3, rng.choice(["yes", "YES", "no", *words])) for _ in range(60)]
    pairs += [(["no"], rng.choice(["yes", "no", "maybe", ""])) for _ in range(40)]
    pairs += [([word], word) for word in words]
    found = confusion("a task", answers(pairs), most=2)
    assert [row.reference for row in found.rows] == ["yes", "no"]
    assert found.answers[:2] == ("yes", "no")
    assert found.answers[-1] == OTHER
    assert len(found.answers) <= 5
    for row, reference in zip(found.rows, (0, 60), strict=True):
        some = pairs[reference : reference + row.total]
        assert sum(row.counts) == row.total == (60, 40)[reference > 0]
        assert row.counts[row.place] == sum(said.lower() == row.reference for _, said in some)
    assert found.notes == ("2 answers, 100 of 130 examples (77 %).",)


def test_what_is_said_to_nothing_in_common_has_no_confusion():
    assert confusion("captions", answers([([f"a picture of {i}"], "a picture") for i in range(50)])) is None
    assert confusion("one answer", answers([(["yes"], "yes")] * 9)) is None
    assert confusion("hidden", answers([([], "yes")] * 9)) is None
    assert confusion("nothing", []) is None
    some_hidden = confusion("some", answers([(["a"], "a")] * 3 + [(["b"], "")] * 3 + [([], "a")] * 2))
    assert some_hidden.notes[1] == "2 examples hide their answers."
    assert "(nothing)" in some_hidden.answers


# ---- parameters and time


def test_parameters_and_times_are_those_of_the_record(place):
    run, other = read_run(place / "runs" / "full"), read_run(place / "runs" / "blind")
    table = parameters_of([run], [run.name])
    assert [column.name for column in table.columns] == ["component", "trained", "in all"]
    assert table.rows[-1] == ("adapter", 275_200, 275_200)
    assert table.foot == (("all", 349_696, 2_874_112), ("share trained", "12.17 %", None))
    times = dict(time_of([run], [run.name]).rows)
    assert times["start to end, evaluation included"] == "4.5 min"
    assert (times["a step"], times["a step: wait"], times["a step: backward"]) == ("100 ms", "10 ms", "30 ms")
    assert times["memory of the main process, most"] == "1,300 MiB"
    assert (times["on"], times["processes"]) == ("A processor, 2 cores", "2")
    assert times["code"] == "0.1.0, commit 0123456789ab, with local changes"
    mixture = mixture_of([run, other], ["full", "blind"])
    assert [column.name for column in mixture.columns][1:3] == ["full, steps", "full, examples"]
    assert mixture.rows[0] == ("vqa", 150, 9_600, 150, 9_600)


def test_a_run_that_kept_no_record_has_less_to_say(copy):
    folder = copy("full")
    (folder / "record.json").unlink()
    (folder / "adapter" / "adapter_config.json").unlink()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("time", None)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_run(folder)
    assert dict(time_of([run], ["x"]).rows) == {"steps": "600", "a step": "110 ms"}
    assert mixture_of([run], ["x"]) is None
    assert parameters_of([run], ["x"]).rows == ()
    write_report(folder, items=0)


def test_an_interrupted_run_says_that_its_time_has_gaps(copy):
    folder = copy("full")
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"resumes": [{}, {}], "ended": None}))
    times = dict(time_of([read_run(folder)], ["x"]).rows)
    assert times["resumed"].startswith("2 times")
    assert "start to end, evaluation included" not in times


# ---- tables


def test_the_command_prints_the_tables_of_the_page(place, capsys):
    full, blind = str(place / "runs" / "full"), str(place / "runs" / "blind")
    assert command.main([full, "--format", "csv", "--table", "kinds", "--split", "report", "--control", blind]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 22
    kinds = [row for row in rows if row["breakdown"] == "answer type"]
    assert sum(int(row["items"]) for row in kinds) == 24
    assert all(float(row["95 % interval low"]) <= float(row["score"]) for row in kinds)
    assert {row["items"] for row in rows if row["breakdown"] == "question type"} == {""}
    assert command.main([full, "--format", "markdown"]) == 0
    out = capsys.readouterr().out
    for said in (
        "**full, split report, step 600**",
        "**By kind of example, split heldout**",
        "**Parameters**",
        "**Time",
    ):
        assert said in out
    assert command.main([full, "--format", "latex", "--table", "scores"]) == 0
    assert capsys.readouterr().out.count(r"\begin{tabular}") == 2
    for words, told in [
        (["--format", "csv"], "--format csv writes one table, these are 9; add --table"),
        (["--format", "csv", "--table", "norms"], "--table norms:"),
        (["--format", "csv", "--table", "scores", "--split", "test"], "no split 'test'"),
    ]:
        assert command.main([full, *words]) == 2
        assert told in capsys.readouterr().err
