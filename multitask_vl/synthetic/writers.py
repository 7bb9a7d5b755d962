"""How are questions, statements and captions of the embedded world written in the official files' layouts?"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from multitask_vl.synthetic.language import SYNONYMS, words_of
from multitask_vl.synthetic.questions import Question
from multitask_vl.synthetic.questions_gqa import TYPES
from multitask_vl.synthetic.scenes import CANVAS, COLORS, PATTERNS, RELATIONS, SHAPES, SIZES, Scene, holds, stream
from multitask_vl.synthetic.statements import PairSet

SPLITS = ("train", "tune", "report", "heldout")
KARPATHY_SPLITS = {"train": "train", "tune": "val", "report": "test", "heldout": "heldout"}
"""What a split is called in the ``split`` field of dataset_coco.json."""
FILES = {
    "vqa_questions": "vqa/v2_OpenEnded_world_{split}_questions.json",
    "vqa_annotations": "vqa/v2_world_{split}_annotations.json",
    "gqa": "gqa/{split}_balanced_questions.json",
    "gqa_scenes": "gqa/{split}_sceneGraphs.json",
    "nlvr2": "nlvr2/{split}.json",
    "nlvr2_scenes": "nlvr2/{split}_sceneGraphs.json",
    "captions": "captions/dataset_coco.json",
}
"""Where each file stands in the world's folder."""
QUESTION_TYPES = (
    "are there", "can you", "do", "how many", "is it", "is the", "is there a", "what", "what color is the", "what is",
    "what is the", "what is the color of the", "where is the", "which",
)  # fmt: skip
"""Those of VQA v2's question types that the world's questions open with."""
_RIVALS = {value: values for values in (SIZES, PATTERNS, COLORS, SHAPES, ("yes", "no")) for value in values}


def vqa_files(split: str, asked: Mapping[int, Sequence[Question]], seed: int) -> tuple[dict, dict]:
    """The questions and the annotations file of a split; ``asked``: image id -> its questions."""
    questions, annotations = [], []
    for image_id, found in asked.items():
        for number, one in enumerate(found):
            question_id = image_id * 1000 + number
            answers = ten_answers(one.answer, stream("world", seed, "vqa answers", question_id))
            questions.append({"image_id": image_id, "question": one.text, "question_id": question_id})
            annotations.append(
                {
                    "question_type": question_type(one.text),
                    "multiple_choice_answer": one.answer,
                    "answers": answers,
                    "image_id": image_id,
                    "answer_type": answer_type(one.answer),
                    "question_id": question_id,
                }
            )
    head = {"info": _info("questions"), "data_type": "world", "data_subtype": split, "license": _LICENSE}
    return {**head, "task_type": "Open-Ended", "questions": questions}, {**head, "annotations": annotations}


def ten_answers(right: str, rng: random.Random) -> list[dict[str, Any]]:
    """Ten people's answers: mostly all agree, else one is mistaken and up to two say it in other words."""
    answers = [(right, "yes")] * 10
    if rng.random() < 0.4:
        first, *others = rng.sample(range(10), rng.choice((1, 1, 2, 3)))
        answers[first] = (_mistaken(right, rng), rng.choice(("maybe", "no", "yes")))
        for place in others:
            answers[place] = (rng.choice(SYNONYMS.get(right, (right,))), "yes")
    return [
        {"answer": answer, "answer_confidence": confidence, "answer_id": number}
        for number, (answer, confidence) in enumerate(answers, start=1)
    ]


def _mistaken(right: str, rng: random.Random) -> str:
    if right.isdigit():
        return str(max(0, int(right) + rng.choice((-1, 1))))
    return rng.choice([value for value in _RIVALS.get(right, ("yes", "no")) if value != right])


def question_type(text: str) -> str:
    """The longest of `QUESTION_TYPES` that the question opens with."""
    fits = [opening for opening in QUESTION_TYPES if f"{text} ".startswith(f"{opening} ")]
    return max(fits, key=len, default="none of the above")


