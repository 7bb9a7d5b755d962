"""Tests of reading run folders, of shuffled-image controls and of tables."""

import csv
import io
import json
import math
import shutil

import pytest

from multitask_vl.cli.main import main
from multitask_vl.errors import InputError
from multitask_vl.reports import tables
from multitask_vl.reports.figures import inline_svg
from multitask_vl.reports.gallery import gallery
from multitask_vl.reports.page import render_report
from multitask_vl.reports.run import read_run
from multitask_vl.reports.shuffled_control import check_control
from multitask_vl.reports.table import Column, MeanStd, Range, Table, format_value, render
from tests.reports.run_folders import PRIMARY_METRICS, STEPS, edit_json, edit_yaml

# ---- reading


def test_read_run_returns_written_values(base):
    run = read_run(base / "runs" / "full")
    assert (run.name, run.steps, run.splits) == ("full", STEPS, ["test", "ood"])
    assert run.tasks("test") == list(PRIMARY_METRICS)
    assert (run.setting("routing.function.vqa"), run.setting("missing.key", 7)) == ("mul", 7)
    predictions = run.predictions("vqa", "test")
    mean = sum(p.score for p in predictions) / len(predictions)
    assert mean == pytest.approx(run.scores.splits["test"].tasks["vqa"].value)
    assert not run.is_control
    assert read_run(base / "runs" / "shuffled").is_control


def test_steps_default_to_last_training_line(copy_run):
    folder = copy_run("full")
    edit_json(folder / "scores.json", lambda scores: scores.pop("step"))
    assert read_run(folder).steps == STEPS


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("resolved.yaml", None, "resolved.yaml is missing. Run: accelerate launch launch/train_multitask.py"),
        ("resolved.yaml", "- a\n- b\n", "resolved.yaml: not a mapping"),
        ("resolved.yaml", "a: [1\n", "resolved.yaml: while parsing"),
        ("metrics.jsonl", '{"step": 1, "task": "vqa", "loss": 1}\n{"step": 2,\n', "metrics.jsonl:2: Invalid JSON"),
        ("metrics.jsonl", '{"step": 1, "task": "vqa", "loss": "low"}\n', "metrics.jsonl:1: loss: "),
        ("scores.json", None, "scores.json is missing. Run: multitask-vl evaluate --config"),
        ("scores.json", '{"splits": {"test": 3}}', "scores.json: splits.test: "),
        ("scores.json", '{"splits": {}, "parameters": {"trainable": 1, "total": 2}}', "it has no scored task"),
        ("scores.json", b"\xff\xfe", "scores.json: 'utf-8' codec"),
    ],
)
def test_read_run_names_missing_or_malformed_file(copy_run, file, content, message):
    folder = copy_run("full")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_run(folder)
    (problem,) = caught.value.problems
    assert message in problem
    assert "Run: " in problem


def test_read_run_lists_all_missing_files(copy_run, tmp_path):
    folder = copy_run("full")
    for file in ("resolved.yaml", "metrics.jsonl", "scores.json"):
        (folder / file).unlink()
    with pytest.raises(InputError) as caught:
        read_run(folder)
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError, match="run folder not found"):
        read_run(tmp_path / "missing")


def test_predictions_reject_inconsistent_files(copy_run):
    folder = copy_run("full")
    path = folder / "predictions" / "vqa" / "test.jsonl"
    first = path.read_text().splitlines()[0]
    edit_json(path.with_name("test.per_example.json"), lambda scores: scores.pop("test-3"))
    with pytest.raises(InputError, match=r"1 ids are in only one of them \(first: test-3\)"):
        read_run(folder).predictions("vqa", "test")
    path.write_text(f"{first}\n{first}\n")
    with pytest.raises(InputError, match=r"1 ids are repeated \(first: test-0\)"):
        read_run(folder).predictions("vqa", "test")
    path.unlink()
    shutil.rmtree(folder / "predictions" / "gqa")
    with pytest.raises(InputError) as caught:
        gallery(read_run(folder), "test", 4, [])
    assert ["vqa" in p or "gqa" in p for p in caught.value.problems] == [True] * 3


def test_predictions_keep_unicode_line_separators(copy_run):
    folder = copy_run("full")
    path = folder / "predictions" / "vqa" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["prediction"] = "a\u2028b\x85c"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert read_run(folder).predictions("vqa", "test")[0].prediction == "a\u2028b\x85c"


# ---- controls


def test_control_needs_shuffled_images(base):
    full, control = read_run(base / "runs" / "full"), read_run(base / "runs" / "shuffled")
    with pytest.raises(InputError, match=r"is not a shuffled-image control.*features.shuffle_images=true run_dir="):
        check_control(full, read_run(base / "runs" / "seed43"))
    assert check_control(full, control) == []


def test_control_needs_requested_split(copy_run):
    full, folder = copy_run("full"), copy_run("shuffled", "shuffled")
    edit_json(full / "scores.json", lambda scores: scores["splits"].update(extra=scores["splits"]["test"]))
    run, control = read_run(full), read_run(folder)
    assert check_control(run, control) == []
    with pytest.raises(InputError, match="it has no scores for split extra"):
        check_control(run, control, "extra")


