"""Is every real annotation file at hand read whole, by the reader that fits, with as many items as its README says?"""

import re

import pytest

from multitask_vl.registry import TASKS
from multitask_vl.tasks.readers.json_stream import walk
from tests.task_files import make, read, write

pytestmark = pytest.mark.shared
SAMPLES = "official_format_samples"
OFFICIAL = f"{SAMPLES}/vqav2/v2_OpenEnded_mscoco"
SUBSET = "vqav2_60k/vqa"
KEY = "{image_id:012d}"

# task, keys of its split, number of examples, what the README of the files' folder says of that number (None: nothing)
CASES = {
    "60k train": (
        "vqa",
        {
            "questions": f"{SUBSET}_questions_train.json.gz",
            "annotations": f"{SUBSET}_annotations_train.json.gz",
            "subtype": "train2014",
            "subset": "train",
        },
        48_061,
        "train 48,061",
    ),
    "60k valid": (
        "vqa",
        {
            "questions": f"{SUBSET}_questions_valid.json.gz",
            "annotations": f"{SUBSET}_annotations_valid.json.gz",
            "subtype": "train2014",
            "subset": "valid",
        },
        8_977,
        "valid 8,977",
    ),
    "VQA train": (
        "vqa",
        {
            "questions": f"{OFFICIAL}_train2014_questions.json",
            "annotations": f"{SAMPLES}/vqav2/v2_mscoco_train2014_annotations.json",
        },
        53,
        "train 53 items",
    ),
    "VQA val": (
        "vqa",
        {
            "questions": f"{OFFICIAL}_val2014_questions.json",
            "annotations": f"{SAMPLES}/vqav2/v2_mscoco_val2014_annotations.json",
        },
        3,
        "val 3,",
    ),
    "VQA test": ("vqa", {"questions": f"{OFFICIAL}_test2015_questions.json"}, 5, None),
    "VQA test-dev": ("vqa", {"questions": f"{OFFICIAL}_test-dev2015_questions.json"}, 5, None),
    "photos": (
        "vqa",
        {
            "questions": "coco_photos/vqav2_questions.json",
            "annotations": "coco_photos/vqav2_annotations.json",
            "image_key": KEY,
        },
        13,
        "10 to 13 a half",
    ),
    "A-OKVQA": ("vqa", {"questions": "coco_photos/aokvqa_questions.json", "image_key": KEY}, 11, None),
    "A-OKVQA as own data": (
        "jsonl_vqa",
        {"items": "coco_photos/aokvqa_questions.json", "image_key": KEY, "only": {"split": "val"}},
        11,
        None,
    ),
    "VQA-RAD": ("jsonl_vqa", {"items": "vqa_rad/questions.json"}, 293, None),
    "GQA": ("gqa", {"questions": f"{SAMPLES}/gqa/questions_sample.json"}, 9, "9 GQA questions"),
    "NLVR2": ("nlvr2", {"items": "nlvr2_text/dev_subset.json"}, 1_503, "About 1,500"),
    "NLVR2 sample": ("nlvr2", {"items": f"{SAMPLES}/nlvr2/dev_sample.jsonl"}, 13, None),
    "NLVR": ("nlvr2", {"items": "nlvr1/dev_subset.json", "image_keys": ["dev-{identifier}-0"]}, 452, "452 human"),
    "captions": (
        "coco_caption",
        {"captions": "coco_captions_text/captions_val2017_part.json.gz", "one_per": "caption"},
        12_500,
        "12,500 captions",
    ),
    "captioned images": (
        "coco_caption",
        {"captions": "coco_captions_text/captions_val2017_part.json.gz"},
        2_498,
        "about 2,500 images",
    ),
    "captions of photos": ("coco_caption", {"captions": "coco_photos/captions.json"}, 56, None),
    "captions of the sample": (
        "coco_caption",
        {"captions": f"{SAMPLES}/coco", "image_key": KEY, "one_per": "caption"},
        53,
        None,
    ),
    "references, toolkit": (
        "coco_caption",
        {"captions": "caption_eval/fakecap_126_references.json"},
        126,
        "ours on 126",
    ),
    "references, human": ("coco_caption", {"captions": "caption_eval/human_300_references.json"}, 300, "300 images"),
}

NO_ITEMS = {
    "answer_vocab/": "lists of answers; see test_answer_lists",
    "bart_tokenizer/": "a tokenizer",
    "caption_eval/.*_expected_": "what another scorer gave",
    "caption_eval/.*_results.json": "predictions",
    "vqa_accuracy_oracle/": "annotations without questions; see test_the_oracle_s_annotations",
}


