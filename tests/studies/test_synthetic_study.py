"""Does the study of the embedded world run what it should, skip what has finished, and report what came out?"""

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from multitask_vl.config import load, load_config, locate
from multitask_vl.errors import InputError
from multitask_vl.registry import METHODS as METHOD_REGISTRY
from multitask_vl.reports.table import Spread, render
from multitask_vl.sweep.jobs import Jobs
from studies.synthetic_world import study
from studies.synthetic_world.record import FILE, kept
from studies.synthetic_world.results import EXISTENCE, SIDED, finished, first_and_last
from studies.synthetic_world.runs import BOUNDS, LORA, METHODS, SEEDS, StudyRun, all_runs
from studies.synthetic_world.tables import (
    BEGIN,
    CURVES,
    END,
    MAIN_RATES,
    bounds_table,
    converged,
    curve_table,
    main_table,
    method_table,
    tables_of,
    verdict_table,
)

ROOT = Path(__file__).resolve().parents[2]
CONTROLS = sorted((ROOT / "configs" / "controls").glob("*.yaml"))
QUESTIONS = ["is there a red star?", "can you see a striped thing?", "is the star red?", "how many stars are there?"]


def write_run(out: Path, run: StudyRun, score: float, losses=(4.0, 1.0), splits=("report", "heldout"), steps=20):
    """A finished run whose every score is ``score``; existence questions score 100 and 0."""
    folder = out / "runs" / run.name
    folder.mkdir(parents=True)
    entry = {
        "average": score,
        "tasks": {task: {"value": score} for task in ("vqa", "gqa", "nlvr2", "coco_caption")},
    }
    counts = {"trainable": 1, "total": 4}
    record = {"step": steps, "splits": dict.fromkeys(splits, entry), "parameters": counts}
    (folder / "scores.json").write_text(json.dumps(record))
    values = np.linspace(*losses, steps).tolist()
    rows = [
        {"step": n + 1, "task": task, "loss": values[n], "wall_s": 0.25}
        for n in range(steps)
        for task in ("vqa", "nlvr2")
    ]
    rows.append({"step": steps, "split": "report", "scores": {}})
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


STATEMENTS = [
    "both images contain a star.",
    "the left image shows a star.",
    "there are more stars in the right image.",
    "there are two stars in the right image.",
]


@pytest.fixture(autouse=True)
def plugins_of_one_test(monkeypatch):
    """What a run's plugin registers, other tests do not find: they ask for all methods there are."""
    METHOD_REGISTRY.names()
    monkeypatch.setattr(METHOD_REGISTRY, "_entries", dict(METHOD_REGISTRY._entries))
    monkeypatch.delitem(sys.modules, "studies.synthetic_world.full_plus_adapter", raising=False)


@pytest.fixture
def out(tmp_path):
    """Every run finished; the quickstart's seeds score 80, 82, 84, all others 70."""
    for run in all_runs():
        score = 80 + 2 * SEEDS.index(run.seed) if run.row == "quickstart" else 70
        write_run(tmp_path, run, score, splits=("report", "heldout") if run.group == "main" else ("report",))
    return tmp_path


def test_the_runs_are_those_that_were_asked_for():
    runs = all_runs()
    assert len({run.name for run in runs}) == len(runs)
    count = Counter((run.group, run.row) for run in runs)
    assert (count["main", "quickstart"], count["main", "blind"]) == (3, 3)
    for function in ("mm1", "mm2"):
        routed = [run for run in runs if run.group == "routed" and run.row.endswith(f", {function}")]
        assert Counter(run.row.split(", ")[0] for run in routed) == {
            "single adapter": 3,
            "adapter per task": 3,
            "LoRA": 3,
        }
        assert {run.seed for run in routed} == set(SEEDS)
    assert [run.row for run in all_runs(shorter=5) if run.group == "steps"] == ["30", "80", "240"]


