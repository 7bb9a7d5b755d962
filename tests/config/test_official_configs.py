"""Does one YAML pointed at a folder of downloads read every split, and tell a download that is not whole?"""

import json
from pathlib import Path

import pytest
import yaml

from multitask_vl.config import load_config
from multitask_vl.data.example_table import compiled
from multitask_vl.errors import InputError
from multitask_vl.tasks.build import build_tasks

CONFIGS = Path(__file__).parents[2] / "configs"
SPLITS = {"train": 1, "restval": 2, "val": 3, "test": 4}
"""Karpathy's split -> COCO id of its one image here; those of train are in train2014, all others in val2014."""


def questions(subtype: str, *images: int) -> dict:
    asked = [{"question_id": 10 * image, "image_id": image, "question": "Why?"} for image in images]
    return {"data_subtype": subtype, "questions": asked}


def annotations(*images: int) -> dict:
    answers = [{"answer": "so", "answer_id": n} for n in range(1, 11)]
    return {"annotations": [{"question_id": 10 * i, "image_id": i, "answers": answers} for i in images]}


def listed(*images: int, answered: bool = True) -> list:
    label = {"label": {"so": 1}} if answered else {}
    return [{"question_id": 10 * i, "img_id": f"COCO_val2014_{i:012d}", "sent": "Why?", **label} for i in images]


def gqa(id_: str, answered: bool = True) -> dict:
    return {id_: {"imageId": "a", "question": "Is it?", **({"answer": "yes"} if answered else {})}}


def gqa_listed(id_: str) -> list:
    return [{"question_id": id_, "img_id": "a", "sent": "Is it?", "label": {"yes": 1.0}}]


def pair(identifier: str) -> str:
    return json.dumps({"identifier": identifier, "sentence": "Two dogs.", "label": "True"}) + "\n"


def pair_listed(identifier: str) -> list:
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
    "vqa/train.json": listed(1),
    "vqa/nominival.json": listed(2, 3),
    "vqa/minival.json": listed(4),
    "vqa/test.json": listed(7, 8, answered=False),
    "vqa/karpathy_train.json": listed(1, 2),
    "vqa/karpathy_val.json": listed(3),
    "vqa/karpathy_test.json": listed(4),
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
    "GQA/train.json": gqa_listed("1"),
    "GQA/valid.json": gqa_listed("2"),
    "GQA/testdev.json": gqa_listed("3"),
    "nlvr2/train.json": pair("train-0-0-0"),
    "nlvr2/dev.json": pair("dev-0-0-0"),
    "nlvr2/test1.json": pair("test1-0-0-0"),
    "nlvr2/test2.json": pair("test2-0-0-0"),
    "nlvr/train.json": pair_listed("train-0-0-0"),
    "nlvr/valid.json": pair_listed("dev-0-0-0"),
    "nlvr/test.json": pair_listed("test1-0-0-0"),
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


def composed(folder: Path, downloads: Path, *fragments: str):
    """The tasks of some fragments of configs/tasks over the base, their files in ``downloads``."""
    layers = [CONFIGS / "base.yaml", *(CONFIGS / "tasks" / f"{name}.yaml" for name in fragments)]
    (folder / "composed.yaml").write_text(
        yaml.safe_dump({"compose": list(map(str, layers)), "data_dir": str(downloads)})
    )
    return build_tasks(load_config(folder / "composed.yaml"))


OFFICIAL = {
    "vqa": {"train": 1, "tune": 3, "submit_dev": 1, "submit": 2},
    "gqa": {"train": 1, "tune": 1, "report": 1, "submit_balanced": 1, "submit": 1},
    "nlvr2": {"train": 1, "tune": 1, "report": 1, "submit": 1},
    "coco_caption": {"train": 2, "tune": 1, "report": 1},
}
KARPATHY = {"train": 2, "tune": 1, "report": 1}


