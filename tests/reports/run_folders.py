"""Run folders for report tests: small made-up runs with images, written without a model."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from multitask_vl.reports.page import write_report

COLORS = {"red": "#c8372d", "green": "#3a8f47", "blue": "#2f62c4", "yellow": "#e3b62a", "purple": "#7d4aa6"}
SHAPES = ("circle", "square", "triangle")
PRIMARY_METRICS = {"vqa": "accuracy", "gqa": "accuracy", "nlvr2": "accuracy", "coco_caption": "CIDEr"}
HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)> {{ 7 * 7 }} $x^2$ ' + "long" * 60
STEPS = 600
COMPONENTS = {
    "language_model": {"trainable": 0, "total": 2_524_416},
    "visual_embedding": {"trainable": 74_496, "total": 74_496},
    "adapter": {"trainable": 275_200, "total": 275_200},
}
Objects = list[tuple[str, str]]
"""(color, shape) of each object of a scene."""


def draw_scene(path: Path, number: int) -> Objects:
    """Draw a scene and return its objects."""
    rng = random.Random(number)
    image = Image.new("RGB", (128, 128), (228, 226, 220))
    pen = ImageDraw.Draw(image)
    objects = []
    for x, y in rng.sample([(34, 36), (92, 36), (34, 92), (92, 92)], rng.randint(2, 4)):
        color, shape, r = rng.choice(list(COLORS)), rng.choice(SHAPES), rng.randint(14, 25)
        if shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=COLORS[color])
        elif shape == "square":
            pen.rectangle((x - r, y - r, x + r, y + r), fill=COLORS[color])
        else:
            pen.polygon(((x, y - r), (x + r, y + r), (x - r, y + r)), fill=COLORS[color])
        objects.append((color, shape))
    image.save(path)
    return objects


def make_scenes(folder: Path, count: int = 24) -> dict[str, Objects]:
    """Write ``count`` images to ``folder``/images; returns image key -> objects."""
    (folder / "images").mkdir(parents=True)
    return {f"scene_{i:04d}": draw_scene(folder / "images" / f"scene_{i:04d}.png", i) for i in range(count)}


def make_run(
    folder: Path, scenes: dict[str, Objects], data_dir: Path, accuracy: float = 0.7, seed: int = 42, **settings: Any
) -> Path:
    """Write a run folder.

    Args:
        folder: the run folder.
        scenes: from `make_scenes`.
        data_dir: folder of `make_scenes`.
        accuracy: probability that a prediction is right.
        seed: seed of the run.
        settings: configuration overrides, ``a__b=1`` for ``a.b=1``.
    """
    folder.mkdir(parents=True)
    config = _config(folder, data_dir, seed)
    for dotted, value in settings.items():
        *path, last = dotted.split("__")
        section = config
        for key in path:
            section = section[key]
        section[last] = value
    (folder / "resolved.yaml").write_text("# every value and its origin\n" + yaml.safe_dump(config, sort_keys=False))
    rng = random.Random(f"{seed} {accuracy}")
    splits = {split: _split(folder, scenes, split, accuracy, rng) for split in ("val", "test", "ood")}
    counts = {"trainable": 349_696, "total": 2_874_112}
    (folder / "scores.json").write_text(json.dumps({"step": STEPS, "splits": splits, "parameters": counts}))
    (folder / "record.json").write_text(json.dumps(_record()))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"parameters": {"components": COMPONENTS}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _metrics(splits, accuracy, rng)))
    return folder


def hostile_page(base: Path) -> Path:
    """Write the report of a run with a control, hostile and very long texts, a missing and a corrupt image."""
    scenes = make_scenes(base / "world")
    run = make_run(base / "runs" / "full", scenes, base / "world")
    control = make_run(base / "runs" / "shuffled", scenes, base / "world", accuracy=0.3, features__shuffle_images=True)
    for split in ("test", "ood"):
        path = run / "predictions" / "vqa" / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [{**row, "text": HOSTILE, "prediction": HOSTILE, "references": [HOSTILE]} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def change(scores):
        scores["splits"]["test"]["tasks"]["gqa"]["notes"]["consistency"] = HOSTILE
        scores["splits"]["test"]["tasks"]["vqa"]["groups"]["type"] = {HOSTILE: 30.0}

    edit_json(run / "scores.json", change)
    (run / "resolved.yaml").write_text((run / "resolved.yaml").read_text() + f"# {HOSTILE}\n")
    (base / "world" / "images" / "scene_0000.png").unlink()
    (base / "world" / "images" / "scene_0001.png").write_bytes(b"not an image")
    return write_report(run, control, items=24)


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    """Change the content of a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_yaml(path: Path, change: Callable[[Any], object]) -> None:
    """Change the content of a YAML file in place."""
    value = yaml.safe_load(path.read_text())
    change(value)
    path.write_text(yaml.safe_dump(value, sort_keys=False))


def _config(folder: Path, data_dir: Path, seed: int) -> dict[str, Any]:
    functions = {"vqa": "mul", "gqa": "mul", "nlvr2": "mm1", "coco_caption": "mm2"}
    return {
        "seed": seed,
        "run_dir": str(folder),
        "data_dir": str(data_dir),
        "backbone": {"family": "bart", "pretrained": "bundled:bart"},
        "vision": {"model": "bundled:clip/tiny.json", "pretrained": "bundled:clip/weights.safetensors"},
        "features": {"images": ["images"], "shuffle_images": False},
        "tasks": {task: {"prompt": f"{task}: "} for task in PRIMARY_METRICS},
        "method": [{"name": "adapter", "sharing": "per_task", "rank": 24}],
        "routing": {"function": functions, "source": "encoder", "control": "none"},
        "training": {"max_steps": STEPS, "batch_size": 64, "lr": 0.003, "warmup_ratio": 0.1},
        "evaluation": {"eval_splits": ["val"], "final_splits": ["test", "ood"]},
    }


