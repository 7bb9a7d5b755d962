"""Sixteen real questions about real photographs in VQA v2's files: python -m tests.overfit_items SHARED_DATA OUT

Thirteen VQA v2 questions exist for the photographs at hand, and A-OKVQA questions with ten direct answers. Those are
taken on whose answer at least four people agree: only these can score 100 % under the official measure.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

COUNT = 16


def write_real_items(data: Path, out: Path) -> None:
    """Write ``out/questions.json`` and ``out/annotations.json`` from the folder of reference data."""
    photos = data / "coco_photos"
    annotations = json.loads((photos / "vqav2_annotations.json").read_text())["annotations"]
    questions = {q["question_id"]: q for q in json.loads((photos / "vqav2_questions.json").read_text())["questions"]}
    items = [(questions[a["question_id"]]["question"], a) for a in annotations]
    for i, item in enumerate(json.loads((photos / "aokvqa_questions.json").read_text())):
        answers = [{"answer": answer, "answer_id": k + 1} for k, answer in enumerate(item["direct_answers"])]
        annotation = {"question_id": 900_000_000 + i, "image_id": item["image_id"], "answers": answers}
        items.append((item["question"], annotation | {"question_type": "a-okvqa", "answer_type": "other"}))
    agreed = [(q, a) for q, a in items if Counter(each["answer"] for each in a["answers"]).most_common(1)[0][1] >= 4]
    chosen = agreed[:COUNT]
    out.mkdir(parents=True, exist_ok=True)
    asked = [{"question_id": a["question_id"], "image_id": a["image_id"], "question": q} for q, a in chosen]
    (out / "questions.json").write_text(json.dumps({"data_subtype": "val2017", "questions": asked}))
    (out / "annotations.json").write_text(json.dumps({"annotations": [a for _, a in chosen]}))


if __name__ == "__main__":
    write_real_items(Path(sys.argv[1]), Path(sys.argv[2]))
