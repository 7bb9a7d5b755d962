"""Official file formats of the synthetic world: VQA v2, GQA, NLVR2 and Karpathy's COCO captions."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from multitask_vl.synthetic.language import SYNONYMS, split_words
from multitask_vl.synthetic.questions import Question
from multitask_vl.synthetic.questions_gqa import TYPES
from multitask_vl.synthetic.scenes import (
    CANVAS,
    COLORS,
    PATTERNS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    relation_holds,
    rng_for,
)
from multitask_vl.synthetic.statements import PairSet

FILES = {
    "vqa_questions": "vqa/v2_OpenEnded_world_{split}_questions.json",
    "vqa_annotations": "vqa/v2_world_{split}_annotations.json",
    "gqa": "gqa/{split}_balanced_questions.json",
    "gqa_scenes": "gqa/{split}_sceneGraphs.json",
    "nlvr2": "nlvr2/{split}.json",
    "nlvr2_scenes": "nlvr2/{split}_sceneGraphs.json",
    "captions": "captions/dataset_coco.json",
}
"""Kind of file -> path relative to the world's folder."""
QUESTION_TYPES = (
    "are there", "can you", "do", "how many", "is it", "is the", "is there a", "what", "what color is the", "what is",
    "what is the", "what is the color of the", "where is the", "which",
)  # fmt: skip
"""Question types of VQA v2 that occur in the world."""
_ALTERNATIVES = {value: values for values in (SIZES, PATTERNS, COLORS, SHAPES, ("yes", "no")) for value in values}


def vqa_files(split: str, questions_by_image: Mapping[int, Sequence[Question]], seed: int) -> tuple[dict, dict]:
    """Questions file and annotations file of a split.

    Args:
        questions_by_image: image id -> its questions.
        seed: seed of the annotators' answers.
    """
    questions, annotations = [], []
    for image_id, image_questions in questions_by_image.items():
        for number, question in enumerate(image_questions):
            question_id = image_id * 1000 + number
            answers = ten_answers(question.answer, rng_for("world", seed, "vqa answers", question_id))
            questions.append({"image_id": image_id, "question": question.text, "question_id": question_id})
            annotations.append(
                {
                    "question_type": question_type(question.text),
                    "multiple_choice_answer": question.answer,
                    "answers": answers,
                    "image_id": image_id,
                    "answer_type": answer_type(question.answer),
                    "question_id": question_id,
                }
            )
    header = {"info": _info("questions"), "data_type": "world", "data_subtype": split, "license": _LICENSE}
    return {**header, "task_type": "Open-Ended", "questions": questions}, {**header, "annotations": annotations}


def ten_answers(answer: str, rng: random.Random) -> list[dict[str, Any]]:
    """Answers of ten annotators: in 60 % all agree, otherwise one is wrong and up to two may use a synonym."""
    answers = [(answer, "yes")] * 10
    if rng.random() < 0.4:
        first, *others = rng.sample(range(10), rng.choice((1, 1, 2, 3)))
        answers[first] = (_wrong_answer(answer, rng), rng.choice(("maybe", "no", "yes")))
        for index in others:
            answers[index] = (rng.choice(SYNONYMS.get(answer, (answer,))), "yes")
    return [
        {"answer": text, "answer_confidence": confidence, "answer_id": number}
        for number, (text, confidence) in enumerate(answers, start=1)
    ]


def _wrong_answer(answer: str, rng: random.Random) -> str:
    if answer.isdigit():
        return str(max(0, int(answer) + rng.choice((-1, 1))))
    return rng.choice([value for value in _ALTERNATIVES.get(answer, ("yes", "no")) if value != answer])


def question_type(text: str) -> str:
    """Longest of `QUESTION_TYPES` that the question starts with."""
    matches = [prefix for prefix in QUESTION_TYPES if f"{text} ".startswith(f"{prefix} ")]
    return max(matches, key=len, default="none of the above")


def answer_type(answer: str) -> str:
    """Answer type of VQA: yes/no, number or other."""
    return "yes/no" if answer in ("yes", "no") else "number" if answer.isdigit() else "other"


