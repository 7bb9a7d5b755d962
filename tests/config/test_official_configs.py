"""The task configurations of the official downloads, on small files in the official formats."""

import json
from pathlib import Path

import pytest
import yaml

from multitask_vl.config import load_config
from multitask_vl.data.example_table import load_table
from multitask_vl.errors import InputError
from multitask_vl.tasks.build import build_tasks

CONFIGS = Path(__file__).parents[2] / "configs"
SPLITS = {"train": 1, "restval": 2, "val": 3, "test": 4}
"""Karpathy's split -> COCO id of its image; the image of train is in train2014, the others are in val2014."""


def questions(subtype: str, *images: int) -> dict:
    rows = [{"question_id": 10 * image, "image_id": image, "question": "Why?"} for image in images]
    return {"data_subtype": subtype, "questions": rows}


def annotations(*images: int) -> dict:
    answers = [{"answer": "so", "answer_id": n} for n in range(1, 11)]
    return {"annotations": [{"question_id": 10 * i, "image_id": i, "answers": answers} for i in images]}


def lxmert_list(*images: int, answered: bool = True) -> list:
    label = {"label": {"so": 1}} if answered else {}
    return [{"question_id": 10 * i, "img_id": f"COCO_val2014_{i:012d}", "sent": "Why?", **label} for i in images]


def gqa(id_: str, answered: bool = True) -> dict:
    return {id_: {"imageId": "a", "question": "Is it?", **({"answer": "yes"} if answered else {})}}


def gqa_list(id_: str) -> list:
    return [{"question_id": id_, "img_id": "a", "sent": "Is it?", "label": {"yes": 1.0}}]


def pair(identifier: str) -> str:
    return json.dumps({"identifier": identifier, "sentence": "Two dogs.", "label": "True"}) + "\n"


def pair_list(identifier: str) -> list:
    return [{"identifier": identifier, "img0": "a", "img1": "b", "sent": "Two dogs.", "label": 1, "uid": "u"}]


def captions() -> dict:
    def image(split: str, id_: int) -> dict:
        sentences = [{"raw": "A cat", "sentid": 10 * id_ + n} for n in range(5)]
        return {"cocoid": id_, "filename": f"{id_}.jpg", "split": split, "sentences": sentences}

    return {"images": [image(split, id_) for split, id_ in SPLITS.items()]}


DOWNLOADS = {
    "vqa/v2_OpenEnded_mscoco_train2014_questions.json": questions("train2014", 1),
    "vqa/v2_OpenEnded_mscoco_val2014_questions.json": questions("val2014", 2, 3, 4),
    "vqa/v2_OpenEnded_mscoco_test-dev2015_questions.json": questions("test-dev2015", 7),
    "vqa/v2_OpenEnded_mscoco_test2015_questions.json": questions("test2015", 7, 8),
    "vqa/v2_mscoco_train2014_annotations.json": annotations(1),
    "vqa/v2_mscoco_val2014_annotations.json": annotations(2, 3, 4),
    "vqa/trainval_label2ans.json": ["so"],
    "vqa/train.json": lxmert_list(1),
    "vqa/nominival.json": lxmert_list(2, 3),
    "vqa/minival.json": lxmert_list(4),
    "vqa/test.json": lxmert_list(7, 8, answered=False),
    "vqa/karpathy_train.json": lxmert_list(1, 2),
    "vqa/karpathy_val.json": lxmert_list(3),
    "vqa/karpathy_test.json": lxmert_list(4),
    "visual_genome/question_answers.json": [
        {"id": i, "qas": [{"qa_id": i, "question": "Why?", "answer": answer}]}
        for i, answer in ((1, "So."), (2, "So."), (3, "Just so."))
    ],
    "visual_genome/image_data.json": [{"image_id": i, "coco_id": coco} for i, coco in ((1, None), (2, 4), (3, 1))],
    "gqa/train_balanced_questions.json": gqa("1"),
    "gqa/val_balanced_questions.json": gqa("2"),
    "gqa/testdev_balanced_questions.json": gqa("3"),
    "gqa/test_balanced_questions.json": gqa("4", answered=False),
    "gqa/submission_all_questions.json": gqa("5", answered=False),
    "GQA/train.json": gqa_list("1"),
    "GQA/valid.json": gqa_list("2"),
    "GQA/testdev.json": gqa_list("3"),
    "nlvr2/train.json": pair("train-0-0-0"),
    "nlvr2/dev.json": pair("dev-0-0-0"),
    "nlvr2/test1.json": pair("test1-0-0-0"),
    "nlvr2/test2.json": pair("test2-0-0-0"),
    "nlvr/train.json": pair_list("train-0-0-0"),
    "nlvr/valid.json": pair_list("dev-0-0-0"),
    "nlvr/test.json": pair_list("test1-0-0-0"),
    "coco/dataset_coco.json": captions(),
    "COCO/dataset_coco.json": captions(),
}


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("downloads")
    for name, content in DOWNLOADS.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def build(folder: Path, downloads: Path, *fragments: str):
    """Build the tasks of some files of configs/tasks over the base, with ``downloads`` as data_dir."""
    layers = [CONFIGS / "base.yaml", *(CONFIGS / "tasks" / f"{name}.yaml" for name in fragments)]
    (folder / "composed.yaml").write_text(
        yaml.safe_dump({"compose": list(map(str, layers)), "data_dir": str(downloads)})
    )
    return build_tasks(load_config(folder / "composed.yaml"))


