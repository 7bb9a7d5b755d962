"""Tasks: official files, options, sampled targets and losses, against the published code."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy

from multitask_vl.errors import InputError
from multitask_vl.registry import TASKS
from multitask_vl.tasks.base import Target
from tests.task_files import karpathy_file, make, read, vqa_files, write

# ---- reading


def test_vqa_soft_scores_and_meta(tmp_path):
    first = read(make("vqa", tmp_path, **vqa_files(tmp_path)))[0]
    assert first.images == ("COCO_val2014_000000000000",)
    assert first.answers == ("red", "sky", "blue")
    assert first.scores == (1.0, 1.0, 0.6)
    assert first.meta["answers"].count("sky") == 4
    assert first.meta["question_type"] == "what is"


def test_vqa_answer_list_restricts_targets(tmp_path):
    write(tmp_path, "list.json", ["sky", "green"])
    write(tmp_path, "mapping.json", {"green": 0})
    files = vqa_files(tmp_path)
    assert read(make("vqa", tmp_path, task_options={"answer_list": "list.json"}, **files))[0].answers == ("sky",)
    task = make("vqa", tmp_path, task_options={"answer_list": "mapping.json"}, **files)
    assert read(task)[0].answers == ()
    assert task.sample_target((), (), np.random.default_rng(0)) == Target("", 0.0)


@pytest.mark.parametrize(("split", "ids"), [("train", ["10", "11"]), ("val", ["12"])])
def test_vqa_karpathy_splits_official_files(tmp_path, split, ids):
    karpathy_file(tmp_path)
    task = make("vqa", tmp_path, split, karpathy="dataset_coco.json", **vqa_files(tmp_path, 4))
    assert [example.id for example in read(task, split)] == ids


def test_caption_karpathy_splits(tmp_path):
    path = karpathy_file(tmp_path)
    train = read(make("coco_caption", tmp_path, "train", captions=path), "train")
    assert [example.id for example in train] == ["0-0", "0-1", "1-10", "1-11"]  # train and restval
    assert train[0].answers == ("Cat 0 sleeps 0.",)
    assert train[0].text == ""
    test = read(make("coco_caption", tmp_path, "test", captions=path, subset="test"), "test")
    assert [(e.id, e.images, len(e.answers)) for e in test][1] == ("4", ("COCO_val2014_000000000004",), 2)
    with pytest.raises(InputError, match=r"no image of the split: .*restval \(1 images\).*Choose with subset"):
        read(make("coco_caption", tmp_path, "dev", captions=path), "dev")


def test_caption_split_without_captions_has_no_labels(tmp_path):
    path = write(tmp_path, "image_info.json", {"images": [{"id": 5, "file_name": "COCO_test2014_5.jpg"}]})
    assert [e.answers for e in read(make("coco_caption", tmp_path, captions=path))] == [()]


# ---- targets and losses


def test_task_defaults_are_published_values():
    defaults = {name: TASKS.get(name).Config() for name in ("vqa", "gqa", "nlvr2", "coco_caption")}
    assert [c.prompt for c in defaults.values()] == ["vqa: ", "gqa: ", "nlvr: ", "caption: "]
    assert [int(500 * c.batch_size_ratio) for c in defaults.values()] == [500, 833, 166, 416]
    assert [c.max_input_tokens for c in defaults.values()] == [20, 20, None, 40]
    assert [c.max_target_tokens for c in defaults.values()] == [10, None, None, 40]
    assert [(c.decoding.mode, c.decoding.num_beams, c.decoding.max_length) for c in defaults.values()] == [
        ("greedy", 1, 20), ("greedy", 1, 20), ("classify", 1, 20), ("beam", 5, 40),
    ]  # fmt: skip
    assert defaults["nlvr2"].decoding.choices == ("false", "true")
    assert {c.overflow for c in defaults.values()} == {"error"}
    changed = TASKS.get("coco_caption").Config.model_validate({"decoding": {"num_beams": 3}})
    assert (changed.decoding.mode, changed.decoding.max_length) == ("beam", 40)


def sampled(task, count: int) -> list[Target]:
    return [task.sample_target(("a", "b"), (0.9, 0.3), np.random.default_rng(i)) for i in range(count)]


def test_vqa_target_is_sampled_and_weighted_by_soft_score():
    task = make("vqa", Path(), questions="q.json")
    targets = sampled(task, 400)
    assert set(targets) == {Target("a", 0.9), Target("b", 0.3)}
    assert sum(target.text == "a" for target in targets) == pytest.approx(300, abs=35)
    assert targets == sampled(task, 400)
    options = {"target_sampling": "most_frequent", "weight_by_score": False}
    assert set(sampled(make("vqa", Path(), task_options=options, questions="q.json"), 50)) == {Target("a", 1.0)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # expected weight of each answer; ten human answers: 5 x "a", 3 x "b", 2 x "c"
        ({}, {"a": 1 / 2.5, "b": 0.9 * 0.9 / 2.5, "c": 0.6 * 0.6 / 2.5}),
        ({"weight_by_score": False}, {"a": 1 / 2.5, "b": 0.9 / 2.5, "c": 0.6 / 2.5}),
        ({"target_sampling": "most_frequent"}, {"a": 1.0, "b": 0.0, "c": 0.0}),
        ({"soft_scores": [n / 10 for n in range(1, 11)], "weight_by_score": False}, {"a": 0.5, "b": 0.3, "c": 0.2}),
    ],
    ids=["published", "unweighted", "most-frequent", "raw-answers"],
)
def test_vqa_mean_target_weight_over_visits(options, expected):
    task = make("vqa", Path(), task_options=options, questions="q.json")
    answers, scores = task.soft_targets(["a"] * 5 + ["b"] * 3 + ["c"] * 2)
    visits, weights = 2000, dict.fromkeys("abc", 0.0)
    for step in range(visits):
        target = task.sample_target(answers, scores, np.random.default_rng([42, 2, step, 0]))
        weights[target.text] += target.weight / visits
    assert weights == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("weighted", [True, False])
def test_vqa_all_targets_equal_expected_loss_of_sampling(weighted):
    options = {"target_sampling": "all", "weight_by_score": weighted}
    task = make("vqa", Path(), task_options=options, questions="q.json")
    rng = np.random.default_rng(0)
    examples = [(("a", "b"), (0.9, 0.3)), ((), ()), (("c",), (1.0,))]
    targets = [task.targets(answers, scores, rng) for answers, scores in examples]
    assert [[target.text for target in row] for row in targets] == [["a", "b"], [""], ["c"]]
    assert [sum(target.fraction for target in row) for row in targets] == pytest.approx([1, 1, 1])
    weights = torch.tensor([target.weight for row in targets for target in row])
    fractions = torch.tensor([target.fraction for row in targets for target in row])
    token_loss, valid = torch.rand(4, 3), torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]]) > 0
    numerator, denominator = task.reduce(token_loss * valid, valid, weights, fractions)
    a, b, _, c = ((token_loss * valid).sum(1) / valid.sum(1)).tolist()
    expected = 0.75 * (0.9 if weighted else 1) * a + 0.25 * (0.3 if weighted else 1) * b + c
    assert (float(numerator), float(denominator)) == (pytest.approx(expected), pytest.approx(3.0))


@pytest.mark.parametrize(
    ("name", "recorded"), [("vqa", "vqa"), ("gqa", "gqa"), ("nlvr2", "gqa"), ("coco_caption", "caption")]
)
def test_task_loss_and_gradient_equal_golden_values(name, recorded):
    with safe_open(Path(__file__).parents[1] / "golden" / "task_losses.safetensors", "pt") as file:
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a safetensors handle is not a mapping)
    options = {"gqa": "questions", "vqa": "questions", "nlvr2": "items", "coco_caption": "captions"}
    task = make(name, Path(), **{options[name]: "x.json"})
    logits = values["input/logits"].requires_grad_()
    labels, valid = values["input/labels"], values["input/labels"] != -100
    token_loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    numerator, denominator = task.reduce(token_loss, valid, values["input/scores"])
    loss = numerator / denominator
    loss.backward()
    torch.testing.assert_close(loss.detach(), values[f"output/{recorded}/loss"], atol=1e-6, rtol=0)
    torch.testing.assert_close(logits.grad, values[f"grad/{recorded}/logits"], atol=1e-7, rtol=0)
    # the fractions of micro-batches sum to that of the batch
    halves = [task.reduce(token_loss[i], valid[i], values["input/scores"][i]) for i in (slice(2), slice(2, 5))]
    parts = sum(n for n, _ in halves) / sum(d for _, d in halves)
    torch.testing.assert_close(parts.detach(), loss.detach(), atol=1e-6, rtol=0)


# ---- options


def test_task_reports_all_missing_files_and_unknown_split(tmp_path):
    task = make("vqa", tmp_path, questions=["a.json", "b.json"], annotations="c.json", karpathy="k.json")
    with pytest.raises(InputError) as error:
        task.sources("s")
    assert [problem.partition(":")[0] for problem in error.value.problems] == [
        "tasks.vqa.splits.s.questions", "tasks.vqa.splits.s.questions", "tasks.vqa.splits.s.annotations",
        "tasks.vqa.splits.s.karpathy",
    ]  # fmt: skip
    with pytest.raises(InputError, match="'test' is not one of \\['s'\\]"):
        task.sources("test")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vqa", {"questions": "q", "image_key": "{imageid}"}, "unknown field {imageid}; known: {image_id}, {subtype}"),
        ("vqa", {"questions": []}, "at least 1 item"),
        ("gqa", {"questions": "q", "image_key": "{}"}, "unknown field {}"),
        ("coco_caption", {"captions": "c", "unit": "word"}, "'caption' or 'image'"),
        ("nlvr2", {"items": "i", "image_keys": []}, "at least 1 item"),
        ("nlvr2", {"items": "i", "layout": "nlvr1"}, "Extra inputs are not permitted"),
    ],
    ids=["key-field", "no-questions", "unnamed-field", "unit", "no-image-keys", "unknown-option"],
)
def test_split_rejects_invalid_option(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(name, tmp_path, **options)


def test_caption_scorers_require_cider(tmp_path):
    with pytest.raises(ValueError, match="CIDEr is the primary metric"):
        make("coco_caption", tmp_path, task_options={"scorers": ["Bleu"]}, captions="c.json")


def test_vqa_karpathy_file_without_the_split(tmp_path):
    write(tmp_path, "k.json", {"images": [{"cocoid": 1, "split": "val"}]})
    task = make("vqa", tmp_path, karpathy="k.json", subset="test", **vqa_files(tmp_path))
    with pytest.raises(InputError, match=r"no image of the split: .*has .'val'.. Choose with subset"):
        read(task)
