"""Routing study: means, paired differences, intervals, record and page."""

import json
import shutil
import statistics

import pytest
import yaml

from multitask_vl.errors import InputError
from multitask_vl.reports.markers import markers
from multitask_vl.sweep.read_grid import read_grid
from multitask_vl.sweep.selection import apply_selection
from studies.routing import study
from studies.routing.record import RECORD, read_record, write_record
from studies.routing.study import read_study
from studies.routing.tables import (
    PAGE,
    QUICK_SECTION,
    SECTION,
    TASKS,
    all_rows_table,
    differences_by_example,
    differences_by_seed,
    full_text,
    learning_rate_table,
    quick_text,
    replacement_table,
)
from tests import tiny_run

SCORED = [task for task in TASKS if task != "average"]
GAINS = {"none": 0.0, "mul": 10.0, "noise": -4.0}
SEED_OFFSETS = {"seed1": 0.0, "seed2": 3.0, "seed3": -3.0}


def write_grid(folder, select=None, smoke=None):
    """Write a sweep of {none, mul} x three seeds, and mul with noise."""
    values = {
        "base": str(tiny_run.ROOT / "configs" / "examples" / "quickstart.yaml"),
        "out": str(folder / "out"),
        "common": {"training.max_steps": 7},
        "grid": {
            "method": {"single_adapter": {"method.sharing": "single"}},
            "routing": {name: {"routing.function": name} for name in ("none", "mul")},
            "seed": [1, 2, 3],
        },
        "include": [{"name": "noise", "where": {"routing": "mul"}, "overrides": {"routing.control": "noise"}}],
        "select": select,
        "smoke": smoke,
    }
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({key: one for key, one in values.items() if one is not None}, sort_keys=False))
    return path


