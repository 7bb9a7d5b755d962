"""How is an embedded world with less to train on made: the official train files, cut to their first part."""

from __future__ import annotations

import json
from pathlib import Path

from multitask_vl.synthetic.writers import FILES, KARPATHY_SPLITS, write_json, write_lines

TRAIN = "train"


def write_subset(world: Path, folder: Path, share: int) -> dict[str, int]:
    """Write the train files of a world with one part in ``share`` of its pictures and of its NLVR2 sets.

    The first pictures are kept with all their questions and captions: a smaller collection, as if collecting had
    stopped earlier. Other splits and the pictures themselves stay where they are.

    Returns:
        rows kept of each task; captions counted singly.
    """
    questions = json.loads((world / FILES["vqa_questions"].format(split=TRAIN)).read_text())
    annotations = json.loads((world / FILES["vqa_annotations"].format(split=TRAIN)).read_text())
    gqa = json.loads((world / FILES["gqa"].format(split=TRAIN)).read_text())
    captions = json.loads((world / FILES["captions"]).read_text())
    pairs = [json.loads(line) for line in (world / FILES["nlvr2"].format(split=TRAIN)).read_text().splitlines()]

    images = [image for image in captions["images"] if image["split"] == KARPATHY_SPLITS[TRAIN]]
    images = images[: max(1, len(images) // share)]
    numbers = {image["cocoid"] for image in images}
    sets = list(dict.fromkeys(_set_of(pair) for pair in pairs))
    sets = set(sets[: max(1, len(sets) // share)])

    questions["questions"] = [one for one in questions["questions"] if one["image_id"] in numbers]
    annotations["annotations"] = [one for one in annotations["annotations"] if one["image_id"] in numbers]
    gqa = {number: one for number, one in gqa.items() if int(one["imageId"]) in numbers}
    pairs = [pair for pair in pairs if _set_of(pair) in sets]

    write_json(folder / "vqa_questions.json", questions)
    write_json(folder / "vqa_annotations.json", annotations)
    write_json(folder / "gqa_questions.json", gqa)
    write_lines(folder / "nlvr2.json", pairs)
    write_json(folder / "dataset_coco.json", {**captions, "images": images})
    return {
        "vqa": len(questions["questions"]),
        "gqa": len(gqa),
        "nlvr2": len(pairs),
        "coco_caption": sum(len(image["sentences"]) for image in images),
    }


def _set_of(pair: dict) -> str:
    return pair["identifier"].split("-")[1]
