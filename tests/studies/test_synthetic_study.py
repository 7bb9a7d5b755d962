"""Study of the synthetic world: execution, record, tables and page."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from multitask_vl.errors import InputError
from multitask_vl.registry import METHODS as METHOD_REGISTRY
from multitask_vl.reports.markers import markers
from multitask_vl.reports.table import MeanStd, render
from multitask_vl.sweep.jobs import Jobs
from studies.charts import save
from studies.synthetic_world import study
from studies.synthetic_world.record import RECORD, update_record
from studies.synthetic_world.results import EXISTENCE, LEFT_RIGHT, initial_and_final_losses, read_finished
from studies.synthetic_world.runs import METHODS, REPEAT, SEEDS, StudyRun, all_runs
from studies.synthetic_world.tables import (
    CURVES,
    PAGE,
    SECTION,
    bounds_table,
    converged,
    curve_table,
    main_table,
    method_table,
    tables_of,
    threshold_table,
)

ROOT = Path(__file__).resolve().parents[2]
CONTROLS = sorted((ROOT / "configs" / "controls").glob("*.yaml"))
BEGIN, END = markers(SECTION)
TASKS = ("vqa", "gqa", "nlvr2", "coco_caption")
QUESTIONS = ["is there a red star?", "can you see a striped thing?", "is the star red?", "how many stars are there?"]
STATEMENTS = [
    "both images contain a star.",
    "the left image shows a star.",
    "there are more stars in the right image.",
    "there are two stars in the right image.",
]


def write_run(out: Path, run: StudyRun, score: float, losses=(4.0, 1.0), splits=("test", "ood"), steps=20):
    """Write a finished run with every score equal to ``score``; its existence questions score 100 and 0."""
    folder = out / "runs" / run.name
    folder.mkdir(parents=True)
    entry = {"average": score, "tasks": {task: {"value": score} for task in TASKS}}
    counts = {"trainable": 1, "total": 4}
    final = {"step": steps, "splits": dict.fromkeys(splits, entry), "parameters": counts}
    (folder / "scores.json").write_text(json.dumps(final))
    values = np.linspace(*losses, steps).tolist()
    rows = [
        {"step": n + 1, "task": task, "loss": values[n], "wall_s": 0.25}
        for n in range(steps)
        for task in ("vqa", "nlvr2")
    ]
    rows.append({"step": steps, "split": "test", "scores": {}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for task, texts, values in (("vqa", QUESTIONS, (100, 0, 7, 7)), ("nlvr2", STATEMENTS, (100, 0, 75, 0))):
        (folder / "predictions" / task).mkdir(parents=True)
        for split in splits:
            rows = [json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)]
            (folder / "predictions" / task / f"{split}.jsonl").write_text("".join(rows))
            scores = json.dumps({str(n): value for n, value in enumerate(values)})
            (folder / "predictions" / task / f"{split}.per_example.json").write_text(scores)
    (out / "costs").mkdir(exist_ok=True)
    (out / "costs" / f"{run.name}.json").write_text('{"exit": 0, "cpu_s": 1800, "wall_s": 9}')


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """All runs finished; the quickstart's seeds score 80, 82, 84, all others 70. Not modified."""
    folder = tmp_path_factory.mktemp("study")
    for run in all_runs():
        score = 80 + 2 * SEEDS.index(run.seed) if run.row == "quickstart" else 70
        write_run(folder, run, score, splits=("test", "ood") if run.group == "main" else ("test",))
    return folder


@pytest.fixture
def results(out):
    return read_finished(all_runs(), out)


def fake_cli_args(program: str):
    return lambda self, world, out: ["-c", program.format(folder=f"{out}/runs/{self.name}")]


