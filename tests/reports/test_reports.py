"""Do reports say what a run folder holds, all of it, and refuse what they cannot read or compare?"""

import csv
import io
import json
import math
import shutil
from pathlib import Path

import pytest
import yaml

from multitask_vl.errors import InputError
from multitask_vl.reports import tables
from multitask_vl.reports.figures import inline
from multitask_vl.reports.gallery import gallery
from multitask_vl.reports.page import report
from multitask_vl.reports.run import read_run
from multitask_vl.reports.shuffled_control import check_control
from multitask_vl.reports.table import Column, Range, Spread, Table, cell, render
from tests.reports.run_folders import HEADLINES, STEPS


def edit_json(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_yaml(path: Path, change) -> None:
    value = yaml.safe_load(path.read_text())
    change(value)
    path.write_text(yaml.safe_dump(value, sort_keys=False))


# ---- reading


def test_a_run_reads_as_it_was_written(place):
    run = read_run(place / "runs" / "full")
    assert (run.name, run.steps, run.splits) == ("full", STEPS, ["report", "heldout"])
    assert run.tasks("report") == list(HEADLINES)
    assert (run.setting("routing.function.vqa"), run.setting("nothing.there", 7)) == ("mul", 7)
    predictions = run.predictions("vqa", "report")
    mean = sum(p.score for p in predictions) / len(predictions)
    assert mean == pytest.approx(run.scores.splits["report"].tasks["vqa"].value)
    assert not run.is_control
    assert read_run(place / "runs" / "blind").is_control


def test_the_last_training_line_gives_the_steps_where_the_scores_do_not(copy):
    folder = copy("full")
    edit_json(folder / "scores.json", lambda scores: scores.pop("step"))
    assert read_run(folder).steps == STEPS


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("resolved.yaml", None, "resolved.yaml is missing. Run: accelerate launch launch/train_multitask.py"),
        ("resolved.yaml", "- a\n- b\n", "resolved.yaml: not a mapping"),
        ("resolved.yaml", "a: [1\n", "resolved.yaml: while parsing"),
        ("metrics.jsonl", '{"step": 1, "task": "vqa", "loss": 1}\n{"step": 2,\n', "metrics.jsonl:2: Invalid JSON"),
        ("metrics.jsonl", '{"step": 1, "task": "vqa", "loss": "low"}\n', "metrics.jsonl:1: loss: "),
        ("scores.json", None, "scores.json is missing. Run: python launch/evaluate.py --config"),
        ("scores.json", '{"splits": {"report": 3}}', "scores.json: splits.report: "),
        ("scores.json", '{"splits": {}, "parameters": {"trainable": 1, "total": 2}}', "no task is scored in it"),
        ("scores.json", b"\xff\xfe", "scores.json: 'utf-8' codec"),
    ],
)
def test_a_missing_or_malformed_file_is_named_with_its_command(copy, file, content, told):
    folder = copy("full")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_run(folder)
    (problem,) = caught.value.problems
    assert told in problem
    assert "Run: " in problem


def test_all_missing_files_are_told_at_once(copy, tmp_path):
    folder = copy("full")
    for file in ("resolved.yaml", "metrics.jsonl", "scores.json"):
        (folder / file).unlink()
    with pytest.raises(InputError) as caught:
        read_run(folder)
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError, match="there is no such run folder"):
        read_run(tmp_path / "nowhere")


def test_predictions_that_do_not_fit_are_refused(copy):
    folder = copy("full")
    path = folder / "predictions" / "vqa" / "report.jsonl"
    first = path.read_text().splitlines()[0]
    edit_json(path.with_name("report.per_example.json"), lambda scores: scores.pop("report-3"))
    with pytest.raises(InputError, match=r"1 ids are in only one of them \(first: report-3\)"):
        read_run(folder).predictions("vqa", "report")
    path.write_text(f"{first}\n{first}\n")
    with pytest.raises(InputError, match=r"1 ids stand in it more than once \(first: report-0\)"):
        read_run(folder).predictions("vqa", "report")
    path.unlink()
    shutil.rmtree(folder / "predictions" / "gqa")
    with pytest.raises(InputError) as caught:
        gallery(read_run(folder), "report", 4, [])
    assert ["vqa" in p or "gqa" in p for p in caught.value.problems] == [True] * 3


