"""Annotation files of the four tasks at their true size: random text in the official layouts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from multitask_vl.data.store.manifest import Manifest
from multitask_vl.data.store.writer import StoreWriter

ROOT = Path(__file__).resolve().parents[1]
VQA = {"train2014": (443_757, 82_783), "val2014": (214_354, 40_504)}
"""Part -> (questions, images)."""
GQA, GQA_IMAGES = 943_000, 72_140
NLVR2, NLVR2_PAIRS = 86_373, 51_600
CAPTIONS = {"train": (413_915, 82_783), "restval": (152_832, 30_504), "val": (25_010, 5_000), "test": (25_010, 5_000)}
"""Split of Karpathy's file -> (captions, images)."""
ANSWERS_PER_QUESTION = 10
_TEXT = """
    the a is what of in on color are man this how many to there does it people and woman have kind wearing dog that
    cat person his type left right you which made where who red white blue black green brown train bus street table
    food water grass tree plate pizza horse sky building shirt hat ball snow window wall chair sign car truck holding
    sitting standing near behind front small large young old two three four group next field road beach ocean kitchen
    bathroom skateboard frisbee umbrella elephant giraffe zebra sheep surfboard tennis racket baseball player game
    photo drawing animal vehicle yellow orange wooden metal glass computer laptop phone cake sandwich banana apple
    carrot broccoli bench clock motorcycle bicycle airplane boat kite hydrant parking meter stop traffic light bed
    couch book vase flower scissors teddy bear toothbrush hair toilet sink refrigerator oven microwave spoon bowl cup
    yes no riding walking looking eating playing lying flying parked sunny cloudy night day full empty open closed
"""
VOCABULARY = tuple(_TEXT.split())
GRID, CHANNELS = (1, 1), 8
"""Size of the features, which are tiny because the benchmark measures everything else."""
_BLOCK = 10_000


