"""The best checkpoints by some scores: found from metrics, kept, linked, scored and exported like an adapter."""

import json

import pytest

from multitask_vl.config.schema import KeepBestConfig
from multitask_vl.errors import InputError
from multitask_vl.training.best_checkpoint import find_best, keep_best, splits_left
from tests import fork_server, tiny_run

BOTH = KeepBestConfig(metrics=["average", "vqa"], split="tune")


def row(step, split="tune", **scores):
    return {"step": step, "split": split, "scores": scores}


ROWS = [
    row(10, vqa=50.0, gqa=70.0),
    row(20, vqa=60.0, gqa=55.0),
    row(20, "report", vqa=99.0),
    row(30, vqa=60.0, gqa=60.0),
]


def test_the_best_by_each_score_and_the_earlier_of_equals():
    found = find_best(ROWS, BOTH, steps=[10, 20, 30])
    assert {name: (best.step, best.value) for name, best in found.items()} == {"average": (10, 60.0), "vqa": (20, 60.0)}


def test_only_what_has_a_checkpoint_can_be_kept():
    found = find_best(ROWS, BOTH, steps=[30])
    assert {name: best.step for name, best in found.items()} == {"average": 30, "vqa": 30}
    assert find_best(ROWS, BOTH, steps=[]) == {}


def write(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows) + '{"step": 4')
    for one in rows:
        (folder / "checkpoints" / f"step-{one['step']:08d}").mkdir(parents=True, exist_ok=True)
    return folder / "checkpoints", folder / "metrics.jsonl"


def test_links_and_index_follow_what_is_on_the_disk(tmp_path):
    checkpoints, metrics = write(tmp_path, ROWS)
    assert keep_best(checkpoints, metrics, BOTH) == {10, 20}
    assert (checkpoints / "best-vqa").resolve().name == "step-00000020"
    index = json.loads((checkpoints / "best.json").read_text())
    assert index["average"] == {"split": "tune", "value": 60.0, "step": 10, "checkpoint": "step-00000010"}
    checkpoints, metrics = write(tmp_path, [*ROWS, row(40, vqa=61.0, gqa=10.0)])
    assert keep_best(checkpoints, metrics, BOTH) == {10, 40}
    metrics.write_text("")  # as a run that starts from before its first evaluation cuts it
    assert keep_best(checkpoints, metrics, BOTH) == set()
    assert not list(checkpoints.glob("best-*"))
    assert keep_best(checkpoints, metrics, None) == set()


def test_after_a_death_only_splits_without_a_row_are_scored(tmp_path):
    _, metrics = write(tmp_path, [row(10), row(20), row(20, "report") | {"final": True}])
    assert splits_left(metrics, 20, ["tune", "report"]) == ["report"]
    assert splits_left(metrics, 30, ["tune", "report"]) == ["tune", "report"]
    assert splits_left(tmp_path / "absent.jsonl", 0, ["tune"]) == ["tune"]


def test_a_score_that_is_never_taken_on_the_way_is_refused(tmp_path):
    tiny_run.write_files(tmp_path)
    wrong = {"metrics": ["average", "vqaa"], "split": "report"}
    config = tiny_run.write_config(tmp_path, training={**tiny_run.values(tmp_path)["training"], "keep_best": wrong})
    from multitask_vl.config import load

    with pytest.raises(InputError) as caught:
        load(config)
    assert len(caught.value.problems) == 2
    assert "training.keep_best.metrics: got 'vqaa'; did you mean 'vqa'?" in caught.value.problems[0]
    assert "'report' is not scored on the way" in caught.value.problems[1]


@pytest.mark.slow
def test_the_best_checkpoint_scores_what_the_index_says(tmp_path):
    """By the commands for adapters; its value comes from the whole split here, since no limit is set."""
    tiny_run.write_files(tmp_path)
    settings = tiny_run.values(tmp_path)
    config = tiny_run.write_config(
        tmp_path,
        training={
            **settings["training"], "steps": 36, "lr": 0.03, "keep_checkpoints": 1, "checkpoint_every": None,
            "keep_best": {"metrics": ["average"], "split": "report"},
        },
        evaluation={**settings["evaluation"], "during": ["report"], "every_epochs": 0.35},
    )  # fmt: skip
    said = tmp_path / "said"
    assert fork_server.ended(fork_server.start(["--config", str(config)], fork_server.Plan(str(said)))) == [0], (
        said.read_text()
    )
    run = tmp_path / "run"
    index = json.loads((run / "checkpoints/best.json").read_text())["average"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    averages = {one["step"]: sum(one["scores"].values()) / 4 for one in metrics if "scores" in one}
    assert sorted(averages) == [10, 20, 30, 36]
    assert index["value"] == pytest.approx(max(averages.values()))
    assert {path.name for path in (run / "checkpoints").glob("step-*")} == {index["checkpoint"], "step-00000036"}
    words = ("--config", str(run / "resolved.yaml"), "--adapter", str(run / "checkpoints/best-average"))
    assert tiny_run.launch("evaluate", *words, "--out", str(tmp_path / "scored")) == 0
    scores = json.loads((tmp_path / "scored/scores.json").read_text())
    assert scores["splits"]["report"]["average"] == pytest.approx(index["value"])

    from multitask_vl.models.from_pretrained import from_pretrained

    model, _ = from_pretrained(run / "checkpoints/best-average")
    assert model.loaded["run"]["training"]["steps"] == index["step"]