@pytest.mark.parametrize("case", CASES)
def test_every_item_is_read(shared, case):
    name, options, count, said = CASES[case]
    examples = read(make(name, shared / "data", **options))
    assert len(examples) == len({example.id for example in examples}) == count
    assert all(example.images and all(example.images) for example in examples)
    if said is not None:
        (number,) = {one for one in re.findall(r"\d[\d,]*\d|\d", said) if one != "10"}
        tolerance = 0.01 if "bout" in said else 0
        assert count == pytest.approx(int(number.replace(",", "")), rel=tolerance)
        folder = next(value for value in options.values() if isinstance(value, str)).split("/")[0]
        assert said in (shared / "data" / folder / "README.md").read_text(encoding="utf-8")


def test_no_file_is_forgotten(shared):
    data = shared / "data"
    found = {str(path.relative_to(data)) for path in data.rglob("*.json*")}
    named = {value for _, options, _, _ in CASES.values() for value in options.values() if isinstance(value, str)}
    left = {path for path in found if not any(path == one or path.startswith(f"{one}/") for one in named)}
    assert [path for path in sorted(left) if not any(re.match(pattern, path) for pattern in NO_ITEMS)] == []
    assert all(any(re.match(pattern, path) for path in found) for pattern in NO_ITEMS)


@pytest.mark.parametrize(("task", "count"), [("vqa", 3_129), ("gqa", 1_842)])
def test_answer_lists(shared, task, count):
    folder = shared / "data" / "answer_vocab"
    assert (
        f"{count:,} answers" in (folder / "README.md").read_text()
        or f"({count:,})" in (folder / "README.md").read_text()
    )
    listed = [value for _, value, _ in walk(folder / f"{task}_trainval_label2ans.json")]
    numbered = {key: value for key, value, _ in walk(folder / f"{task}_trainval_ans2label.json")}
    assert len(listed) == count
    assert numbered == {answer: number for number, answer in enumerate(listed)}


def test_the_published_answer_list_leaves_the_targets_it_has(shared):
    options = {"answer_list": "answer_vocab/vqa_trainval_label2ans.json"}
    task = make("vqa", shared / "data", task_options=options, **CASES["60k valid"][1])
    examples = read(task)
    without = [example for example in examples if not example.answers]
    assert task.remarks["s"] == {"questions without a target, kept with weight 0": len(without)}
    # the list has the answers that nine or more people gave in train and val; few questions have none of them
    assert 0 < len(without) < 0.05 * len(examples)
    assert "" not in {answer for example in examples for answer in example.answers}


def test_the_oracle_s_annotations(shared):
    folder = shared / "data" / "vqa_accuracy_oracle"
    found = TASKS.get("vqa").score_files(folder / "annotations.json", folder / "predictions.json")
    assert len(found["per_question"]) == len(list(walk(folder / "annotations.json"))) == 500


def test_vqa_rad_has_its_pictures_and_may_be_split_by_its_own_fields(shared, tmp_path):
    data = shared / "data"
    examples = read(make("jsonl_vqa", data, items="vqa_rad/questions.json"))
    keys = {key for example in examples for key in example.images}
    assert [key for key in sorted(keys) if not (data / "vqa_rad" / "images" / f"{key}.jpg").is_file()] == []
    assert {example.meta["answer_type"] for example in examples} == {"OPEN", "CLOSED"}
    parts = [
        len(read(make("jsonl_vqa", data, items="vqa_rad/questions.json", only={"answer_type": kind})))
        for kind in ("OPEN", "CLOSED")
    ]
    assert sum(parts) == len(examples)
    # the other half has what this one lacks: numbers as answers, types with a trailing blank
    genuine = next(item for _, item, _ in walk(data / "vqa_rad" / "questions.json"))
    write(tmp_path, "other.json", [{**genuine, "answer": 4, "answer_type": "OPEN "}])
    task = make("jsonl_vqa", tmp_path, items="other.json", only={"answer_type": "OPEN"})
    (example,) = read(task)
    assert (example.answers, example.meta["answer_type"]) == (("4",), "OPEN")
    assert task.score([example], {example.id: "four"}).metrics["accuracy"] == 100.0


def test_the_ten_answers_of_a_okvqa_are_scored_as_vqa(shared):
    task = make("jsonl_vqa", shared / "data", **CASES["A-OKVQA as own data"][1])
    examples = read(task)
    assert {len(example.meta["answers"]) for example in examples} == {10}
    best = {example.id: example.answers[0] for example in examples}
    assert (
        task.score(examples, best).metrics == make("vqa", shared / "data", questions="x").score(examples, best).metrics
    )