# ---- controls


def test_a_control_must_be_one(place):
    full, blind = read_run(place / "runs" / "full"), read_run(place / "runs" / "blind")
    with pytest.raises(InputError, match=r"is not a blind control.*features.control=shuffled run_dir="):
        check_control(full, read_run(place / "runs" / "seed43"))
    assert check_control(full, blind) == []


def test_a_control_must_have_the_split_that_is_asked_for(place, copy):
    full, folder = copy("full"), copy("blind", "blind")
    edit_json(full / "scores.json", lambda scores: scores["splits"].update(extra=scores["splits"]["report"]))
    run, control = read_run(full), read_run(folder)
    assert check_control(run, control) == []
    with pytest.raises(InputError, match="it has no scores for split extra"):
        check_control(run, control, "extra")


def test_ends_of_lines_within_a_text_end_no_line(copy):
    folder = copy("full")
    path = folder / "predictions" / "vqa" / "report.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["prediction"] = "a\u2028b\x85c"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert read_run(folder).predictions("vqa", "report")[0].prediction == "a\u2028b\x85c"


def test_a_name_in_a_chart_is_no_markup():
    drawn = '<svg viewBox="0 0 1 1"><g id="a"/><use href="#a"/></svg>'
    found = inline(drawn, 'scores-re"><h1>\\d', "Scores")
    assert "<h1>" not in found
    assert 'id="scores-re---h1--d-a"' in found
    assert 'href="#scores-re---h1--d-a"' in found


def test_a_control_must_have_done_the_same(place, copy):
    full = read_run(place / "runs" / "full")
    folder = copy("blind")

    def spoil(scores):
        del scores["splits"]["heldout"]
        report = scores["splits"]["report"]["tasks"]
        del report["gqa"]
        report["vqa"] |= {"count": 5, "version": 2}

    edit_json(folder / "scores.json", spoil)
    with pytest.raises(InputError) as caught:
        check_control(full, read_run(folder))
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for part in ("no scores for split heldout", "was scored on coco_caption, nlvr2, vqa", "version is 2", "count is 5"):
        assert part in told


def test_a_control_that_differs_otherwise_is_said_to(place, copy):
    folder = copy("blind")
    edit_yaml(folder / "resolved.yaml", lambda config: config["training"].update(lr=0.1))
    edit_json(folder / "scores.json", lambda scores: scores.update(step=50))
    notes = check_control(read_run(place / "runs" / "full"), read_run(folder))
    assert notes == [
        "The control was trained for 50 steps, this run for 600.",
        "The control differs from this run in more than its pictures: training.lr.",
    ]
    assert "note: The control was trained for 50" in tables.score_table(place / "runs" / "full", folder)


# ---- tables


def test_score_table_shows_scores_controls_differences_and_averages(place):
    full, blind = place / "runs" / "full", place / "runs" / "blind"
    lines = tables.score_table(full, blind).splitlines()
    assert lines[0] == "full, split report, step 600"
    assert lines[1].split() == ["task", "metric", "items", "score", "blind", "control", "difference"]
    ours = json.loads((full / "scores.json").read_text())["splits"]["report"]
    theirs = json.loads((blind / "scores.json").read_text())["splits"]["report"]
    for line, task in zip(lines[3:7], HEADLINES, strict=True):
        a, b = ours["tasks"][task]["value"], theirs["tasks"][task]["value"]
        assert line.split() == [task, HEADLINES[task], "v1", "24", f"{a:.1f}", f"{b:.1f}", f"{a - b:+.1f}"]
    a, b = ours["average"], theirs["average"]
    assert lines[8].split() == ["average", f"{a:.1f}", f"{b:.1f}", f"{a - b:+.1f}"]
    assert lines[9] == "note: coco_caption, SPICE: not computed: its two jars are not in pycocoevalcap/spice/lib"
    assert len(lines) == 10
    assert "blind" not in tables.score_table(full, split="heldout")
    with pytest.raises(InputError, match=r"no split 'test' \(it has: tune, report, heldout\).*--split test"):
        tables.score_table(full, split="test")