def answer_type(answer: str) -> str:
    """VQA's three kinds: yes/no, number, other."""
    return "yes/no" if answer in ("yes", "no") else "number" if answer.isdigit() else "other"


def gqa_file(asked: Mapping[int, Sequence[Question]]) -> dict[str, dict]:
    """The questions file of a split, keyed by question id."""
    items = {}
    for image_id, found in asked.items():
        for number, one in enumerate(found):
            question_id = f"{image_id:06d}{number:02d}"
            names = [_object_id(image_id, k) for k in range(10)]
            program = [{**step, "argument": _fill(step["argument"], names)} for step in one.program]
            structural, semantic, detailed = TYPES[one.template]
            items[question_id] = {
                "semantic": program,
                "entailed": [],
                "equivalent": [question_id],
                "question": one.text,
                "imageId": image_key(image_id),
                "isBalanced": True,
                "groups": {"global": None, "local": f"{one.template}-{'_'.join(one.form)}"},
                "answer": one.answer,
                "semanticStr": "->".join(_spell(step) for step in program),
                "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
                "types": {"detailed": detailed, "semantic": semantic, "structural": structural},
                "fullAnswer": one.full_answer,
            }
    return items


def _fill(argument: str, names: Sequence[str]) -> str:
    for k, name in enumerate(names):
        argument = argument.replace(f"{{{k}}}", name)
    return argument


def _spell(step: Mapping[str, Any]) -> str:
    text = f"{step['operation']}: {step['argument']}"
    return f"{text} [{', '.join(map(str, step['dependencies']))}]" if step["dependencies"] else text


def scene_graphs(scenes: Iterable[tuple[str, int, Scene]]) -> dict[str, dict]:
    """What is in each picture, in the layout of GQA's scene graphs; (key, number, scene) each."""
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
                        if holds(relation, thing, other)
                    ],
                }
                for k, thing in enumerate(scene.objects)
            },
        }
        for key, number, scene in scenes
    }


def nlvr2_lines(split: str, sets: Mapping[int, PairSet]) -> Iterator[dict]:
    """The lines of a split's file; identifiers are split-set-pair-sentence."""
    for index, one in sets.items():
        for pair in range(len(one.pairs)):
            left, right = (f"images/{pair_key(split, index, pair, side)}.png" for side in (0, 1))
            for number, sentence in enumerate(one.sentences):
                label = str(one.labels[pair][number])
                yield {
                    "sentence": sentence.text,
                    "label": label,
                    "identifier": f"{split}-{index}-{pair}-{number}",
                    "left_url": left,
                    "right_url": right,
                    "writer": "0",
                    "validation": {"0": label},
                    "extra_validations": {},
                    "synset": sentence.named.shape or "thing",
                    "query": sentence.template,
                }


def karpathy_images(split: str, captioned: Mapping[int, Sequence[str]]) -> list[dict]:
    """Entries of dataset_coco.json for a split; image id -> its captions."""
    images = []
    for image_id, captions in captioned.items():
        sentids = [image_id * 10 + number for number in range(len(captions))]
        images.append(
            {
                "filepath": "images",
                "sentids": sentids,
                "filename": f"{image_key(image_id)}.png",
                "imgid": image_id,
                "split": KARPATHY_SPLITS[split],
                "sentences": [
                    {
                        "tokens": [word for word in words_of(raw) if word.isalnum()],
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
    """File stem of a picture: twelve digits, as COCO names them."""
    return f"{image_id:012d}"


def pair_key(split: str, index: int, pair: int, side: int) -> str:
    """File stem of one picture of a pair, as NLVR2 names them."""
    return f"{split}-{index}-{pair}-img{side}"


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")))


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line, creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _object_id(image: int, k: int) -> str:
    return str(image * 10 + k)


def _info(what: str) -> dict:
    return {
        "description": f"{what} about drawn scenes of the embedded world",
        "url": "",
        "version": "1.0",
        "year": 2026,
        "contributor": "multitask_vl.synthetic",
        "date_created": "2026-01-01 00:00:00",
    }


_LICENSE = {"url": "https://www.apache.org/licenses/LICENSE-2.0", "name": "Apache-2.0"}
