"""Smaller train splits of a synthetic world."""

from __future__ import annotations

import json
from pathlib import Path

from multitask_vl.synthetic.writers import FILES, write_json, write_jsonl

TRAIN = "train"


def write_subset(world: Path, folder: Path, divisor: int) -> dict[str, int]:
    """Write the train files of a world with the first 1/``divisor`` of its images and of its NLVR2 sets.

    The kept images have all their questions and captions, as if data collection had stopped earlier. Other splits and
    the image files stay where they are.

    Returns:
        Task -> number of examples kept; for captions, the number of captions.
    """
    questions = json.loads((world / FILES["vqa_questions"].format(split=TRAIN)).read_text())
    annotations = json.loads((world / FILES["vqa_annotations"].format(split=TRAIN)).read_text())
    gqa = json.loads((world / FILES["gqa"].format(split=TRAIN)).read_text())
    captions = json.loads((world / FILES["captions"]).read_text())
    pairs = [json.loads(line) for line in (world / FILES["nlvr2"].format(split=TRAIN)).read_text().splitlines()]

    images = [image for image in captions["images"] if image["split"] == TRAIN]
    images = images[: max(1, len(images) // divisor)]
    image_ids = {image["cocoid"] for image in images}
    sets = list(dict.fromkeys(_set_of(pair) for pair in pairs))
    sets = set(sets[: max(1, len(sets) // divisor)])

    questions["questions"] = [one for one in questions["questions"] if one["image_id"] in image_ids]
    annotations["annotations"] = [one for one in annotations["annotations"] if one["image_id"] in image_ids]
    gqa = {id_: one for id_, one in gqa.items() if int(one["imageId"]) in image_ids}
    pairs = [pair for pair in pairs if _set_of(pair) in sets]

    write_json(folder / "vqa_questions.json", questions)
    write_json(folder / "vqa_annotations.json", annotations)
    write_json(folder / "gqa_questions.json", gqa)
    write_jsonl(folder / "nlvr2.json", pairs)
    write_json(folder / "dataset_coco.json", {**captions, "images": images})
    return {
        "vqa": len(questions["questions"]),
        "gqa": len(gqa),
        "nlvr2": len(pairs),
        "coco_caption": sum(len(image["sentences"]) for image in images),
    }


def _set_of(pair: dict) -> str:
    return pair["identifier"].split("-")[1]