def test_run_all_skips_finished_and_repeats_failed_runs(tmp_path, monkeypatch, capsys):
    runs = [run for run in all_runs() if run.row == "shuffled_images"]
    finish = "import pathlib as p; f = p.Path('{folder}'); f.mkdir(parents=True); (f / 'scores.json').touch()"

    def run_all(runs, max_parallel=2, time_limit=9):
        return study.run_all(runs, tmp_path, tmp_path, 1, max_parallel, time_limit)

    monkeypatch.setattr(StudyRun, "cli_args", fake_cli_args("print('failed'); raise SystemExit(3)"))
    name = "shuffled_images-42"
    assert run_all(runs[:1]) == [f"{name}: exit code 3, see {tmp_path}/logs/{name}.log"]
    assert study.unfinished(runs, tmp_path) == runs
    first = json.loads((tmp_path / "costs" / f"{name}.json").read_text())
    assert first["exit"] == 3

    monkeypatch.setattr(StudyRun, "cli_args", fake_cli_args(finish))
    assert run_all(runs, time_limit=0) == []
    assert study.unfinished(runs, tmp_path) == runs
    with Jobs(tmp_path, tmp_path, threads=1).try_lock(runs[1].name) as lock:  # another process runs it
        assert lock
        assert run_all(runs) == []
        assert study.unfinished(runs, tmp_path) == runs[1:2]
    assert run_all(runs) == []
    assert study.unfinished(runs, tmp_path) == []
    second = json.loads((tmp_path / "costs" / f"{name}.json").read_text())
    assert second["exit"] == 0
    assert second["cpu_s"] >= first["cpu_s"]

    capsys.readouterr()
    assert run_all(runs, max_parallel=1) == []
    assert capsys.readouterr().err == "", "nothing was started"


def test_main_table_shows_means_and_differences(results):
    table = main_table(results, "test")
    row = {row[0]: row for row in table.rows}
    assert row["quickstart"][1] == 3
    assert row["quickstart"][2] == MeanStd(82, 2)
    assert row["full"][2] == MeanStd(70, 0.0)
    assert row["random backbones"][3] == MeanStd(50, None)
    assert table.foot == (("quickstart minus shuffled images", "", 12, 0, 12, 12, 12),)
    met = [row[-1] for row in threshold_table(results).rows]
    assert met == ["yes", "yes", "yes", "**no**", "**no**"]


def test_parts_are_selected_by_wording(results):
    result, *_ = results["main: full"]
    assert result.scores["ood"][EXISTENCE] == 50
    assert result.scores["test"][LEFT_RIGHT] == 25
    assert (result.cpu_s, result.trainable_percent) == (1800, 25)
    rows = {row[0]: row for row in bounds_table({"main: full": [result]}).rows}
    assert set(rows) == {"full"}
    assert rows["full"][-1] == MeanStd(25, None)


def test_curves_share_points(results):
    shown = {group: {row[0]: row[1].mean for row in curve_table(results, group, "").rows} for group in CURVES}
    assert shown == {
        "steps": {"20": 70, "150": 70, "400": 70, "1200": 70},
        "data": {"1/64": 70, "1/16": 70, "1/4": 70, "1": 70},
        "rank": {"1": 70, "4": 70, "16": 70, "64": 70, "64, the quickstart's routing": 70, "64, no routing": 70},
    }
    assert not curve_table({}, "rank", "Rank").notes
    del results[f"bounds: {REPEAT}"]
    assert curve_table(results, "steps", "").rows[0][1] == MeanStd(80, None)


def test_method_table_contains_every_registered_method(results):
    shown = {section.split("name: ")[1].split(",")[0].rstrip("}") for section in METHODS.values()}
    assert shown == set(METHOD_REGISTRY.names())
    table = method_table(results)
    assert [row[0] for row in table.rows] == list(METHODS)
    assert {row[-1] for row in table.rows} == {"250"}


def test_rising_or_nan_loss_has_not_converged(tmp_path):
    runs = [run for run in all_runs() if (run.group, run.row) == ("routed", "LoRA, mm1")]
    for run, losses in zip(runs, [(4.0, 1.0), (1.0, 4.0), (4.0, float("nan"))], strict=True):
        write_run(tmp_path, run, 70, losses, splits=("val",))
    results = read_finished(runs, tmp_path)
    assert [converged(one) for one in results["routed: LoRA, mm1"]] == [True, False, False]
    (table,) = tables_of(results, "routed")
    assert "| LoRA, mm1 | 1 of 3 |" in table
    rows = [{"task": "vqa", "step": n, "loss": float(n)} for n in (1, 5, 10)]
    assert initial_and_final_losses(rows, 10) == {"vqa": (1.0, 10.0)}
    assert initial_and_final_losses(rows[1:2], 10) == {}