def _record() -> dict[str, Any]:
    mixture = {task: {"steps": 150, "examples": 9_600} for task in PRIMARY_METRICS}
    times = {"started": "2026-11-26T10:00:00+0000", "ended": "2026-11-26T10:04:30+0000", "resumes": []}
    code = {"version": "0.1.0", "commit": "0123456789abcdef", "dirty": True}
    hardware = {"devices": ["A processor, 2 cores"] * 2, "processes": 2, "threads": 1, "mixed_precision": "no"}
    return {**times, "code": code, **hardware, "torch": "2.14.1", "mixture": mixture}


def _metrics(splits: dict[str, Any], accuracy: float, rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    final = {task: scores["value"] for task, scores in splits["val"]["tasks"].items()}
    for step in range(10, STEPS + 1, 10):
        task = rng.choice(list(PRIMARY_METRICS))
        loss = 0.4 + (1 - accuracy) + 2.5 * math.exp(-step / 140) + rng.gauss(0, 0.12)
        row = {"step": step, "task": task, "loss": loss, "lr": 3e-3 * (1 - step / STEPS), "grad_norm": 1.0}
        time = {"step_s": 0.1, "wait_s": 0.01, "forward_s": 0.04, "backward_s": 0.03, "optimizer_s": 0.02}
        rows.append({**row, "wall_s": 0.11, "time": {**time, "tokens_per_s": 5_000.0, "rss_mib": 700 + step}})
        if step % 100 == 0:
            scores = {task: value * (1 - 0.5 * math.exp(-step / 200)) for task, value in final.items()}
            rows.append({"step": step, "split": "val", "scores": scores})
    return rows


def _split(folder: Path, scenes: dict[str, Objects], split: str, accuracy: float, rng: random.Random) -> dict[str, Any]:
    tasks = {}
    for task, metric in PRIMARY_METRICS.items():
        rows, scores, by_group = [], {}, {}
        for number, key in enumerate(scenes):
            # The questions are the same in all runs, the predictions are not.
            question_rng = random.Random(f"{task} {split} {number}")
            row, score, group = EXAMPLES[task](scenes, key, rng.random() < accuracy, question_rng)
            row |= {"id": f"{split}-{number}", "groups": {"answer_type": group} if group else {}}
            rows.append(row)
            scores[row["id"]] = score
            by_group.setdefault(group, []).append(score)
        path = folder / "predictions" / task / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        path.with_name(f"{split}.per_example.json").write_text(json.dumps(scores))
        value = sum(scores.values()) / len(scores)
        groups = {group: sum(values) / len(values) for group, values in by_group.items()}
        entry = {"primary_metric": metric, "value": value, "metrics": {metric: value}, "notes": {}, "version": 1}
        tasks[task] = {**entry, "groups": {"answer_type": groups} if len(groups) > 1 else {}, "count": len(rows)}
    tasks["coco_caption"]["metrics"] |= {"BLEU-4": 28.4, "SPICE": None}
    tasks["vqa"]["groups"]["question_type"] = {f"what kind {i}": 50.0 for i in range(20)}
    tasks["coco_caption"]["notes"]["BLEU-4"] = "corpus level"
    tasks["coco_caption"]["notes"]["SPICE"] = "not computed: its two jars are not in pycocoevalcap/spice/lib"
    return {"tasks": tasks, "average": sum(scores["value"] for scores in tasks.values()) / len(tasks)}


def _vqa(scenes, key, right, rng):
    color, shape = scenes[key][0]
    if rng.random() < 0.3:
        answer, other = str(len(scenes[key])), str(len(scenes[key]) + 1)
        row = {"text": "How many objects are there?", "references": [answer] * 10}
        return {**row, "images": [key], "prediction": answer if right else other}, 100.0 * right, "number"
    other = rng.choice([name for name in COLORS if name != color])
    row = {"text": f"What color is the {shape}?", "references": [color] * 7 + [other] * 2 + ["dark " + color]}
    score = 100.0 if right else rng.choice([0.0, 60.0])
    return {**row, "images": [key], "prediction": color if right else other}, score, "other"


def _gqa(scenes, key, right, rng):
    color, shape = scenes[key][-1]
    answer, other = rng.choice([("left", "right"), ("right", "left")])
    text = f"On which side of the image is the {color} {shape}, left or right?"
    row = {"text": text, "images": [key], "references": [answer], "prediction": answer if right else other}
    return row, 100.0 * right, "choose"


def _nlvr2(scenes, key, right, rng):
    color, shape = scenes[key][0]
    answer, other = rng.choice([("true", "false"), ("false", "true")])
    text = f"Both images contain a {color} {shape}, and only the left one has more than two objects."
    images = [key, rng.choice(list(scenes))]
    row = {"text": text, "images": images, "references": [answer], "prediction": answer if right else other}
    return row, 100.0 * right, "all"


def _caption(scenes, key, right, rng):
    names = [f"a {color} {shape}" for color, shape in scenes[key]]
    patterns = ("{}", "an image of {}", "there is {}", "{} on a gray background", "we see {}")
    references = [pattern.format(" and ".join(rng.sample(names, 2))) for pattern in patterns]
    prediction = references[0] if right else f"{names[0]} and a gray star"
    row = {"text": "", "images": [key], "references": references, "prediction": prediction}
    return row, rng.uniform(0, 90) + 120 * right, ""


EXAMPLES = {"vqa": _vqa, "gqa": _gqa, "nlvr2": _nlvr2, "coco_caption": _caption}