def write_files(folder: Path, scale: float) -> Path:
    """Write annotation files, a store with zeros for every image, and the configuration of a run on them.

    Items are generated in blocks, so that memory stays small.

    Args:
        folder: created if missing.
        scale: fraction of the true number of images, questions and captions.

    Returns:
        path of the configuration; its tasks have one split, train.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    parts = {name: (_scaled(questions, scale), _scaled(images, scale)) for name, (questions, images) in VQA.items()}
    ids = rng.permutation(581_930)[: sum(images for _, images in parts.values())].tolist()
    keys: set[str] = set()
    at = 0
    for part, (questions, images) in parts.items():
        part_ids, at = ids[at : at + images], at + images
        keys |= {f"COCO_{part}_{image:012d}" for image in part_ids}
        head = {"data_type": "mscoco", "license": {"name": "none"}, "data_subtype": part}
        items = _questions(questions, part_ids, np.random.default_rng([1, questions]))
        _write(folder / f"{part}_questions.json", {"task_type": "Open-Ended", **head}, "questions", items)
        items = _annotations(questions, part_ids, np.random.default_rng([2, questions]))
        _write(folder / f"{part}_annotations.json", head, "annotations", items)
    keys |= _write_karpathy(folder / "dataset_coco.json", scale, ids)
    keys |= _write_gqa(folder / "train_balanced_questions.json", _scaled(GQA, scale), _scaled(GQA_IMAGES, scale))
    keys |= _write_nlvr2(folder / "nlvr2_train.json", _scaled(NLVR2, scale), _scaled(NLVR2_PAIRS, scale))
    _write_store(folder / "features.h5", keys)
    (folder / "scale.yaml").write_text(yaml.safe_dump(_configuration(folder)))
    return folder / "scale.yaml"


def _scaled(count: int, scale: float) -> int:
    return max(4, round(count * scale))


def _texts(rng: np.random.Generator, count: int, shortest: int, longest: int) -> Iterator[list[str]]:
    """Texts as lists of words, with a skewed word distribution."""
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        lengths = rng.integers(shortest, longest + 1, size).tolist()
        indices = (rng.random((size, longest)) ** 2 * len(VOCABULARY)).astype(int).tolist()
        for length, row in zip(lengths, indices, strict=True):
            yield [VOCABULARY[index] for index in row[:length]]


def _answers(rng: np.random.Generator, count: int, people: int) -> Iterator[list[str]]:
    """Answers of several people to each question: mostly the same, sometimes one of three others."""
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        candidates = (rng.random((size, 4)) ** 3 * len(VOCABULARY)).astype(int).tolist()
        chosen = np.searchsorted([0.65, 0.85, 0.95], rng.random((size, people))).tolist()
        for four, row in zip(candidates, chosen, strict=True):
            texts = (*(VOCABULARY[index] for index in four[:3]), f"{VOCABULARY[four[3]]} {VOCABULARY[four[0]]}")
            yield [texts[index] for index in row]


def _write(path: Path, head: dict[str, Any], member: str, items: Iterator[dict]) -> None:
    """Write one line, as the official files do: an object whose last member is a long list."""
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + f', "{member}": [')
        for number, item in enumerate(items):
            file.write((", " if number else "") + json.dumps(item))
        file.write("]}")


def _questions(count: int, images: list[int], rng: np.random.Generator) -> Iterator[dict]:
    for number, words in enumerate(_texts(rng, count, 4, 9)):
        image = images[number % len(images)]
        id_ = image * 1000 + number // len(images)
        yield {"image_id": image, "question": " ".join(words).capitalize() + "?", "question_id": id_}


def _annotations(count: int, images: list[int], rng: np.random.Generator) -> Iterator[dict]:
    for number, answers in enumerate(_answers(rng, count, ANSWERS_PER_QUESTION)):
        image = images[number % len(images)]
        yield {
            "question_type": "what is the",
            "multiple_choice_answer": answers[0],
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": n + 1} for n, a in enumerate(answers)],
            "image_id": image,
            "answer_type": "other",
            "question_id": image * 1000 + number // len(images),
        }


def _write_karpathy(path: Path, scale: float, ids: list[int]) -> set[str]:
    """Write images with their captions; return the keys of those in train and restval."""
    parts = {name: (_scaled(captions, scale), _scaled(images, scale)) for name, (captions, images) in CAPTIONS.items()}
    keys = set()

    def images() -> Iterator[dict]:
        sentid = imgid = 0
        for split, (captions, count) in parts.items():
            texts = _texts(np.random.default_rng([3, captions]), captions, 8, 14)
            part = "train2014" if split == "train" else "val2014"
            for number in range(count):
                sentences = []
                for _ in range(captions // count + (number < captions % count)):
                    words = next(texts)
                    raw = " ".join(words).capitalize() + "."
                    sentences.append({"tokens": words, "raw": raw, "imgid": imgid, "sentid": sentid})
                    sentid += 1
                image = ids[imgid % len(ids)]
                name = f"COCO_{part}_{image:012d}"
                if split in ("train", "restval"):
                    keys.add(name)
                yield {
                    "filepath": part, "sentids": [one["sentid"] for one in sentences], "filename": f"{name}.jpg",
                    "imgid": imgid, "split": split, "sentences": sentences, "cocoid": image,
                }  # fmt: skip
                imgid += 1

    _write(path, {"dataset": "coco"}, "images", images())
    return keys


def _write_gqa(path: Path, count: int, images: int) -> set[str]:
    """Write GQA questions with their programs, as one object by id; return the image keys."""
    rng = np.random.default_rng(4)
    ids = (2_000_000 + rng.permutation(500_000)[:images]).tolist()
    questions = zip(_texts(rng, count, 5, 13), _answers(np.random.default_rng(5), count, 1), strict=True)
    with path.open("w", encoding="utf-8") as file:
        for number, (words, (answer,)) in enumerate(questions):
            thing, other = f"{words[0]} ({number + 1000})", words[1]
            item = {
                "semantic": [
                    {"operation": "select", "dependencies": [], "argument": thing},
                    {"operation": "relate", "dependencies": [0], "argument": f"{other},to the left of,s"},
                    {"operation": "query", "dependencies": [1], "argument": "name"},
                ],
                "entailed": [f"{number + n:08d}" for n in range(1, 1 + number % 8)],
                "equivalent": [f"{number:08d}"],
                "question": " ".join(words).capitalize() + "?",
                "imageId": str(ids[number % images]),
                "isBalanced": True,
                "groups": {"global": "object", "local": f"06-{other}"},
                "answer": answer,
                "semanticStr": f"select: {thing}->relate: {other},to the left of,s [0]->query: name [1]",
                "annotations": {
                    "answer": {"0": str(number)}, "question": {"4": str(number + 1000)}, "fullAnswer": {"1": "7"},
                },
                "types": {"detailed": "relS", "semantic": "rel", "structural": "query"},
                "fullAnswer": f"The {other} is {answer}.",
            }  # fmt: skip
            file.write(("{" if number == 0 else ", ") + f'"{number:08d}": ' + json.dumps(item))
        file.write("}")
    return set(map(str, ids))


def _write_nlvr2(path: Path, count: int, pairs: int) -> set[str]:
    with path.open("w", encoding="utf-8") as file:
        for number, words in enumerate(_texts(np.random.default_rng(6), count, 8, 22)):
            pair = number % pairs
            item = {
                "sentence": " ".join(words).capitalize() + ".",
                "left_url": f"https://images.example/{pair}/left.jpg",
                "right_url": f"https://images.example/{pair}/right.jpg",
                "synset": words[-1],
                "query": f"two {words[-1]}0",
                "label": "True" if number % 2 else "False",
                "identifier": f"train-{pair // 4}-{pair % 4}-{number // pairs}",
                "directory": pair % 100,
            }
            file.write(json.dumps(item) + "\n")
    return {f"train-{pair // 4}-{pair % 4}-img{side}" for pair in range(min(pairs, count)) for side in (0, 1)}


def _write_store(path: Path, keys: set[str]) -> None:
    manifest = Manifest(
        encoder="RN101", weights_tag="random:0", weights_sha256=None, image_size=224, resize="squash", mean=(0, 0, 0),
        std=(1, 1, 1), layer="none", grid=GRID, dim=CHANNELS,
    )  # fmt: skip
    with StoreWriter(path, manifest, keys) as writer:
        for start in range(0, len(writer.keys), _BLOCK):
            rows = range(start, min(start + _BLOCK, len(writer.keys)))
            writer.write(rows, np.zeros((len(rows), manifest.cells, CHANNELS), "f2"))


def _configuration(folder: Path) -> dict[str, Any]:
    return {
        "compose": [str(ROOT / "configs" / name) for name in ("base.yaml", "backbones/tiny_bart.yaml")],
        "data_dir": str(folder),
        "cache_dir": str(folder / "cache"),
        "run_dir": str(folder / "run"),
        "vision": {"pretrained": None},
        "visual": {"feature_dim": CHANNELS, "pool": None},
        "method": {"name": "frozen"},
        "features": {"store": "features.h5"},
        "training": {"batch_size": 500},
        "evaluation": {"eval_splits": [], "final_splits": []},
        "tasks": {
            "vqa": {
                "overflow": "truncate",
                "splits": {
                    "train": {
                        "questions": [f"{part}_questions.json" for part in VQA],
                        "annotations": [f"{part}_annotations.json" for part in VQA],
                    }
                },
            },
            "gqa": {
                "overflow": "truncate", "splits": {"train": {"questions": "train_balanced_questions.json"}},
            },
            "nlvr2": {"splits": {"train": {"items": "nlvr2_train.json"}}},
            "coco_caption": {"overflow": "truncate", "splits": {"train": {"captions": "dataset_coco.json"}}},
        },
    }  # fmt: skip