def finish(grid, run, examples=40):
    """Write a run folder: scores are 50 plus twice the row's gain for every other example, else 50."""
    kind = run.options.get("include") or run.options["routing"]
    gain, offset = GAINS[kind], SEED_OFFSETS[run.options["seed"]] if kind == "mul" else 0.0
    scores = {str(at): 50 + 2 * gain * (at % 2) + offset for at in range(examples)}
    folder = grid.out / "runs" / run.name
    folder.mkdir(parents=True)
    mean = statistics.mean(scores.values())
    tasks = {task: {"primary_metric": "accuracy", "value": mean, "count": examples} for task in SCORED}
    final = {
        "step": 7,
        "splits": {"test": {"tasks": tasks, "average": mean}},
        "parameters": {"trainable": 1, "total": 4},
    }
    (folder / "scores.json").write_text(json.dumps(final))
    rows = [{"step": at, "task": "vqa", "loss": 1.0, "lr": 1e-3, "wall_s": 0.1} for at in range(1, 8)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "resolved.yaml").write_text("seed: 1\n")
    (folder / "record.json").write_text(json.dumps({"code": {"commit": "0123456789", "dirty": False}}))
    row = {"images": [], "text": "t", "prediction": "p", "references": ["p"]}
    lines = "".join(json.dumps({"id": id_, **row}) + "\n" for id_ in scores)
    for task in SCORED:
        (folder / "predictions" / task).mkdir(parents=True)
        (folder / "predictions" / task / "test.jsonl").write_text(lines)
        (folder / "predictions" / task / "test.per_example.json").write_text(json.dumps(scores))
    (grid.out / "costs").mkdir(exist_ok=True)
    (grid.out / "costs" / f"{run.name}.json").write_text('{"exit": 0, "cpu_s": 9, "wall_s": 10}')


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A sweep whose runs are all finished; not modified."""
    grid = read_grid(write_grid(tmp_path_factory.mktemp("routing")))
    for run in grid.runs:
        finish(grid, run)
    return grid


@pytest.fixture(scope="module")
def finished(grid):
    return read_study(grid)


def test_differences_are_paired_by_seed_and_example(finished):
    assert {name: len(runs) for name, runs in finished.rows().items()} == {
        "single_adapter-none": 3, "single_adapter-mul": 3, "single_adapter-mul-noise": 3,
    }  # fmt: skip
    rows = {row[0]: row[1:] for row in differences_by_seed(finished).rows}
    # the seeds gain 10, 13 and 7: standard deviation 3, Student's t with two degrees of freedom 4.303
    half = 4.303 * 3 / 3**0.5
    assert rows["Single Adapter, mul"][0] == f"**+10.0 (+{10 - half:.1f} to +{10 + half:.1f})**"
    assert rows["Single Adapter, mul, noise"] == ("**\u22124.0 (\u22124.0 to \u22124.0)**",) * 5
    mean, low, high = finished.paired["single_adapter-mul"]["vqa"]
    assert mean == pytest.approx(10)
    # half of the examples gain 20, half 0: the mean of 40 has a standard deviation of 1.58
    assert 6 < low < 8
    assert 12 < high < 14
    labels = [row[0] for row in differences_by_example(finished).rows]
    assert labels == ["Single Adapter, mul", "Single Adapter, mul, noise"]


def test_interval_that_includes_zero_is_not_bold(grid, tmp_path, monkeypatch):
    shutil.copytree(grid.out, tmp_path / "out")
    monkeypatch.setitem(SEED_OFFSETS, "seed2", 30.0)
    rerun = read_grid(write_grid(tmp_path))
    for run in rerun.runs:
        if run.options["routing"] == "mul" and "include" not in run.options:
            shutil.rmtree(rerun.out / "runs" / run.name)
            finish(rerun, run)
    (wide,) = (row for row in differences_by_seed(read_study(rerun)).rows if row[0] == "Single Adapter, mul")
    assert "**" not in wide[1]
    assert "\u2212" in wide[1]


def test_tables_show_finished_runs_only(tmp_path):
    grid = read_grid(write_grid(tmp_path))
    assert read_study(grid) is None
    for run in grid.runs[:4]:
        finish(grid, run)
    study = read_study(grid)
    assert len(study.runs) == 4
    assert study.num_planned == 9
    assert not study.paired, "one seed of mul cannot be paired with three of none"
    assert [row[1] for row in all_rows_table(study).rows] == [3, 1]
    assert "4 of 9 runs" in full_text(study)
    assert "+" in quick_text(study), "finished seeds are compared"


def test_replacement_table_lists_controls(finished):
    rows = [row for row in replacement_table(finished).rows if row[0] == "VQA"]
    assert [row[1] for row in rows] == ["no routing", "mean encoder hidden state (default)", "noise"]
    assert [row[2].mean for row in rows] == pytest.approx([50, 60, 46])
    assert rows[1][3] is None, "add was not run"


def test_record_round_trip(finished, tmp_path):
    path = tmp_path / "record.json"
    write_record(path, {"full": finished})
    assert read_record(path) == {"full": finished}
    lines = path.read_text().splitlines()
    assert sum(line.startswith('"single_adapter-mul-seed2"') for line in lines) == 1, "one line per run"
    assert read_record(tmp_path / "absent.json") == {}
    (tmp_path / "cut.json").write_text("\n".join(lines[:5]))
    with pytest.raises(InputError, match=r"cut.json: not a record of this study .* git checkout -- "):
        read_record(tmp_path / "cut.json")


def test_command_writes_record_and_page(tmp_path, capsys):
    path = write_grid(tmp_path, smoke={"common": {"training.max_steps": 3}})
    docs, page = tmp_path / "docs", tmp_path / "docs" / PAGE
    docs.mkdir()
    page.write_text("".join(f"{marker}\n" for name in (QUICK_SECTION, SECTION) for marker in markers(name)))
    args = ["--grid", str(path), "--docs", str(docs), "--record", str(tmp_path / "record.json")]
    assert study.main([*args, "--quick"]) == 2
    assert "no finished run of the study. Run: multitask-vl sweep" in capsys.readouterr().err
    for quick in (False, True):
        grid = read_grid(path, quick)
        for run in grid.runs:
            finish(grid, run)
        assert study.main([*args, *(["--quick"] if quick else [])]) == 0
    text = page.read_text()
    assert text.index("early in training") < text.index("Table C7")
    for one in (grid.out / "runs").rglob("*.json"):
        one.unlink()
    assert study.main([*args, "--no-runs"]) == 0
    assert page.read_text() == text


def test_learning_rate_trials_are_listed(tmp_path):
    select = {"values": [1e-4, 1e-3], "repeat_over": "seed", "split": "val", "overrides": {"training.max_steps": 3}}
    grid = read_grid(write_grid(tmp_path, select))
    assert read_study(grid) is None
    for run in grid.all_runs():
        if run.trial:
            (grid.out / "runs" / run.name).mkdir(parents=True)
            final = {"splits": {"val": {"average": 1e4 * run.value}}}
            (grid.out / "runs" / run.name / "scores.json").write_text(json.dumps(final))
    for run in grid.runs:
        finish(grid, apply_selection(grid, run))
    (row, *_) = learning_rate_table(read_study(grid)).rows
    assert row == ("Single Adapter, none", "0.001", 1.0, 10.0)


def test_recorded_runs_match_sweep_and_page():
    recorded, page = read_record(RECORD), (tiny_run.ROOT / "docs" / PAGE).read_text()
    grid = read_grid(study.GRID, smoke=True)
    assert [run.name for run in grid.runs] == list(recorded["quick"].runs)
    assert len(recorded["full"].runs) == recorded["full"].num_planned
    assert full_text(recorded["full"]) in page
    assert quick_text(recorded["quick"]) in page
