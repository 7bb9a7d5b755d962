"""Are the tables of the routing study what its runs say: means, paired differences, intervals, a record that lasts?"""

import json
import shutil
import statistics

import pytest
import yaml

from multitask_vl.errors import InputError
from multitask_vl.reproduction.parameters import markers
from multitask_vl.sweep.grid import read_grid
from multitask_vl.sweep.selection import resolved
from studies.routing import study
from studies.routing.record import read_record, write_record
from studies.routing.study import read_study
from studies.routing.tables import (
    TASKS,
    differences,
    full_text,
    over_examples,
    over_seeds,
    quick_text,
    rates,
    replaced,
)
from tests import tiny_run

SCORED = [task for task in TASKS if task != "average"]
GAINS = {"none": 0.0, "mul": 10.0, "noise": -4.0}
NOISE = {"seed1": 0.0, "seed2": 3.0, "seed3": -3.0}


def a_grid(folder, select=None, quick=None):
    """{none, mul} x three seeds, and mul with noise."""
    values = {
        "base": str(tiny_run.ROOT / "configs" / "quickstart.yaml"),
        "out": str(folder / "out"),
        "always": {"training.steps": 7},
        "axes": {
            "method": {"single_adapter": {"method.sharing": "single"}},
            "routing": {name: {"routing.function": name} for name in ("none", "mul")},
            "seed": [1, 2, 3],
        },
        "include": [{"name": "noise", "at": {"routing": "mul"}, "set": {"routing.control": "noise"}}],
        "select": select,
        "quick": quick,
    }
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({key: one for key, one in values.items() if one is not None}, sort_keys=False))
    return path


def finish(grid, run, examples=40):
    """What a run leaves: each example scores 50 and its row's gain; half of the examples gain double, half nothing."""
    kind = run.options.get("include") or run.options["routing"]
    gain, noise = GAINS[kind], NOISE[run.options["seed"]] if kind == "mul" else 0.0
    scores = {str(at): 50 + 2 * gain * (at % 2) + noise for at in range(examples)}
    folder = grid.out / "runs" / run.name
    folder.mkdir(parents=True)
    mean = statistics.mean(scores.values())
    tasks = {task: {"headline": "accuracy", "value": mean, "count": examples} for task in SCORED}
    told = {
        "step": 7,
        "splits": {"report": {"tasks": tasks, "average": mean}},
        "parameters": {"trainable": 1, "total": 4},
    }
    (folder / "scores.json").write_text(json.dumps(told))
    rows = [{"step": at, "task": "vqa", "loss": 1.0, "lr": 1e-3, "wall_s": 0.1} for at in range(1, 8)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "resolved.yaml").write_text("seed: 1\n")
    (folder / "record.json").write_text(json.dumps({"code": {"commit": "0123456789", "dirty": False}}))
    for task in SCORED:
        (folder / "predictions" / task).mkdir(parents=True)
        lines = [
            json.dumps({"id": id_, "images": [], "text": "t", "prediction": "p", "references": ["p"]}) + "\n"
            for id_ in scores
        ]
        (folder / "predictions" / task / "report.jsonl").write_text("".join(lines))
        (folder / "predictions" / task / "report.per_example.json").write_text(json.dumps(scores))
    (grid.out / "costs").mkdir(exist_ok=True)
    (grid.out / "costs" / f"{run.name}.json").write_text('{"exit": 0, "cpu_s": 9, "wall_s": 10}')


@pytest.fixture
def grid(tmp_path):
    grid = read_grid(a_grid(tmp_path))
    for run in grid.runs:
        finish(grid, run)
    return grid


def test_differences_are_paired_by_seed_and_by_example(grid):
    study = read_study(grid)
    assert {name: len(found) for name, found in study.rows().items()} == {
        "single_adapter-none": 3, "single_adapter-mul": 3, "single_adapter-mul-noise": 3,
    }  # fmt: skip
    rows = {row[0]: row[1:] for row in differences(study).rows}
    # seeds gain 10, 13 and 7: the deviation is 3, Student's factor for two degrees of freedom 4.303
    half = 4.303 * 3 / 3**0.5
    assert rows["Single Adapter, mul"][0] == f"**+10.0 (+{10 - half:.1f} to +{10 + half:.1f})**"
    assert rows["Single Adapter, mul, noise"] == ("**\u22124.0 (\u22124.0 to \u22124.0)**",) * 5
    mean, low, high = study.paired["single_adapter-mul"]["vqa"]
    assert mean == pytest.approx(10)
    # half of the examples gain 20, half 0: the mean of 40 has a deviation of 1.58
    assert 6 < low < 8
    assert 12 < high < 14
    assert [row[0] for row in over_examples(study).rows] == ["Single Adapter, mul", "Single Adapter, mul, noise"]