OFFICIAL = {
    "vqa": {"train": 1, "val": 3, "submit_dev": 1, "submit": 2},
    "gqa": {"train": 1, "val": 1, "test": 1, "submit_balanced": 1, "submit": 1},
    "nlvr2": {"train": 1, "val": 1, "test": 1, "submit": 1},
    "coco_caption": {"train": 2, "val": 1, "test": 1},
}
KARPATHY = {"train": 2, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("fragments", "changed"),
    [
        (["official"], {}),
        (["official", "vqa_karpathy"], {"vqa": {**KARPATHY, "submit_dev": 1, "submit": 2}}),
        (["official", "vqa_lxmert"], {"vqa": {"train": 3, "val": 1, "submit_dev": 1, "submit": 2}}),
        # of three questions, one has no answer in the list and one is about an image of Karpathy's test split
        (
            ["official", "vqa_karpathy", "vqa_visual_genome"],
            {"vqa": {**KARPATHY, "train": 3, "submit_dev": 1, "submit": 2}},
        ),
        (["official", "gqa_train_val"], {"gqa": {"train": 2, "test": 1, "submit_balanced": 1, "submit": 1}}),
    ],
    ids="+".join,
)
def test_official_configs_read_every_split(downloads, tmp_path, fragments, changed):
    tasks = build(tmp_path, downloads, *fragments)
    found = {name: {split: len(list(task.read(split))) for split in task.config.splits} for name, task in tasks.items()}
    assert found == {**OFFICIAL, **changed}
    assert all(task.sources(split) for task in tasks.values() for split in task.config.splits)


@pytest.mark.parametrize("fragment", ["vl_adapter", "vl_adapter_lists"])
def test_published_splits_equal_in_both_layouts(downloads, tmp_path, fragment):
    tasks = build(tmp_path, downloads, fragment)
    read = {(name, split): list(task.read(split)) for name, task in tasks.items() for split in task.config.splits}
    counts = {key: len(examples) for key, examples in read.items()}
    assert counts == {
        ("vqa", "train"): 2, ("vqa", "val"): 1, ("vqa", "test"): 1,
        ("gqa", "train"): 2, ("gqa", "test"): 1,
        ("nlvr2", "train"): 1, ("nlvr2", "val"): 1, ("nlvr2", "test"): 1,
        ("coco_caption", "train"): 10, ("coco_caption", "val"): 1, ("coco_caption", "test"): 1,
    }  # fmt: skip
    for split in ("val", "test"):
        (example,) = read["vqa", split]
        assert (example.answers, example.scores, len(example.meta["answers"])) == (("so",), (1.0,), 10)
        assert tasks["vqa"].score([example], {example.id: "so"}).metrics["accuracy"] == 100.0


def test_incomplete_download_is_reported(downloads, tmp_path):
    tasks = build(tmp_path, downloads, "official")
    expected = {
        ("vqa", "train"): 443_757, ("vqa", "val"): 214_354, ("vqa", "submit_dev"): 107_394, ("vqa", "submit"): 447_793,
        ("gqa", "train"): 943_000, ("gqa", "val"): 132_062, ("gqa", "test"): 12_578,
        ("nlvr2", "train"): 86_373, ("nlvr2", "val"): 6_982, ("nlvr2", "test"): 6_967, ("nlvr2", "submit"): 6_970,
        ("coco_caption", "train"): 113_287, ("coco_caption", "val"): 5_000, ("coco_caption", "test"): 5_000,
    }  # fmt: skip
    counts = {
        (name, split): files.expected_count
        for name, task in tasks.items()
        for split, files in task.config.splits.items()
        if files.expected_count
    }
    assert counts == expected
    with pytest.raises(InputError, match=r"tasks.gqa.splits.train: .* expected_count: 1 found, 943,000 expected"):
        load_table(tasks["gqa"], "train", tmp_path / "cache")


def test_split_conventions_add_up_to_official_counts():
    splits = {
        name: yaml.safe_load((CONFIGS / "tasks" / f"{name}.yaml").read_text())["tasks"]
        for name in ("official", "vqa_karpathy", "vqa_lxmert", "gqa_train_val", "vl_adapter")
    }
    count = {
        (name, task, split): files["expected_count"]
        for name, tasks in splits.items()
        for task, settings in tasks.items()
        for split, files in settings["splits"].items()
        if files and "expected_count" in files
    }
    official = count["official", "vqa", "train"] + count["official", "vqa", "val"]
    karpathy = sum(count["vqa_karpathy", "vqa", split] for split in ("train", "val", "test"))
    lxmert = sum(count["vqa_lxmert", "vqa", split] for split in ("train", "val"))
    assert official == karpathy == lxmert
    balanced = count["official", "gqa", "train"] + count["official", "gqa", "val"]
    assert count["gqa_train_val", "gqa", "train"] == count["vl_adapter", "gqa", "train"] == balanced
    # the number of examples in the paper
    assert sum(count["official", "nlvr2", split] for split in ("train", "val", "test", "submit")) == 107_292
    for split in ("train", "val", "test"):
        assert count["vqa_karpathy", "vqa", split] == count["vl_adapter", "vqa", split]
