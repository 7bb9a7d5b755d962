"""Do the tasks read official files, draw targets and reduce losses as the published code does?"""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy

from multitask_vl.errors import InputError
from multitask_vl.registry import TASKS
from tests.task_files import karpathy_file, make, read, vqa_files, write

OFFICIAL = "official_format_samples"


# ---- reading


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "options", "count", "first_id", "first_images", "first_answers"),
    [
        (
            "vqa",
            {
                "questions": "vqav2_60k/vqa_questions_valid.json.gz",
                "annotations": "vqav2_60k/vqa_annotations_valid.json.gz",
                "subtype": "train2014",
            },
            8977,
            "413918000",
            ("COCO_train2014_000000413918",),
            ("state farm",),
        ),
        (
            "vqa",
            {
                "questions": "coco_photos/vqav2_questions.json",
                "annotations": "coco_photos/vqav2_annotations.json",
                "image_key": "{image_id:012d}",
            },
            13,
            "84284001",
            ("000000084284",),
            ("wood",),
        ),
        (
            "vqa",
            {
                "questions": f"{OFFICIAL}/vqav2/v2_OpenEnded_mscoco_train2014_questions.json",
                "annotations": f"{OFFICIAL}/vqav2/v2_mscoco_train2014_annotations.json",
                "subtype": "train2014",
            },
            53,
            "6818000",
            ("COCO_train2014_000000006818",),
            ("white",),
        ),
        (
            "vqa",
            {
                "questions": f"{OFFICIAL}/vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
                "annotations": f"{OFFICIAL}/vqav2/v2_mscoco_val2014_annotations.json",
            },
            3,
            "262148000",  # does not start with its image's id: one id is never derived from another
            ("COCO_val2014_000000397133",),
            ("red", "orange", "rede"),
        ),
        (
            "vqa",
            {"questions": f"{OFFICIAL}/vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json"},
            5,
            "262144005",
            ("COCO_test2015_000000262144",),
            (),
        ),
        ("gqa", {"questions": f"{OFFICIAL}/gqa/questions_sample.json"}, 9, "142457", ("2320168",), ("left",)),
        (
            "nlvr2",
            {"items": f"{OFFICIAL}/nlvr2/dev_sample.jsonl"},
            13,
            "dev-896-0-1",
            ("dev-896-0-img0", "dev-896-0-img1"),
            ("true",),
        ),
        (
            "nlvr2",
            {"items": "nlvr2_text/dev_subset.json"},
            1503,
            "dev-352-3-1",
            ("dev-352-3-img0", "dev-352-3-img1"),
            ("false",),
        ),
        (
            "nlvr2",
            {"items": "nlvr1/dev_subset.json", "image_keys": ["dev-{identifier}-0"]},
            452,
            "939-0",
            ("dev-939-0-0",),
            ("true",),
        ),
        ("coco_caption", {"captions": "coco_photos/captions.json"}, 56, "872", ("000000000872",), None),
        (
            "coco_caption",
            {"captions": "coco_captions_text/captions_val2017_part.json.gz", "one_per": "caption"},
            12500,
            "397133-370509",
            ("000000397133",),
            ("A man is in a kitchen making pizzas.",),
        ),
        (
            "coco_caption",
            {
                "captions": [
                    f"{OFFICIAL}/coco/captions_train2017_sample.json",
                    f"{OFFICIAL}/coco/captions_val2017_sample.json",
                ],
                "image_key": "{image_id:012d}",
                "one_per": "caption",
            },
            53,
            "37777-597185",
            ("000000037777",),
            ("The dining table near the kitchen has a bowl of fruit on it.",),
        ),
        (
            "coco_caption",
            {"captions": "caption_eval/human_300_references.json"},
            300,
            "122745",
            ("000000122745",),
            None,
        ),
    ],
)
def test_genuine_files_are_read_whole(shared, name, options, count, first_id, first_images, first_answers):
    examples = read(make(name, shared / "data", **options))
    assert len(examples) == len({example.id for example in examples}) == count
    first = examples[0]
    assert (first.id, first.images) == (first_id, first_images)
    assert first.answers == first_answers or (first_answers is None and len(first.answers) in (4, 5))
    assert all(len(e.answers) == len(e.scores) for e in examples)