def test_page_is_rewritten_between_markers(out, tmp_path, capsys):
    shutil.copytree(out, tmp_path / "out")
    out, docs = tmp_path / "out", tmp_path / "docs"
    docs.mkdir()
    args = ["--world", str(out), "--out", str(out), "--docs", str(docs), "--record", str(docs / "r.json"), "--no-runs"]
    page = docs / PAGE
    page.write_text(f"Before.\n\n{BEGIN}\n")
    assert study.main(args) == 2
    assert f"needs one line {BEGIN} and one line {END}" in capsys.readouterr().err
    page.write_text(f"Before.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    (docs / "r.json").unlink()
    (out / "runs" / "mm1-LoRA-44" / "scores.json").unlink()
    (out / "costs" / "mm1-LoRA-44.json").write_text('{"exit": 2, "cpu_s": 5}')
    (out / "logs").mkdir()
    (out / "logs" / "mm1-LoRA-44.log").write_text("begun\nerror: step 9: loss nan\n")
    assert study.main(args) == 0
    text = page.read_text()
    assert text.startswith(f"Before.\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n\nAfter.\n")
    assert "\nold\n" not in text
    assert "| quickstart | 3 | 82.0 ± 2.0 |" in text
    assert "mm1-LoRA-44, exit code 2: error: step 9: loss nan" in text
    assert str(out) not in text, "commands contain no folder of this machine"
    charts = {path.name: path.read_bytes() for path in docs.glob("*.svg")}
    assert set(charts) == {"synthetic_world_controls.svg", "synthetic_world_curves.svg"}
    assert all(ElementTree.fromstring(chart).tag.endswith("svg") for chart in charts.values())
    assert all(name in text for name in charts)


def test_saved_charts_are_reproducible(tmp_path):
    contents = []
    for _ in range(2):
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([1, 2], marker="o")
        contents.append(save(figure, tmp_path / "chart.svg").read_bytes())
    assert contents[0] == contents[1]


def test_record_keeps_finished_runs(out, tmp_path):
    runs, record = all_runs(), tmp_path / "docs" / RECORD.name
    measured = update_record(runs, out, record)
    assert record.read_text().count("\n") == len(runs) + 2
    results = update_record(runs, tmp_path / "another machine", record)
    for section in ("main", "bounds", "curves", "routed", "methods"):
        assert tables_of(results, section) == tables_of(measured, section) != []

    repeated = next(run for run in runs if run.row == "symbolic")
    write_run(tmp_path / "repeated", repeated, 90)
    rows = update_record(runs, tmp_path / "repeated", record)
    assert rows["main: symbolic"][0].scores["test"]["gqa"] == 90
    assert rows == {**results, "main: symbolic": rows["main: symbolic"]}

    unknown = json.loads(record.read_text())
    unknown["symbolic-42"]["settings"] += " training.lr=1"
    record.write_text(json.dumps(unknown | {"removed-42": {}}))
    with pytest.raises(InputError, match=r"2 runs are not in the study or have other settings .first: symbolic-42"):
        update_record(runs, out, record)


@pytest.mark.parametrize("text", ["{", "[]", '{"symbolic-42": {"settings": ""}, "full-42": 3}'])
def test_corrupt_record_is_reported(tmp_path, text):
    record = tmp_path / RECORD.name
    record.write_text(text)
    with pytest.raises(InputError, match=r"not a record of this study .*git checkout -- "):
        update_record(all_runs(), tmp_path, record)


def test_recorded_runs_are_repeated_only_with_rerun(out, tmp_path, monkeypatch):
    started, record, world = [], tmp_path / RECORD.name, tmp_path / "world"
    world.mkdir()
    update_record(all_runs()[:5], out, record)
    monkeypatch.setattr(study, "run_all", lambda runs, *_: started.append([run.name for run in runs]) or [])
    monkeypatch.setattr("studies.synthetic_world.tables.write_page", lambda *_: "page")
    args = ["--world", str(world), "--out", str(tmp_path / "empty"), "--record", str(record), "--groups", "main"]
    assert study.main(args) == 2, "no features yet"
    (world / "features.h5").touch()
    assert study.main(args) == 0
    assert study.main([*args, "--rerun"]) == 0
    names = [run.name for run in all_runs() if run.group == "main"]
    assert started == [names[5:], names]


def test_missing_features_are_reported(tmp_path, capsys):
    args = ["--world", str(tmp_path), "--out", str(tmp_path), "--record", str(tmp_path / "record.json")]
    assert study.main(args) == 2
    assert "features.h5 not found" in capsys.readouterr().err


def test_page_contains_controls_and_recorded_runs(tmp_path):
    text = (ROOT / "docs" / PAGE).read_text()
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    for path in CONTROLS:
        assert f"configs/controls/{path.name}" in text
    results = update_record(all_runs(), tmp_path, Path(shutil.copy(RECORD, tmp_path)))
    for section in ("main", "bounds", "curves", "routed", "methods"):
        assert [table for table in tables_of(results, section) if table not in text] == []
    assert [run.run.name for found in results.values() for run in found if f"| {run.run.name} |" not in text] == []
    assert render(main_table({}, "test"), "markdown")  # a study without results has a table without rows
