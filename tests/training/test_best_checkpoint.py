"""The best checkpoints by each score: found from metrics.jsonl, kept, linked and evaluated as an adapter."""

import json

import pytest

from multitask_vl.config import load
from multitask_vl.config.schema import KeepBestConfig
from multitask_vl.errors import InputError
from multitask_vl.models.from_pretrained import from_pretrained
from multitask_vl.training.checkpoint_manager import find_best, unscored_splits, update_best_links
from tests import tiny_run

BOTH = KeepBestConfig(metrics=["average", "vqa"], split="val")


def row(step, split="val", **scores):
    return {"step": step, "split": split, "scores": scores}


ROWS = [
    row(10, vqa=50.0, gqa=70.0),
    row(20, vqa=60.0, gqa=55.0),
    row(20, "test", vqa=99.0),
    row(30, vqa=60.0, gqa=60.0),
]


def test_find_best_prefers_the_earlier_of_equals():
    found = find_best(ROWS, BOTH, steps=[10, 20, 30])
    assert {name: (best.step, best.value) for name, best in found.items()} == {"average": (10, 60.0), "vqa": (20, 60.0)}


def test_find_best_needs_a_checkpoint():
    found = find_best(ROWS, BOTH, steps=[30])
    assert {name: best.step for name, best in found.items()} == {"average": 30, "vqa": 30}
    assert find_best(ROWS, BOTH, steps=[]) == {}


def write(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows) + '{"step": 4')
    for one in rows:
        (folder / "checkpoints" / f"step-{one['step']:08d}").mkdir(parents=True, exist_ok=True)
    return folder / "checkpoints", folder / "metrics.jsonl"


def test_update_best_links_follows_metrics(tmp_path):
    checkpoints, metrics = write(tmp_path, ROWS)
    assert update_best_links(checkpoints, metrics, BOTH) == {10, 20}
    assert (checkpoints / "best-vqa").resolve().name == "step-00000020"
    index = json.loads((checkpoints / "best.json").read_text())
    assert index["average"] == {"split": "val", "value": 60.0, "step": 10, "checkpoint": "step-00000010"}
    checkpoints, metrics = write(tmp_path, [*ROWS, row(40, vqa=61.0, gqa=10.0)])
    assert update_best_links(checkpoints, metrics, BOTH) == {10, 40}
    metrics.write_text("")  # as after resuming from before the first evaluation
    assert update_best_links(checkpoints, metrics, BOTH) == set()
    assert not list(checkpoints.glob("best-*"))
    assert update_best_links(checkpoints, metrics, None) == set()


def test_unscored_splits_ignores_final_rows(tmp_path):
    _, metrics = write(tmp_path, [row(10), row(20), row(20, "test") | {"final": True}])
    assert unscored_splits(metrics, 20, ["val", "test"]) == ["test"]
    assert unscored_splits(metrics, 30, ["val", "test"]) == ["val", "test"]
    assert unscored_splits(tmp_path / "absent.jsonl", 0, ["val"]) == ["val"]


def test_keep_best_by_score_that_is_not_computed_is_an_error(tmp_path):
    keep_best = {"metrics": ["average", "vqaa"], "split": "test"}
    training = tiny_run.base_config(tmp_path)["training"]
    config = tiny_run.write_config(tmp_path, training={**training, "keep_best": keep_best})
    with pytest.raises(InputError) as caught:
        load(config)
    assert len(caught.value.problems) == 2
    assert "training.keep_best.metrics: got 'vqaa'; did you mean 'vqa'?" in caught.value.problems[0]
    assert "'test' is not" in caught.value.problems[1]


@pytest.mark.slow
def test_best_checkpoint_scores_as_its_index(tmp_path):
    """Evaluated by the command for adapters; max_examples is not set, so the full split counts."""
    tiny_run.write_dataset(tmp_path)
    settings = tiny_run.base_config(tmp_path)
    config = tiny_run.write_config(
        tmp_path,
        training={
            **settings["training"], "max_steps": 26, "lr": 0.03, "max_checkpoints": 1, "checkpoint_steps": None,
            "keep_best": {"metrics": ["average"], "split": "test"},
        },
        evaluation={**settings["evaluation"], "eval_splits": ["test"], "eval_every_epochs": 0.35},
    )  # fmt: skip
    assert tiny_run.launch("train", "--config", str(config)) == 0
    run = tmp_path / "run"
    index = json.loads((run / "checkpoints/best.json").read_text())["average"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    averages = {one["step"]: sum(one["scores"].values()) / 4 for one in metrics if "scores" in one}
    assert sorted(averages) == [10, 20, 26]
    assert index["value"] == pytest.approx(max(averages.values()))
    assert {path.name for path in (run / "checkpoints").glob("step-*")} == {index["checkpoint"], "step-00000026"}
    best = run / "checkpoints/best-average"
    arguments = ("--config", str(run / "resolved.yaml"), "--adapter", str(best), "--out", str(tmp_path / "scored"))
    assert tiny_run.launch("evaluate", *arguments) == 0
    scores = json.loads((tmp_path / "scored/scores.json").read_text())
    assert scores["splits"]["test"]["average"] == pytest.approx(index["value"])
    model, _ = from_pretrained(best)
    assert model.adapter_record["run"]["training"]["steps"] == index["step"]