def test_a_score_that_was_not_computed_is_a_dash_with_a_note(copy):
    folder = copy("full")

    def spoil(scores):
        scores["splits"]["report"]["tasks"]["nlvr2"].update(value=None, metrics={"accuracy": None})
        scores["splits"]["report"]["average"] = None

    edit_json(folder / "scores.json", spoil)
    text = tables.score_table(folder)
    assert "nlvr2         accuracy v1     24      -" in text
    assert "note: nlvr2, accuracy: not computed, and the scorer gave no reason" in text


def test_runs_that_differ_by_seed_are_one_row(place, copy):
    runs = [read_run(place / "runs" / name) for name in ("full", "seed43", "blind")]
    table = tables.compare(runs)
    assert [row[0] for row in table.rows] == ["full", "blind"]
    values = [run.scores.splits["report"].tasks["gqa"].value for run in runs[:2]]
    spread = table.rows[0][[c.name for c in table.columns].index("gqa")]
    assert (table.rows[0][4], spread.mean) == (2, pytest.approx(sum(values) / 2))
    assert spread.std == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert table.rows[1][-1].std is None
    assert table.rows[0][1:3] == (
        "adapter per_task",
        "vqa: mul, gqa: mul, nlvr2: mm1, coco_caption: mm2, x_R: encoder_pooled",
    )
    with pytest.raises(InputError, match="one configuration with one seed"):
        tables.compare([runs[0], read_run(copy("full"))])


def test_runs_scored_in_other_ways_do_not_share_a_table(place, copy):
    folder = copy("seed43")
    edit_json(folder / "scores.json", lambda s: s["splits"]["report"]["tasks"]["vqa"].update(version=2))
    with pytest.raises(InputError, match="vqa was scored in different ways"):
        tables.compare([read_run(place / "runs" / "full"), read_run(folder)])


def test_a_run_without_one_of_the_tasks_gets_no_average(place, copy):
    folder = copy("seed43")
    edit_json(folder / "scores.json", lambda s: s["splits"]["report"]["tasks"].pop("vqa"))
    edit_yaml(folder / "resolved.yaml", lambda c: (c["tasks"].pop("vqa"), c["routing"].update(function="none")))
    table = tables.compare([read_run(place / "runs" / "full"), read_run(folder)])
    assert table.rows[1][2] == "none"
    assert (table.rows[1][5], table.rows[1][-1]) == (None, None)
    assert "run was not scored on every task of this table: no average is given for it." in table.notes


def test_routing_is_told_in_few_words(place, copy):
    folder = copy("full")
    routing = {"function": dict.fromkeys(HEADLINES, "add"), "source": "visual_pooled", "control": "noise"}
    edit_yaml(folder / "resolved.yaml", lambda config: config.update(routing=routing, method={"name": "lora"}))
    run = read_run(folder)
    assert tables.describe_routing(run) == ("add", "x_R: visual_pooled, replaced by noise")
    assert tables.describe_method(run) == "lora"


TABLE = Table(
    "A title",
    (Column("run", "text"), Column("score"), Column("gain", "difference"), Column("n", "count")),
    (("a_b|c", Spread(50.0, 1.25), -0.04, 1200), ("d", Spread(40.0), None, 3)),
    (("mean", 45.0, -2.5, None),),
    ("A note.",),
)