def test_control_needs_same_tasks_and_examples(base, copy_run):
    full = read_run(base / "runs" / "full")
    folder = copy_run("shuffled")

    def change(scores):
        del scores["splits"]["ood"]
        tasks = scores["splits"]["test"]["tasks"]
        del tasks["gqa"]
        tasks["vqa"] |= {"count": 5, "version": 2}

    edit_json(folder / "scores.json", change)
    with pytest.raises(InputError) as caught:
        check_control(full, read_run(folder))
    message = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for part in ("no scores for split ood", "was scored on coco_caption, nlvr2, vqa", "version is 2", "count is 5"):
        assert part in message


def test_control_with_other_settings_is_noted(base, copy_run):
    folder = copy_run("shuffled")
    edit_yaml(folder / "resolved.yaml", lambda config: config["training"].update(lr=0.1))
    edit_json(folder / "scores.json", lambda scores: scores.update(step=50))
    notes = check_control(read_run(base / "runs" / "full"), read_run(folder))
    assert notes == [
        "The control was trained for 50 steps, this run for 600.",
        "The control differs from this run in more than its images: training.lr.",
    ]
    assert "note: The control was trained for 50" in tables.score_table_text(base / "runs" / "full", folder)


# ---- tables


def test_score_table_has_control_and_average(base):
    full, control = base / "runs" / "full", base / "runs" / "shuffled"
    lines = tables.score_table_text(full, control).splitlines()
    assert lines[0] == "full, split test, step 600"
    assert lines[1].split() == ["task", "metric", "count", "score", "shuffled", "images", "difference"]
    scores = json.loads((full / "scores.json").read_text())["splits"]["test"]
    control_scores = json.loads((control / "scores.json").read_text())["splits"]["test"]
    for line, (task, metric) in zip(lines[3:7], PRIMARY_METRICS.items(), strict=True):
        a, b = scores["tasks"][task]["value"], control_scores["tasks"][task]["value"]
        assert line.split() == [task, metric, "v1", "24", f"{a:.1f}", f"{b:.1f}", f"{a - b:+.1f}"]
    a, b = scores["average"], control_scores["average"]
    assert lines[8].split() == ["average", f"{a:.1f}", f"{b:.1f}", f"{a - b:+.1f}"]
    assert lines[9] == "note: coco_caption, SPICE: not computed: its two jars are not in pycocoevalcap/spice/lib"
    assert len(lines) == 10
    assert "shuffled" not in tables.score_table_text(full, split="ood")
    with pytest.raises(InputError, match=r"no split 'dev' \(it has: val, test, ood\).*--split dev"):
        tables.score_table_text(full, split="dev")


def test_score_table_shows_missing_score_with_note(copy_run):
    folder = copy_run("full")

    def change(scores):
        scores["splits"]["test"]["tasks"]["nlvr2"].update(value=None, metrics={"accuracy": None})
        scores["splits"]["test"]["average"] = None

    edit_json(folder / "scores.json", change)
    lines = tables.score_table_text(folder).splitlines()
    assert lines[5].split() == ["nlvr2", "accuracy", "v1", "24", "-"]
    assert "note: nlvr2, accuracy: not computed, and the scorer gave no reason" in lines


def test_seed_table_averages_over_seeds(base, copy_run):
    runs = [read_run(base / "runs" / name) for name in ("full", "seed43", "shuffled")]
    table = tables.seed_table(runs)
    assert [row[0] for row in table.rows] == ["full", "shuffled"]
    values = [run.scores.splits["test"].tasks["gqa"].value for run in runs[:2]]
    gqa = table.rows[0][[c.name for c in table.columns].index("gqa")]
    assert (table.rows[0][4], gqa.mean) == (2, pytest.approx(sum(values) / 2))
    assert gqa.std == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert table.rows[1][-1].std is None
    assert table.rows[0][1:3] == (
        "adapter per_task",
        "vqa: mul, gqa: mul, nlvr2: mm1, coco_caption: mm2, x_R: encoder",
    )
    with pytest.raises(InputError, match="have the same configuration and seed"):
        tables.seed_table([runs[0], read_run(copy_run("full"))])


def test_seed_table_rejects_other_metric_version(base, copy_run):
    folder = copy_run("seed43")
    edit_json(folder / "scores.json", lambda s: s["splits"]["test"]["tasks"]["vqa"].update(version=2))
    with pytest.raises(InputError, match="vqa was scored in different ways"):
        tables.seed_table([read_run(base / "runs" / "full"), read_run(folder)])


def test_seed_table_omits_average_if_task_is_missing(base, copy_run):
    folder = copy_run("seed43")
    edit_json(folder / "scores.json", lambda s: s["splits"]["test"]["tasks"].pop("vqa"))
    edit_yaml(folder / "resolved.yaml", lambda c: (c["tasks"].pop("vqa"), c["routing"].update(function="none")))
    table = tables.seed_table([read_run(base / "runs" / "full"), read_run(folder)])
    assert table.rows[1][2] == "none"
    assert (table.rows[1][5], table.rows[1][-1]) == (None, None)
    assert "run was not scored on every task of this table, so it has no average." in table.notes


