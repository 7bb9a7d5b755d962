"""Real annotation files: each is read completely, with the number of examples stated in its README."""

import re
from pathlib import Path

import pytest

from multitask_vl.registry import TASKS
from multitask_vl.tasks.readers.json_stream import stream_json
from tests.task_files import make, read, write

pytestmark = pytest.mark.shared
SAMPLES = "official_format_samples"
OFFICIAL = f"{SAMPLES}/vqav2/v2_OpenEnded_mscoco"
SUBSET = "vqav2_60k/vqa"
KEY = "{image_id:012d}"

# case -> task, keys of its split, number of examples, excerpt of the folder's README with that number or None
CASES = {
    "vqa-60k-train": (
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
    "vqa-60k-valid": (
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
    "vqa-train": (
        "vqa",
        {
            "questions": f"{OFFICIAL}_train2014_questions.json",
            "annotations": f"{SAMPLES}/vqav2/v2_mscoco_train2014_annotations.json",
            "subtype": "train2014",
        },
        53,
        "train 53 items",
    ),
    "vqa-val": (
        "vqa",
        {
            "questions": f"{OFFICIAL}_val2014_questions.json",
            "annotations": f"{SAMPLES}/vqav2/v2_mscoco_val2014_annotations.json",
        },
        3,
        "val 3,",
    ),
    "vqa-test": ("vqa", {"questions": f"{OFFICIAL}_test2015_questions.json"}, 5, None),
    "vqa-test-dev": ("vqa", {"questions": f"{OFFICIAL}_test-dev2015_questions.json"}, 5, None),
    "vqa-photos": (
        "vqa",
        {
            "questions": "coco_photos/vqav2_questions.json",
            "annotations": "coco_photos/vqav2_annotations.json",
            "image_key": KEY,
        },
        13,
        "10 to 13 a half",
    ),
    "aokvqa": ("vqa", {"questions": "coco_photos/aokvqa_questions.json", "image_key": KEY}, 11, None),
    "aokvqa-jsonl": (
        "jsonl_vqa",
        {"items": "coco_photos/aokvqa_questions.json", "image_key": KEY, "filter": {"split": "val"}},
        11,
        None,
    ),
    "vqa-rad": ("jsonl_vqa", {"items": "vqa_rad/questions.json"}, 293, None),
    "gqa": ("gqa", {"questions": f"{SAMPLES}/gqa/questions_sample.json"}, 9, "9 GQA questions"),
    "nlvr2": ("nlvr2", {"items": "nlvr2_text/dev_subset.json"}, 1_503, "About 1,500"),
    "nlvr2-sample": ("nlvr2", {"items": f"{SAMPLES}/nlvr2/dev_sample.jsonl"}, 13, None),
    "nlvr1": ("nlvr2", {"items": "nlvr1/dev_subset.json", "image_keys": ["dev-{identifier}-0"]}, 452, "452 human"),
    "captions": (
        "coco_caption",
        {"captions": "coco_captions_text/captions_val2017_part.json.gz", "unit": "caption"},
        12_500,
        "12,500 captions",
    ),
    "captions-by-image": (
        "coco_caption",
        {"captions": "coco_captions_text/captions_val2017_part.json.gz"},
        2_498,
        "about 2,500 images",
    ),
    "captions-photos": ("coco_caption", {"captions": "coco_photos/captions.json"}, 56, None),
    "captions-sample": (
        "coco_caption",
        {"captions": f"{SAMPLES}/coco", "image_key": KEY, "unit": "caption"},
        53,
        None,
    ),
    "references-toolkit": (
        "coco_caption",
        {"captions": "caption_eval/fakecap_126_references.json"},
        126,
        "ours on 126",
    ),
    "references-human": ("coco_caption", {"captions": "caption_eval/human_300_references.json"}, 300, "300 images"),
}

# case -> id, images and answers of the first example
FIRST = {
    "vqa-60k-valid": ("413918000", ("COCO_train2014_000000413918",), ("state farm",)),
    "vqa-photos": ("84284001", ("000000084284",), ("wood",)),
    "vqa-train": ("6818000", ("COCO_train2014_000000006818",), ("white",)),
    # does not start with its image's id: one id is never derived from another
    "vqa-val": ("262148000", ("COCO_val2014_000000397133",), ("red", "orange", "rede")),
    "vqa-test-dev": ("262144005", ("COCO_test2015_000000262144",), ()),
    "gqa": ("142457", ("2320168",), ("left",)),
    "nlvr2-sample": ("dev-896-0-1", ("dev-896-0-img0", "dev-896-0-img1"), ("true",)),
    "nlvr2": ("dev-352-3-1", ("dev-352-3-img0", "dev-352-3-img1"), ("false",)),
    "nlvr1": ("939-0", ("dev-939-0-0",), ("true",)),
    "captions": ("397133-370509", ("000000397133",), ("A man is in a kitchen making pizzas.",)),
    "captions-sample": (
        "37777-597185",
        ("000000037777",),
        ("The dining table near the kitchen has a bowl of fruit on it.",),
    ),
}
FIRST_WITH_FOUR_OR_FIVE_CAPTIONS = {
    "captions-photos": ("872", ("000000000872",)),
    "references-human": ("122745", ("000000122745",)),
}

NO_ITEMS = {
    "answer_vocab/": "answer lists; see test_answer_lists_have_published_size",
    "bart_tokenizer/": "a tokenizer",
    "bug_reports/": "files of bug reports",
    "caption_eval/.*_expected_": "scores of the official toolkit",
    "caption_eval/.*_results.json": "predictions",
    "vqa_accuracy_oracle/": "annotations without questions; see test_vqa_score_files_reads_every_annotation",
}


@pytest.mark.parametrize("case", CASES)
def test_task_reads_every_item_of_real_file(shared, case):
    name, options, count, excerpt = CASES[case]
    examples = read(make(name, shared / "data", **options))
    assert len(examples) == len({example.id for example in examples}) == count
    assert all(example.images and all(example.images) for example in examples)
    assert all(len(example.answers) == len(example.scores) for example in examples)
    first = examples[0]
    if case in FIRST:
        assert (first.id, first.images, first.answers) == FIRST[case]
    if case in FIRST_WITH_FOUR_OR_FIVE_CAPTIONS:
        assert (first.id, first.images) == FIRST_WITH_FOUR_OR_FIVE_CAPTIONS[case]
        assert len(first.answers) in (4, 5)
    if excerpt is not None:
        (number,) = {number for number in re.findall(r"\d[\d,]*\d|\d", excerpt) if number != "10"}
        tolerance = 0.01 if "bout" in excerpt else 0
        assert count == pytest.approx(int(number.replace(",", "")), rel=tolerance)
        folder = next(value for value in options.values() if isinstance(value, str)).split("/")[0]
        assert excerpt in (shared / "data" / folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("case", "images"),
    [("nlvr1", "nlvr1/images/{}.png"), ("captions-photos", "coco_photos/images/{}.jpg"),
     ("vqa-rad", "vqa_rad/images/{}.jpg")],
)  # fmt: skip
def test_image_keys_are_names_of_real_images(shared, case, images):
    name, options, *_ = CASES[case]
    keys = {key for example in read(make(name, shared / "data", **options)) for key in example.images}
    assert [key for key in sorted(keys) if not (shared / "data" / images.format(key)).is_file()] == []


def test_real_cases_cover_every_shared_json_file(shared):
    data = shared / "data"
    files = {str(path.relative_to(data)) for path in data.rglob("*.json*")}
    named = {value for _, options, _, _ in CASES.values() for value in options.values() if isinstance(value, str)}
    rest = {path for path in files if not any(path == name or path.startswith(f"{name}/") for name in named)}
    assert [path for path in sorted(rest) if not any(re.match(pattern, path) for pattern in NO_ITEMS)] == []
    assert all(any(re.match(pattern, path) for path in files) for pattern in NO_ITEMS)


@pytest.mark.parametrize(("task", "count"), [("vqa", 3_129), ("gqa", 1_842)])
def test_answer_lists_have_published_size(shared, task, count):
    folder = shared / "data" / "answer_vocab"
    readme = (folder / "README.md").read_text()
    assert f"{count:,} answers" in readme or f"({count:,})" in readme
    answers = [value for _, value, _ in stream_json(folder / f"{task}_trainval_label2ans.json")]
    numbers = {key: value for key, value, _ in stream_json(folder / f"{task}_trainval_ans2label.json")}
    assert len(answers) == count
    assert numbers == {answer: number for number, answer in enumerate(answers)}


def test_vqa_published_answer_list_restricts_targets(shared):
    options = {"answer_list": "answer_vocab/vqa_trainval_label2ans.json"}
    task = make("vqa", shared / "data", task_options=options, **CASES["vqa-60k-valid"][1])
    examples = read(task)
    without = [example for example in examples if not example.answers]
    assert task.warnings["s"] == {"questions without a target, kept with weight 0": len(without)}
    # the list has the answers that nine or more people gave in train and val; few questions have none of them
    assert 0 < len(without) < 0.05 * len(examples)
    assert "" not in {answer for example in examples for answer in example.answers}


def test_vqa_score_files_reads_every_annotation(shared):
    folder = shared / "data" / "vqa_accuracy_oracle"
    scores = TASKS.get("vqa").score_files(folder / "annotations.json", folder / "predictions.json")
    assert len(scores["per_question"]) == len(list(stream_json(folder / "annotations.json"))) == 500


def test_vqa_rad_is_split_by_answer_type(shared, tmp_path):
    items = "vqa_rad/questions.json"
    parts = [
        read(make("jsonl_vqa", shared / "data", items=items, filter={"answer_type": type_}))
        for type_ in ("OPEN", "CLOSED")
    ]
    assert [{example.meta["answer_type"] for example in part} for part in parts] == [{"OPEN"}, {"CLOSED"}]
    assert sum(map(len, parts)) == CASES["vqa-rad"][2]
    # other files of VQA-RAD have numbers as answers, and types with a trailing space
    first = _first_item(shared / "data" / items)
    write(tmp_path, "other.json", [{**first, "answer": 4, "answer_type": "OPEN "}])
    task = make("jsonl_vqa", tmp_path, items="other.json", filter={"answer_type": "OPEN"})
    (example,) = read(task)
    assert (example.answers, example.meta["answer_type"]) == (("4",), "OPEN")
    assert task.score([example], {example.id: "four"}).metrics["accuracy"] == 100.0


def _first_item(path: Path) -> dict:
    return next(item for _, item, _ in stream_json(path))


def test_aokvqa_jsonl_scores_equal_vqa(shared):
    task = make("jsonl_vqa", shared / "data", **CASES["aokvqa-jsonl"][1])
    examples = read(task)
    assert {len(example.meta["answers"]) for example in examples} == {10}
    best = {example.id: example.answers[0] for example in examples}
    vqa = make("vqa", shared / "data", questions="x")
    assert task.score(examples, best).metrics == vqa.score(examples, best).metrics