def test_tables_are_written_four_ways():
    text = render(TABLE, "text").splitlines()
    assert text[0] == "A title"
    assert [line.split() for line in text[3:5]] == [
        ["a_b|c", "50.0", "+-", "1.2", "0.0", "1,200"],
        ["d", "40.0", "-", "3"],
    ]
    assert {line.rindex(mark) for line, mark in ((text[1], "n"), (text[3], "0"), (text[4], "3"))} == {len(text[2]) - 1}
    assert text[-1] == "note: A note."
    markdown = render(TABLE, "markdown").splitlines()
    assert markdown[2:5] == [
        "| run | score | gain | n |",
        "|---|---:|---:|---:|",
        "| a_b\\|c | 50.0 ± 1.2 | 0.0 | 1,200 |",
    ]
    assert markdown[6] == "| **mean** | **45.0** | **-2.5** | **-** |"
    assert markdown[-1] == "- A note."
    latex = render(TABLE, "latex")
    assert r"a\_b|c & $50.0 \pm 1.2$ & $0.0$ & $1{,}200$ \\" in latex
    assert latex.count(r"\midrule") == 2
    rows = list(csv.DictReader(io.StringIO(render(TABLE, "csv"))))
    assert rows[0] == {"run": "a_b|c", "score": "50.0", "score std": "1.25", "gain": "-0.04", "n": "1200"}
    assert (rows[1]["score std"], rows[2]["gain"]) == ("", "-2.5")


def test_cells_have_one_form_everywhere():
    assert [cell(v, "difference", minus="−") for v in (3.0, -3.0, 0.04, math.nan)] == ["+3.0", "−3.0", "0.0", "-"]
    assert (cell(4.183, "percent"), cell(-0.01, "score"), cell(None, "score")) == ("4.18", "0.0", "-")


def test_tables_command(place, capsys):
    full, seed43 = str(place / "runs" / "full"), str(place / "runs" / "seed43")
    assert tables.main([full, seed43, "--format", "csv", "--split", "heldout"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["run"], row["seeds"]) == ("full", "2")
    assert tables.main([full, full]) == 2
    assert "one configuration with one seed (42)" in capsys.readouterr().err


# ---- intervals


def with_intervals(scores) -> None:
    images = "images (document frequencies stay those of the whole set)"
    for name, task in scores["splits"]["report"]["tasks"].items():
        what = images if name == "coco_caption" else "questions"
        about = {"interval": [task["value"] - 1.25, task["value"] + 2], "level": 95, "resampled": what}
        task |= {"interval": about["interval"], "intervals": {task["headline"]: about}}
    scores["splits"]["report"]["tasks"]["vqa"] |= {"interval": None, "intervals": {}}


def test_intervals_stand_beside_scores_and_say_what_was_resampled(place, copy):
    folder = copy("full")
    edit_json(folder / "scores.json", with_intervals)
    run, blind = read_run(folder), read_run(place / "runs" / "blind")
    table = tables.scores_of(run, "report", blind)
    assert [column.name for column in table.columns][3:6] == ["score", "95 % interval", "blind control"]
    value = run.scores.splits["report"].tasks["gqa"].value
    assert table.rows[0][4] is None
    assert table.rows[1][3:5] == (value, Range(value - 1.25, value + 2))
    assert table.foot[0][4] is None
    words = render(table, "text").splitlines()[4].split()
    assert words[5:8] == [f"{value - 1.25:.1f}", "to", f"{value + 2:.1f}"]
    assert table.notes[-1] == (
        "95 % interval: percentile bootstrap over gqa questions, nlvr2 questions, coco_caption images (document "
        "frequencies stay those of the whole set); the draw of seeds is not in it"
    )
    assert f"${value - 1.25:.1f}$--${value + 2:.1f}$" in render(table, "latex")
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert (rows[1]["95 % interval low"], rows[1]["95 % interval high"]) == (str(value - 1.25), str(value + 2))
    assert rows[0]["95 % interval low"] == ""
    assert "coco_caption CIDEr images" in tables.metrics_of(run, "report").notes[-1]
    page = report(run, items=0)
    assert f"95 % interval {value - 1.25:.1f} to {value + 2:.1f}</p>" in page
    assert page.count(" % interval ") == 3


def test_a_run_without_intervals_reads_as_before(place):
    table = tables.scores_of(read_run(place / "runs" / "full"), "report")
    assert [column.name for column in table.columns] == ["task", "metric", "items", "score"]
    assert "<p>95 % interval" not in report(read_run(place / "runs" / "full"), items=0)