def test_every_run_s_command_is_a_configuration(tmp_path):
    runs = all_runs(shorter=25)
    for run in {(run.group, LORA in run.overrides): run for run in runs}.values():
        script, _, path, *overrides = run.words(tmp_path / "world", tmp_path)
        assert (ROOT / script).is_file()
        config = load_config(ROOT / path, overrides)
        assert (config.seed, config.run_dir) == (run.seed, tmp_path / "runs" / run.name)
        lengths = {"main": 24, "bounds": 24, "routed": 8, "rates": 4, "data": 24, "rank": 16, "methods": 8}
        assert config.training.steps == (int(run.row) if run.group == "steps" else lengths[run.group])
        if run.group == "rank":
            adapter = config.method[0]
            rank = int(run.row.partition(",")[0])
            assert (adapter.rank, adapter.sharing, adapter.train_layer_norms) == (rank, "single", "none")
        if run.group in ("methods", "bounds"):
            assert config.method[-1].name == {"methods": "full", "bounds": "full_beside"}[run.group]
        if LORA in run.overrides:
            assert (config.method[0].name, config.method[0].sharing) == ("lora", "single")
        if run.share > 1:
            gqa = config.tasks["gqa"].splits
            assert [str(file) for file in gqa["train"].questions] == [f"{tmp_path}/subsets/1_of_4/gqa_questions.json"]
            assert [str(file) for file in gqa["report"].questions] == ["gqa/report_balanced_questions.json"]


@pytest.mark.parametrize("path", CONTROLS, ids=lambda path: path.stem)
def test_a_control_is_the_quickstart_but_for_what_it_controls(path):
    loaded, quickstart = load(path), load(ROOT / "configs" / "quickstart.yaml").config.model_dump()
    config = loaded.config.model_dump()
    assert config["run_dir"] == Path("runs/controls") / path.stem
    differs = {
        f"{section}.{key}" if isinstance(config[section], dict) else section
        for section in config
        for key in (config[section] if isinstance(config[section], dict) else [""])
        if config[section] != quickstart[section] and (not key or config[section][key] != quickstart[section].get(key))
    }
    clip = {"clip.pretrained", "features.store"}
    bart = {"backbone.pretrained", "backbone.tokenizer", "backbone.config"}
    allowed = {
        "random_clip": clip,
        "random_bart": bart,
        "random_backbones": clip | bart,
        "full": {"method", "routing.function", "training.backbone_lr"},
        "symbolic": clip | {"clip.model", "visual.feature_dim"},
    }
    assert differs == allowed[path.stem] | {"run_dir"}


def test_the_random_bart_has_the_sizes_of_the_pretrained_one():
    sizes = load_config(ROOT / "configs" / "controls" / "random_bart.yaml").backbone.config
    shipped = json.loads((Path(locate("embedded:bart")) / "config.json").read_text())
    assert sizes == {key: shipped[key] for key in sizes}


def fake_words(program: str):
    return lambda self, world, out: ["-c", program.format(folder=f"{out}/runs/{self.name}")]


def test_finished_runs_are_skipped_and_interrupted_ones_run_again(tmp_path, monkeypatch, capsys):
    runs = [run for run in all_runs() if run.row == "blind"]
    finishes = "import pathlib as p; f = p.Path('{folder}'); f.mkdir(parents=True); (f / 'scores.json').touch()"
    monkeypatch.setattr(StudyRun, "words", fake_words("print('dead'); raise SystemExit(3)"))
    failures = study.run_all(runs[:1], tmp_path, tmp_path, threads=1, at_once=1, minutes=9)
    assert failures == [f"blind-42: exit code 3, see {tmp_path}/logs/blind-42.log"]
    assert study.unfinished(runs, tmp_path) == runs
    first = json.loads((tmp_path / "costs" / "blind-42.json").read_text())
    assert first["exit"] == 3

    monkeypatch.setattr(StudyRun, "words", fake_words(finishes))
    assert study.run_all(runs, tmp_path, tmp_path, threads=1, at_once=1, minutes=0) == []
    assert study.unfinished(runs, tmp_path) == runs  # no time left, none begun
    with Jobs(tmp_path, tmp_path, threads=1).claimed(runs[1].name) as claim:
        assert claim
        assert study.run_all(runs, tmp_path, tmp_path, threads=1, at_once=2, minutes=9) == []
        assert study.unfinished(runs, tmp_path) == runs[1:2]  # somebody else's
    assert study.run_all(runs, tmp_path, tmp_path, threads=1, at_once=2, minutes=9) == []
    assert study.unfinished(runs, tmp_path) == []
    second = json.loads((tmp_path / "costs" / "blind-42.json").read_text())
    assert second["exit"] == 0
    assert second["cpu_s"] >= first["cpu_s"]

    capsys.readouterr()
    assert study.run_all(runs, tmp_path, tmp_path, threads=1, at_once=1, minutes=9) == []
    assert capsys.readouterr().out == ""  # nothing was begun