def test_an_interval_that_holds_nothing_is_not_bold(grid, monkeypatch):
    monkeypatch.setitem(NOISE, "seed2", 30.0)
    rerun = read_grid(a_grid(grid.out.parent))
    for run in rerun.runs:
        if run.options["routing"] == "mul" and "include" not in run.options:
            shutil.rmtree(rerun.out / "runs" / run.name)
            finish(rerun, run)
    (wide,) = (row for row in differences(read_study(rerun)).rows if row[0] == "Single Adapter, mul")
    assert "**" not in wide[1]
    assert "\u2212" in wide[1]


def test_only_what_has_finished_is_shown(tmp_path):
    grid = read_grid(a_grid(tmp_path))
    assert read_study(grid) is None
    for run in grid.runs[:4]:
        finish(grid, run)
    study = read_study(grid)
    assert len(study.runs) == 4
    assert study.planned == 9
    assert not study.paired, "one seed of mul against three of none is no pair of rows"
    assert [row[1] for row in over_seeds(study).rows] == [3, 1]
    assert "4 of 9 runs" in full_text(study)
    assert "+" in quick_text(study), "what there is is compared seed by seed"


def test_what_replaces_x_r_stands_beside_it(grid):
    rows = [row for row in replaced(read_study(grid)).rows if row[0] == "VQA"]
    assert [row[1] for row in rows] == ["no routing", "encoder states, pooled (x_R)", "noise"]
    assert [row[2].mean for row in rows] == pytest.approx([50, 60, 46])
    assert rows[1][3] is None, "add was not run"


def test_the_record_gives_the_same_pages(grid, tmp_path):
    study = read_study(grid)
    write_record(tmp_path / "study.json", {"full": study})
    assert read_record(tmp_path / "study.json") == {"full": study}
    lines = (tmp_path / "study.json").read_text().splitlines()
    assert sum(line.startswith('"single_adapter-mul-seed2"') for line in lines) == 1, "a run, a line"
    assert read_record(tmp_path / "absent.json") == {}
    (tmp_path / "cut.json").write_text("\n".join(lines[:5]))
    with pytest.raises(InputError, match=r"cut.json: is no record of the study .* git checkout -- "):
        read_record(tmp_path / "cut.json")


def test_the_command_writes_the_pages_and_needs_no_runs_afterwards(tmp_path, capsys):
    path = a_grid(tmp_path, quick={"always": {"training.steps": 3}})
    docs, readme = tmp_path / "docs", tmp_path / "README.md"
    docs.mkdir()
    (docs / "study.md").write_text(
        "".join(f"{one}\n" for one in (*markers("quick routing study"), *markers("routing study")))
    )
    readme.write_text("\n".join(markers("quick routing study")) + "\n")
    words = ["--grid", str(path), "--docs", str(docs), "--readme", str(readme)]
    assert study.main([*words, "--quick"]) == 2
    assert "no run of the study has finished there. Run: python launch/sweep.py" in capsys.readouterr().err
    for quick in (False, True):
        grid = read_grid(path, quick)
        for run in grid.runs:
            finish(grid, run)
        assert study.main([*words, *(["--quick"] if quick else [])]) == 0
    page, table = (docs / "study.md").read_text(), readme.read_text()
    assert "As Table C7" in page
    assert page.count("in the middle of learning") == table.count("in the middle of learning") == 1
    assert "As Table C7" not in table
    for path in (grid.out / "runs").rglob("*.json"):
        path.unlink()
    assert study.main([*words, "--no-runs"]) == 0
    assert ((docs / "study.md").read_text(), readme.read_text()) == (page, table)


def test_chosen_rates_are_told(tmp_path):
    select = {"values": [1e-4, 1e-3], "over": "seed", "split": "tune", "set": {"training.steps": 3}}
    grid = read_grid(a_grid(tmp_path, select))
    assert read_study(grid) is None
    for run in grid.every():
        if run.trial:
            (grid.out / "runs" / run.name).mkdir(parents=True)
            told = {"splits": {"tune": {"average": 1e4 * run.value}}}
            (grid.out / "runs" / run.name / "scores.json").write_text(json.dumps(told))
    for run in grid.runs:
        finish(grid, resolved(grid, run))
    (row, *_) = rates(read_study(grid)).rows
    assert row == ("Single Adapter, none", "0.001", 1.0, 10.0)