def gqa_file(questions_by_image: Mapping[int, Sequence[Question]]) -> dict[str, dict]:
    """Questions file of a split, keyed by question id."""
    items = {}
    for image_id, questions in questions_by_image.items():
        for number, question in enumerate(questions):
            question_id = f"{image_id:06d}{number:02d}"
            object_ids = [_object_id(image_id, k) for k in range(10)]
            program = [{**step, "argument": _fill_slots(step["argument"], object_ids)} for step in question.program]
            structural, semantic, detailed = TYPES[question.template]
            items[question_id] = {
                "semantic": program,
                "entailed": [],
                "equivalent": [question_id],
                "question": question.text,
                "imageId": image_key(image_id),
                "isBalanced": True,
                "groups": {"global": None, "local": f"{question.template}-{'_'.join(question.form)}"},
                "answer": question.answer,
                "semanticStr": "->".join(_step_text(step) for step in program),
                "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
                "types": {"detailed": detailed, "semantic": semantic, "structural": structural},
                "fullAnswer": question.full_answer,
            }
    return items


def _fill_slots(argument: str, object_ids: Sequence[str]) -> str:
    for k, object_id in enumerate(object_ids):
        argument = argument.replace(f"{{{k}}}", object_id)
    return argument


def _step_text(step: Mapping[str, Any]) -> str:
    text = f"{step['operation']}: {step['argument']}"
    return f"{text} [{', '.join(map(str, step['dependencies']))}]" if step["dependencies"] else text


def scene_graphs(scenes: Iterable[tuple[str, int, Scene]]) -> dict[str, dict]:
    """Scene graphs in the format of GQA.

    Args:
        scenes: (image key, number that its object ids start with, scene) of each image.
    """
    return {
        key: {
            "width": CANVAS,
            "height": CANVAS,
            "objects": {
                _object_id(number, k): {
                    "name": thing.shape,
                    "x": round(thing.x - thing.radius),
                    "y": round(thing.y - thing.radius),
                    "w": round(2 * thing.radius),
                    "h": round(2 * thing.radius),
                    "attributes": [thing.size, thing.pattern, thing.color],
                    "relations": [
                        {"name": relation, "object": _object_id(number, j)}
                        for j, other in enumerate(scene.objects)
                        for relation in RELATIONS
                        if relation_holds(relation, thing, other)
                    ],
                }
                for k, thing in enumerate(scene.objects)
            },
        }
        for key, number, scene in scenes
    }


def nlvr2_rows(split: str, sets: Mapping[int, PairSet]) -> Iterator[dict]:
    """Rows of a split's file; identifiers are split-set-pair-sentence."""
    for index, pair_set in sets.items():
        for pair in range(len(pair_set.pairs)):
            left, right = (f"images/{pair_key(split, index, pair, side)}.png" for side in (0, 1))
            for number, sentence in enumerate(pair_set.sentences):
                label = str(pair_set.labels[pair][number])
                yield {
                    "sentence": sentence.text,
                    "label": label,
                    "identifier": f"{split}-{index}-{pair}-{number}",
                    "left_url": left,
                    "right_url": right,
                    "writer": "0",
                    "validation": {"0": label},
                    "extra_validations": {},
                    "synset": sentence.description.shape or "thing",
                    "query": sentence.template,
                }


def karpathy_images(split: str, captions_by_image: Mapping[int, Sequence[str]]) -> list[dict]:
    """Entries of dataset_coco.json for a split.

    Args:
        captions_by_image: image id -> its captions.
    """
    images = []
    for image_id, captions in captions_by_image.items():
        sentids = [image_id * 10 + number for number in range(len(captions))]
        images.append(
            {
                "filepath": "images",
                "sentids": sentids,
                "filename": f"{image_key(image_id)}.png",
                "imgid": image_id,
                "split": split,
                "sentences": [
                    {
                        "tokens": [word for word in split_words(raw) if word.isalnum()],
                        "raw": raw,
                        "imgid": image_id,
                        "sentid": sentid,
                    }
                    for sentid, raw in zip(sentids, captions, strict=True)
                ],
                "cocoid": image_id,
            }
        )
    return images


def image_key(image_id: int) -> str:
    """File stem of an image: twelve digits, as in COCO."""
    return f"{image_id:012d}"


def pair_key(split: str, index: int, pair: int, side: int) -> str:
    """File stem of an image of a pair, as in NLVR2."""
    return f"{split}-{index}-{pair}-img{side}"


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object per line and create the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _object_id(number: int, k: int) -> str:
    return str(number * 10 + k)


def _info(content: str) -> dict:
    return {
        "description": f"{content} about drawn scenes of the synthetic world",
        "url": "",
        "version": "1.0",
        "year": 2026,
        "contributor": "multitask_vl.synthetic",
        "date_created": "2026-01-01 00:00:00",
    }


_LICENSE = {"url": "https://www.apache.org/licenses/LICENSE-2.0", "name": "Apache-2.0"}