@pytest.mark.shared
def test_pictures_of_genuine_items_are_there(shared):
    data = shared / "data"
    for task, folder, ending in (
        (make("nlvr2", data, items="nlvr1/dev_subset.json", image_keys=["dev-{identifier}-0"]), "nlvr1", "png"),
        (make("coco_caption", data, captions="coco_photos/captions.json"), "coco_photos", "jpg"),
    ):
        keys = [key for example in read(task) for key in example.images]
        assert [key for key in keys if not (data / folder / "images" / f"{key}.{ending}").is_file()] == []


def test_vqa_soft_scores_and_meta(tmp_path):
    first = read(make("vqa", tmp_path, **vqa_files(tmp_path)))[0]
    assert first.images == ("COCO_val2014_000000000000",)
    assert first.answers == ("red", "sky", "blue")
    assert first.scores == (1.0, 1.0, 0.6)
    assert first.meta["answers"].count("sky") == 4
    assert first.meta["question_type"] == "what is"


def test_vqa_answer_list_leaves_only_its_answers(tmp_path):
    write(tmp_path, "list.json", ["sky", "green"])
    write(tmp_path, "mapping.json", {"green": 0})
    files = vqa_files(tmp_path)
    assert read(make("vqa", tmp_path, task_options={"answer_list": "list.json"}, **files))[0].answers == ("sky",)
    task = make("vqa", tmp_path, task_options={"answer_list": "mapping.json"}, **files)
    assert read(task)[0].answers == ()
    assert task.target((), (), np.random.default_rng(0)) == ("", 0.0)


@pytest.mark.parametrize(("split", "ids"), [("train", ["10", "11"]), ("val", ["12"])])
def test_karpathy_splits_of_official_vqa_files(tmp_path, split, ids):
    karpathy_file(tmp_path)
    task = make("vqa", tmp_path, split, karpathy="dataset_coco.json", **vqa_files(tmp_path, 4))
    assert [example.id for example in read(task, split)] == ids


def test_karpathy_captions(tmp_path):
    path = karpathy_file(tmp_path)
    train = read(make("coco_caption", tmp_path, "train", captions=path), "train")
    assert [example.id for example in train] == ["0-0", "0-1", "1-10", "1-11"]  # train and restval
    assert train[0].answers == ("Cat 0 sleeps 0.",)
    assert train[0].text == ""
    report = read(make("coco_caption", tmp_path, "report", captions=path, subset="test"), "report")
    assert [(e.id, e.images, len(e.answers)) for e in report][1] == ("4", ("COCO_val2014_000000000004",), 2)
    with pytest.raises(InputError, match=r"no image of the split: .*restval \(1 images\).*Choose with subset"):
        read(make("coco_caption", tmp_path, "report", captions=path), "report")


def test_images_without_captions_are_a_hidden_split(tmp_path):
    path = write(tmp_path, "image_info.json", {"images": [{"id": 5, "file_name": "COCO_test2014_5.jpg"}]})
    assert [e.answers for e in read(make("coco_caption", tmp_path, captions=path))] == [()]


# ---- what the model sees and learns


def test_published_defaults():
    defaults = {name: TASKS.get(name).Config() for name in ("vqa", "gqa", "nlvr2", "coco_caption")}
    assert [c.prompt for c in defaults.values()] == ["vqa: ", "gqa: ", "nlvr: ", "caption: "]
    assert [int(500 * c.batch_share) for c in defaults.values()] == [500, 833, 166, 416]
    assert [c.max_input_tokens for c in defaults.values()] == [20, 20, None, 40]
    assert [c.max_target_tokens for c in defaults.values()] == [10, None, None, 40]
    assert [(c.decoding.kind, c.decoding.num_beams, c.decoding.max_length) for c in defaults.values()] == [
        ("greedy", 1, 20), ("greedy", 1, 20), ("choice", 1, 20), ("beam", 5, 40),
    ]  # fmt: skip
    assert defaults["nlvr2"].decoding.choices == ("false", "true")
    assert {c.too_long for c in defaults.values()} == {"error"}
    changed = TASKS.get("coco_caption").Config.model_validate({"decoding": {"num_beams": 3}})
    assert (changed.decoding.kind, changed.decoding.max_length) == ("beam", 40)