@pytest.mark.parametrize(
    ("fragments", "changed"),
    [
        (["official"], {}),
        (["official", "vqa_karpathy"], {"vqa": {**KARPATHY, "submit_dev": 1, "submit": 2}}),
        (["official", "vqa_lxmert"], {"vqa": {"train": 3, "tune": 1, "submit_dev": 1, "submit": 2}}),
        # of three questions one has no answer of the list, and one is about a picture of Karpathy's test split
        (
            ["official", "vqa_karpathy", "vqa_visual_genome"],
            {"vqa": {**KARPATHY, "train": 3, "submit_dev": 1, "submit": 2}},
        ),
        (["official", "gqa_train_val"], {"gqa": {"train": 2, "report": 1, "submit_balanced": 1, "submit": 1}}),
    ],
    ids="+".join,
)
def test_every_split_of_the_downloads_is_read(downloads, tmp_path, fragments, changed):
    tasks = composed(tmp_path, downloads, *fragments)
    found = {name: {split: len(list(task.read(split))) for split in task.config.splits} for name, task in tasks.items()}
    assert found == {**OFFICIAL, **changed}
    assert all(task.sources(split) for task in tasks.values() for split in task.config.splits)


@pytest.mark.parametrize("fragment", ["vl_adapter", "vl_adapter_lists"])
def test_the_published_splits_come_from_either_layout(downloads, tmp_path, fragment):
    tasks = composed(tmp_path, downloads, fragment)
    read = {(name, split): list(task.read(split)) for name, task in tasks.items() for split in task.config.splits}
    counts = {key: len(examples) for key, examples in read.items()}
    assert counts == {
        ("vqa", "train"): 2, ("vqa", "tune"): 1, ("vqa", "report"): 1,
        ("gqa", "train"): 2, ("gqa", "report"): 1,
        ("nlvr2", "train"): 1, ("nlvr2", "tune"): 1, ("nlvr2", "report"): 1,
        ("coco_caption", "train"): 10, ("coco_caption", "tune"): 1, ("coco_caption", "report"): 1,
    }  # fmt: skip
    for split in ("tune", "report"):
        (example,) = read["vqa", split]
        assert (example.answers, example.scores, len(example.meta["answers"])) == (("so",), (1.0,), 10)
        assert tasks["vqa"].score([example], {example.id: "so"}).metrics["accuracy"] == 100.0


def test_a_download_that_is_not_whole_is_told(downloads, tmp_path):
    tasks = composed(tmp_path, downloads, "official")
    expected = {
        ("vqa", "train"): 443_757, ("vqa", "tune"): 214_354, ("vqa", "submit_dev"): 107_394, ("vqa", "submit"): 447_793,
        ("gqa", "train"): 943_000, ("gqa", "tune"): 132_062, ("gqa", "report"): 12_578,
        ("nlvr2", "train"): 86_373, ("nlvr2", "tune"): 6_982, ("nlvr2", "report"): 6_967, ("nlvr2", "submit"): 6_970,
        ("coco_caption", "train"): 113_287, ("coco_caption", "tune"): 5_000, ("coco_caption", "report"): 5_000,
    }  # fmt: skip
    named = {
        (name, split): one.expected_count
        for name, task in tasks.items()
        for split, one in task.config.splits.items()
        if one.expected_count
    }
    assert named == expected
    with pytest.raises(InputError, match=r"tasks.gqa.splits.train: .* expected_count: 1 found, 943,000 expected"):
        compiled(tasks["gqa"], "train", tmp_path / "cache")


def test_conventions_agree_with_the_official_counts():
    splits = {
        name: yaml.safe_load((CONFIGS / "tasks" / f"{name}.yaml").read_text())["tasks"]
        for name in ("official", "vqa_karpathy", "vqa_lxmert", "gqa_train_val", "vl_adapter")
    }
    count = {
        (name, task, split): one["expected_count"]
        for name, tasks in splits.items()
        for task, settings in tasks.items()
        for split, one in settings["splits"].items()
        if one and "expected_count" in one
    }
    official = count["official", "vqa", "train"] + count["official", "vqa", "tune"]
    karpathy = sum(count["vqa_karpathy", "vqa", split] for split in ("train", "tune", "report"))
    lxmert = sum(count["vqa_lxmert", "vqa", split] for split in ("train", "tune"))
    assert official == karpathy == lxmert
    balanced = count["official", "gqa", "train"] + count["official", "gqa", "tune"]
    assert count["gqa_train_val", "gqa", "train"] == count["vl_adapter", "gqa", "train"] == balanced
    # the paper's number of examples
    assert sum(count["official", "nlvr2", split] for split in ("train", "tune", "report", "submit")) == 107_292
    for split in ("train", "tune", "report"):
        assert count["vqa_karpathy", "vqa", split] == count["vl_adapter", "vqa", split]