def test_scores_are_means_and_differences(out):
    results = finished(all_runs(), out)
    table = main_table(results, "report")
    row = {row[0]: row for row in table.rows}
    assert row["quickstart"][1] == 3
    assert row["quickstart"][2] == Spread(82, 2)
    assert row["full"][2] == Spread(70, 0.0)
    assert row["random backbones"][3] == Spread(50, None)
    assert table.foot == (("quickstart over blind", "", 12, 0, 12, 12, 12),)
    holds = [row[-1] for row in verdict_table(results).rows]
    assert holds == ["yes", "yes", "yes", "**no**", "**no**"]


def test_parts_are_told_by_their_wording(out):
    result, *_ = finished(all_runs(), out)["main: full"]
    assert result.scores["heldout"][EXISTENCE] == 50
    assert result.scores["report"][SIDED] == 25
    assert (result.cpu_s, result.trained) == (1800, 25)
    rows = {row[0]: row for row in bounds_table({"main: full": [result]}).rows}
    assert set(rows) == {"full"}
    assert rows["full"][-1] == Spread(25, None)


def test_rates_of_the_table_are_those_of_the_runs(tmp_path):
    for run in all_runs():
        if run.group == "bounds" or (run.group == "main" and run.row in MAIN_RATES):
            config = load_config(ROOT / run.config, run.words(tmp_path, tmp_path)[3:])
            told = BOUNDS.get(run.row, (None, 1, *MAIN_RATES.get(run.row, ())))
            old = config.training.backbone_lr or config.training.lr
            trains = any("full" in one.name for one in config.method)
            assert (told[2] != "frozen") == trains
            assert not trains or float(told[2]) == old
            assert (float(told[3]), 600 * told[1]) == (config.training.lr, config.training.steps)


def test_curves_share_points(out):
    results = finished(all_runs(), out)
    shown = {group: {row[0]: row[1].mean for row in curve_table(results, group, "").rows} for group in CURVES}
    assert shown == {
        "steps": {"20": 70, "150": 70, "400": 70, "1200": 70},
        "data": {"1/64": 70, "1/16": 70, "1/4": 70, "1": 70},
        "rank": {"1": 70, "4": 70, "16": 70, "64": 70, "64, the quickstart's routing": 70, "64, no routing": 70},
    }
    assert not curve_table({}, "rank", "Rank").notes
    del results["bounds: quickstart, again"]
    assert curve_table(results, "steps", "").rows[0][1] == Spread(80, None)


def test_every_registered_method_is_compared(out):
    shown = {section.split("name: ")[1].split(",")[0].rstrip("}") for section in METHODS.values()}
    assert shown == set(METHOD_REGISTRY.names())
    table = method_table(finished(all_runs(), out))
    assert [row[0] for row in table.rows] == list(METHODS)
    assert {row[-1] for row in table.rows} == {"250"}


def test_a_loss_that_rises_or_is_no_number_did_not_converge(tmp_path):
    runs = [run for run in all_runs() if (run.group, run.row) == ("routed", "LoRA, mm1")]
    for run, losses in zip(runs, [(4.0, 1.0), (1.0, 4.0), (4.0, float("nan"))], strict=True):
        write_run(tmp_path, run, 70, losses, splits=("tune",))
    results = finished(runs, tmp_path)
    assert [converged(one) for one in results["routed: LoRA, mm1"]] == [True, False, False]
    (table,) = tables_of(results, "routed")
    assert "| LoRA, mm1 | 1 of 3 |" in table
    rows = [{"task": "vqa", "step": n, "loss": float(n)} for n in (1, 5, 10)]
    assert first_and_last(rows, 10) == {"vqa": (1.0, 10.0)}
    assert first_and_last(rows[1:2], 10) == {}