def test_average_seeds_command_prints_table(base, capsys):
    full, seed43 = str(base / "runs" / "full"), str(base / "runs" / "seed43")
    assert main(["compare", "--average-seeds", full, seed43, "--format", "csv", "--split", "ood"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["run"], row["seeds"]) == ("full", "2")
    assert main(["compare", "--average-seeds", full, full]) == 2
    assert "have the same configuration and seed (42)" in capsys.readouterr().err


def test_describe_routing_names_single_function_once(copy_run):
    folder = copy_run("full")
    routing = {"function": dict.fromkeys(PRIMARY_METRICS, "add"), "source": "visual", "control": "noise"}
    edit_yaml(folder / "resolved.yaml", lambda config: config.update(routing=routing, method={"name": "lora"}))
    run = read_run(folder)
    assert tables.describe_routing(run) == ("add", "x_R: visual, replaced by noise")
    assert tables.describe_method(run) == "lora"


TABLE = Table(
    "A title",
    (Column("run", "text"), Column("score"), Column("gain", "difference"), Column("n", "count")),
    (("a_b|c", MeanStd(50.0, 1.25), -0.04, 1200), ("d", MeanStd(40.0), None, 3)),
    (("mean", 45.0, -2.5, None),),
    ("A note.",),
)


def test_render_writes_all_formats():
    text = render(TABLE, "text").splitlines()
    assert text[0] == "A title"
    assert [line.split() for line in text[3:5]] == [
        ["a_b|c", "50.0", "+-", "1.2", "0.0", "1,200"],
        ["d", "40.0", "-", "3"],
    ]
    assert {line.rindex(end) for line, end in ((text[1], "n"), (text[3], "0"), (text[4], "3"))} == {len(text[2]) - 1}
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


def test_format_value_signs_and_digits():
    values = [format_value(v, "difference", minus="−") for v in (3.0, -3.0, 0.04, math.nan)]
    assert values == ["+3.0", "−3.0", "0.0", "-"]
    assert (format_value(4.183, "percent"), format_value(-0.01), format_value(None)) == ("4.18", "0.0", "-")


def test_inline_svg_escapes_names():
    svg = '<svg viewBox="0 0 1 1"><g id="a"/><use href="#a"/></svg>'
    inlined = inline_svg(svg, 'scores-re"><h1>\\d', "Scores")
    assert "<h1>" not in inlined
    assert 'id="scores-re---h1--d-a"' in inlined
    assert 'href="#scores-re---h1--d-a"' in inlined


# ---- intervals


def add_intervals(scores) -> None:
    images = "images (document frequencies stay those of the full set)"
    for name, task in scores["splits"]["test"]["tasks"].items():
        unit = images if name == "coco_caption" else "questions"
        interval = {"interval": [task["value"] - 1.25, task["value"] + 2], "level": 95, "unit": unit}
        task |= {"interval": interval["interval"], "intervals": {task["primary_metric"]: interval}}
    scores["splits"]["test"]["tasks"]["vqa"] |= {"interval": None, "intervals": {}}


def test_intervals_are_shown_with_their_unit(base, copy_run, no_charts):
    folder = copy_run("full")
    edit_json(folder / "scores.json", add_intervals)
    run, control = read_run(folder), read_run(base / "runs" / "shuffled")
    table = tables.score_table(run, "test", control)
    assert [column.name for column in table.columns][3:6] == ["score", "95 % interval", "shuffled images"]
    value = run.scores.splits["test"].tasks["gqa"].value
    assert table.rows[0][4] is None
    assert table.rows[1][3:5] == (value, Range(value - 1.25, value + 2))
    assert table.foot[0][4] is None
    cells = render(table, "text").splitlines()[4].split()
    assert cells[5:8] == [f"{value - 1.25:.1f}", "to", f"{value + 2:.1f}"]
    assert table.notes[-1] == (
        "95 % interval: percentile bootstrap over gqa questions, nlvr2 questions, coco_caption images (document "
        "frequencies stay those of the full set). It does not cover the variance between training seeds."
    )
    assert f"${value - 1.25:.1f}$--${value + 2:.1f}$" in render(table, "latex")
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert (rows[1]["95 % interval low"], rows[1]["95 % interval high"]) == (str(value - 1.25), str(value + 2))
    assert rows[0]["95 % interval low"] == ""
    assert "coco_caption CIDEr images" in tables.metric_table(run, "test").notes[-1]
    page = render_report(run, items=0)
    assert f"95 % interval {value - 1.25:.1f} to {value + 2:.1f}</p>" in page
    assert page.count(" % interval ") == 3


def test_intervals_are_optional(base):
    table = tables.score_table(read_run(base / "runs" / "full"), "test")
    assert [column.name for column in table.columns] == ["task", "metric", "count", "score"]