def test_vqa_target_is_drawn_by_soft_score_and_weighs_it():
    task = make("vqa", Path(), questions="q.json")
    drawn = [task.target(("a", "b"), (0.9, 0.3), np.random.default_rng(i)) for i in range(400)]
    assert {weight for text, weight in drawn if text == "a"} == {0.9}
    assert {weight for text, weight in drawn if text == "b"} == {0.3}
    assert sum(text == "a" for text, _ in drawn) == pytest.approx(300, abs=35)
    assert drawn == [task.target(("a", "b"), (0.9, 0.3), np.random.default_rng(i)) for i in range(400)]
    options = {"draw": "most_frequent", "weight_by_score": False}
    task = make("vqa", Path(), task_options=options, questions="q.json")
    assert {task.target(("a", "b"), (0.9, 0.3), np.random.default_rng(i)) for i in range(50)} == {("a", 1.0)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # share of the answer times its weight, by answer; ten people said 5 x "a", 3 x "b", 2 x "c"
        ({}, {"a": 1 / 2.5, "b": 0.9 * 0.9 / 2.5, "c": 0.6 * 0.6 / 2.5}),
        ({"weight_by_score": False}, {"a": 1 / 2.5, "b": 0.9 / 2.5, "c": 0.6 / 2.5}),
        ({"draw": "most_frequent"}, {"a": 1.0, "b": 0.0, "c": 0.0}),
        ({"soft_scores": [n / 10 for n in range(1, 11)], "weight_by_score": False}, {"a": 0.5, "b": 0.3, "c": 0.2}),
    ],
    ids=["published", "all answers by their share", "most frequent", "one of the ten raw answers"],
)
def test_what_a_question_learns_over_its_visits(options, expected):
    task = make("vqa", Path(), task_options=options, questions="q.json")
    answers, scores = task.soft_targets(["a"] * 5 + ["b"] * 3 + ["c"] * 2)
    visits, learnt = 4000, dict.fromkeys("abc", 0.0)
    for step in range(visits):
        text, weight = task.target(answers, scores, np.random.default_rng([42, 2, step, 0]))
        learnt[text] += weight / visits
    assert learnt == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("weighted", [True, False])
def test_all_answers_are_the_expectation_of_a_drawn_one(weighted):
    options = {"draw": "all", "weight_by_score": weighted}
    task = make("vqa", Path(), task_options=options, questions="q.json")
    rng = np.random.default_rng(0)
    asked = [(("a", "b"), (0.9, 0.3)), ((), ()), (("c",), (1.0,))]
    found = [task.targets(answers, scores, rng) for answers, scores in asked]
    assert [[text for text, _, _ in row] for row in found] == [["a", "b"], [""], ["c"]]
    assert [sum(share for _, _, share in row) for row in found] == pytest.approx([1, 1, 1])
    weights, shares = (torch.tensor([target[i] for row in found for target in row]) for i in (1, 2))
    token_loss, valid = torch.rand(4, 3), torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]]) > 0
    numerator, denominator = task.reduce(token_loss * valid, valid, weights, shares)
    by_hand = (token_loss * valid).sum(1) / valid.sum(1)
    a, b, _, c = by_hand.tolist()
    expected = 0.75 * (0.9 if weighted else 1) * a + 0.25 * (0.3 if weighted else 1) * b + c
    assert (float(numerator), float(denominator)) == (pytest.approx(expected), pytest.approx(3.0))


@pytest.mark.parametrize(
    ("name", "recorded"), [("vqa", "vqa"), ("gqa", "gqa"), ("nlvr2", "gqa"), ("coco_caption", "caption")]
)
def test_losses_and_gradients_equal_the_recorded_ones(name, recorded):
    with safe_open(Path(__file__).parent / "golden" / "task_losses.safetensors", "pt") as file:
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a safetensors handle is no mapping)
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
    # micro-batches add up
    halves = [task.reduce(token_loss[i], valid[i], values["input/scores"][i]) for i in (slice(2), slice(2, 5))]
    parts = sum(n for n, _ in halves) / sum(d for _, d in halves)
    torch.testing.assert_close(parts.detach(), loss.detach(), atol=1e-6, rtol=0)