def test_the_page_is_rewritten_between_its_marks_only(out, tmp_path_factory, capsys):
    docs = tmp_path_factory.mktemp("docs")
    command = ["--world", str(out), "--out", str(out), "--docs", str(docs), "--no-runs"]
    assert study.main(command) == 2  # no page
    page = docs / "embedded_world.md"
    page.write_text(f"Before.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    (out / "runs" / "mm1-LoRA-44" / "scores.json").unlink()
    (out / "costs" / "mm1-LoRA-44.json").write_text('{"exit": 2, "cpu_s": 5}')
    (out / "logs").mkdir()
    (out / "logs" / "mm1-LoRA-44.log").write_text("begun\nerror: step 9: loss nan\n")
    assert study.main(command) == 0
    text = page.read_text()
    assert text.startswith(f"Before.\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n\nAfter.\n")
    assert "\nold\n" not in text
    assert "| quickstart | 3 | 82.0 ± 2.0 |" in text
    assert "mm1-LoRA-44, exit code 2: error: step 9: loss nan" in text
    assert str(out) not in text  # commands name no folder of this machine
    charts = {path.name: path.read_bytes() for path in docs.glob("*.svg")}
    assert set(charts) == {"embedded_world_controls.svg", "embedded_world_curves.svg"}
    assert all(ElementTree.fromstring(chart).tag.endswith("svg") for chart in charts.values())
    assert all(name in text for name in charts)
    assert study.main(command) == 0
    assert page.read_text() == text
    assert {path.name: path.read_bytes() for path in docs.glob("*.svg")} == charts


def test_what_has_finished_stays_on_record(out, tmp_path, capsys):
    runs, record = all_runs(), tmp_path / "docs" / FILE
    fresh = kept(runs, out, record)
    assert record.read_text().count("\n") == len(runs) + 2
    results = kept(runs, tmp_path / "another machine", record)
    for section in ("main", "bounds", "curves", "routed", "methods"):
        assert tables_of(results, section) == tables_of(fresh, section) != []

    again = next(run for run in runs if run.row == "symbolic")
    write_run(tmp_path / "again", again, 90)
    rows = kept(runs, tmp_path / "again", record)
    assert rows["main: symbolic"][0].scores["report"]["gqa"] == 90
    assert rows == {**results, "main: symbolic": rows["main: symbolic"]}

    strange = json.loads(record.read_text())
    strange["symbolic-42"]["settings"] += " training.lr=1"
    record.write_text(json.dumps(strange | {"gone-42": {}}))
    with pytest.raises(InputError, match=r"2 runs are not in the study, or with other settings .first: symbolic-42"):
        kept(runs, out, record)


@pytest.mark.parametrize("text", ["{", "[]", '{"symbolic-42": {"settings": ""}, "blind-42": 3}'])
def test_a_damaged_record_is_told_with_what_mends_it(out, tmp_path, text):
    record = tmp_path / FILE
    record.write_text(text)
    with pytest.raises(InputError, match=r"is no record of the runs .*git checkout -- "):
        kept(all_runs(), out, record)


def test_what_is_on_record_is_run_only_if_asked_for(out, tmp_path, monkeypatch):
    docs, asked = tmp_path / "docs", []
    (out / "features.h5").touch()
    kept(all_runs()[:5], out, docs / FILE)
    (docs / "embedded_world.md").write_text(f"{BEGIN}\n{END}\n")
    monkeypatch.setattr(study, "run_all", lambda runs, *_: asked.append([run.name for run in runs]) or [])
    command = ["--world", str(out), "--out", str(tmp_path / "empty"), "--docs", str(docs), "--only", "main"]
    assert study.main(command) == 0
    assert study.main([*command, "--again"]) == 0
    names = [run.name for run in all_runs() if run.group == "main"]
    assert asked == [names[5:], names]


def test_runs_need_features(tmp_path, capsys):
    assert study.main(["--world", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "no features.h5" in capsys.readouterr().err


def test_the_page_in_the_repository_has_its_marks():
    text = (ROOT / "docs" / "embedded_world.md").read_text()
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    for path in CONTROLS:
        assert f"configs/controls/{path.name}" in text
    on_record = json.loads((ROOT / "docs" / FILE).read_text())
    assert [name for name in on_record if f"| {name} |" not in text] == []
    assert render(main_table({}, "report"), "markdown")  # an empty study has a table without rows
