"""What does a finished run folder look like: a small made-up one with pictures, that no model was needed for."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from multitask_vl.reports.page import write_report

COLOURS = {"red": "#c8372d", "green": "#3a8f47", "blue": "#2f62c4", "yellow": "#e3b62a", "purple": "#7d4aa6"}
SHAPES = ("circle", "square", "triangle")
HEADLINES = {"vqa": "accuracy", "gqa": "accuracy", "nlvr2": "accuracy", "coco_caption": "CIDEr"}
HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)> {{ 7 * 7 }} $x^2$ ' + "long" * 60
STEPS = 600
COMPONENTS = {
    "language_model": {"trainable": 0, "total": 2_524_416},
    "visual_embedding": {"trainable": 74_496, "total": 74_496},
    "adapter": {"trainable": 275_200, "total": 275_200},
}


def draw_scene(path: Path, number: int) -> list[tuple[str, str]]:
    """Draw one of the made-up scenes; returns its objects as (colour, shape)."""
    rng = random.Random(number)
    image = Image.new("RGB", (128, 128), (228, 226, 220))
    pen = ImageDraw.Draw(image)
    objects = []
    for x, y in rng.sample([(34, 36), (92, 36), (34, 92), (92, 92)], rng.randint(2, 4)):
        colour, shape, r = rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.randint(14, 25)
        if shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=COLOURS[colour])
        elif shape == "square":
            pen.rectangle((x - r, y - r, x + r, y + r), fill=COLOURS[colour])
        else:
            pen.polygon(((x, y - r), (x + r, y + r), (x - r, y + r)), fill=COLOURS[colour])
        objects.append((colour, shape))
    image.save(path)
    return objects


def make_world(folder: Path, count: int = 24) -> dict[str, list[tuple[str, str]]]:
    """Write ``count`` pictures into ``folder``/images; returns key -> objects."""
    (folder / "images").mkdir(parents=True)
    return {f"scene_{i:04d}": draw_scene(folder / "images" / f"scene_{i:04d}.png", i) for i in range(count)}


def make_run(
    folder: Path, world: dict[str, Any], data_dir: Path, skill: float = 0.7, seed: int = 42, **settings: Any
) -> Path:
    """Write a run folder whose model is right with probability ``skill``; ``settings`` as in `a__b=1` for a.b."""
    folder.mkdir(parents=True)
    config = _config(folder, data_dir, seed)
    for dotted, value in settings.items():
        *path, last = dotted.split("__")
        place = config
        for key in path:
            place = place[key]
        place[last] = value
    (folder / "resolved.yaml").write_text("# every value and its origin\n" + yaml.safe_dump(config, sort_keys=False))
    rng = random.Random(f"{seed} {skill}")
    splits = {split: _split(folder, world, split, skill, rng) for split in ("tune", "report", "heldout")}
    counts = {"trainable": 349_696, "total": 2_874_112}
    (folder / "scores.json").write_text(json.dumps({"step": STEPS, "splits": splits, "parameters": counts}))
    (folder / "record.json").write_text(json.dumps(_record()))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"parameters": {"components": COMPONENTS}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _metrics(splits, skill, rng)))
    return folder


def hostile_page(base: Path) -> Path:
    """The page of a run with a blind control, hostile and endless texts, a lost and a broken picture."""
    world = make_world(base / "world")
    run = make_run(base / "runs" / "full", world, base / "world")
    blind = make_run(base / "runs" / "blind", world, base / "world", skill=0.3, features__control="shuffled")
    for split in ("report", "heldout"):
        path = run / "predictions" / "vqa" / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [{**row, "text": HOSTILE, "prediction": HOSTILE, "references": [HOSTILE]} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = json.loads((run / "scores.json").read_text())
    scores["splits"]["report"]["tasks"]["gqa"]["notes"]["consistency"] = HOSTILE
    scores["splits"]["report"]["tasks"]["vqa"]["groups"]["type"] = {HOSTILE: 30.0}
    (run / "scores.json").write_text(json.dumps(scores))
    (run / "resolved.yaml").write_text((run / "resolved.yaml").read_text() + f"# {HOSTILE}\n")
    (base / "world" / "images" / "scene_0000.png").unlink()
    (base / "world" / "images" / "scene_0001.png").write_bytes(b"no picture")
    return write_report(run, blind, items=24)


def _config(folder: Path, data_dir: Path, seed: int) -> dict[str, Any]:
    functions = {"vqa": "mul", "gqa": "mul", "nlvr2": "mm1", "coco_caption": "mm2"}
    return {
        "seed": seed,
        "run_dir": str(folder),
        "data_dir": str(data_dir),
        "backbone": {"family": "bart", "pretrained": "embedded:bart"},
        "clip": {"model": "embedded:clip/tiny.json", "pretrained": "embedded:clip/weights.safetensors"},
        "features": {"images": ["images"], "control": "none"},
        "tasks": {task: {"prompt": f"{task}: "} for task in HEADLINES},
        "method": [{"name": "adapter", "sharing": "per_task", "rank": 24}],
        "routing": {"function": functions, "source": "encoder_pooled", "control": "none"},
        "training": {"steps": STEPS, "batch_size": 64, "lr": 0.003, "warmup_ratio": 0.1},
        "evaluation": {"during": ["tune"], "final": ["report", "heldout"]},
    }


def _record() -> dict[str, Any]:
    mixture = {task: {"steps": 150, "examples": 9_600} for task in HEADLINES}
    times = {"started": "2026-11-26T10:00:00+0000", "ended": "2026-11-26T10:04:30+0000", "resumes": []}
    code = {"version": "0.1.0", "commit": "0123456789abcdef", "dirty": True}
    machine = {"devices": ["A processor, 2 cores"] * 2, "processes": 2, "threads": 1, "mixed_precision": "no"}
    return {**times, "code": code, **machine, "torch": "2.14.1", "mixture": mixture}


def _metrics(splits: dict[str, Any], skill: float, rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    final = {task: scores["value"] for task, scores in splits["tune"]["tasks"].items()}
    for step in range(10, STEPS + 1, 10):
        task = rng.choice(list(HEADLINES))
        loss = 0.4 + (1 - skill) + 2.5 * math.exp(-step / 140) + rng.gauss(0, 0.12)
        row = {"step": step, "task": task, "loss": loss, "lr": 3e-3 * (1 - step / STEPS), "grad_norm": 1.0}
        time = {"step_s": 0.1, "wait_s": 0.01, "forward_s": 0.04, "backward_s": 0.03, "optimizer_s": 0.02}
        rows.append({**row, "wall_s": 0.11, "time": {**time, "tokens_per_s": 5_000.0, "rss_mib": 700 + step}})
        if step % 100 == 0:
            grown = {task: value * (1 - 0.5 * math.exp(-step / 200)) for task, value in final.items()}
            rows.append({"step": step, "split": "tune", "scores": grown})
    return rows


def _split(folder: Path, world: dict[str, Any], split: str, skill: float, rng: random.Random) -> dict[str, Any]:
    tasks = {}
    for task, headline in HEADLINES.items():
        rows, scores, kinds = [], {}, {}
        for number, key in enumerate(world):
            # what is asked is the same in all runs, how it is answered is not
            asked = random.Random(f"{task} {split} {number}")
            row, score, kind = EXAMPLES[task](world, key, rng.random() < skill, asked)
            row |= {"id": f"{split}-{number}", "kinds": {"answer_type": kind} if kind else {}}
            rows.append(row)
            scores[row["id"]] = score
            kinds.setdefault(kind, []).append(score)
        place = folder / "predictions" / task
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (place / f"{split}.per_example.json").write_text(json.dumps(scores))
        value = sum(scores.values()) / len(scores)
        groups = {kind: sum(values) / len(values) for kind, values in kinds.items()}
        entry = {"headline": headline, "value": value, "metrics": {headline: value}, "notes": {}, "version": 1}
        tasks[task] = {**entry, "groups": {"answer_type": groups} if len(groups) > 1 else {}, "count": len(rows)}
    tasks["coco_caption"]["metrics"] |= {"BLEU-4": 28.4, "SPICE": None}
    tasks["vqa"]["groups"]["question_type"] = {f"what kind {i}": 50.0 for i in range(20)}
    tasks["coco_caption"]["notes"]["BLEU-4"] = "corpus level"
    tasks["coco_caption"]["notes"]["SPICE"] = "not computed: its two jars are not in pycocoevalcap/spice/lib"
    return {"tasks": tasks, "average": sum(scores["value"] for scores in tasks.values()) / len(tasks)}


def _vqa(world, key, right, rng):
    colour, shape = world[key][0]
    if rng.random() < 0.3:
        answer, other = str(len(world[key])), str(len(world[key]) + 1)
        row = {"text": "How many objects are there?", "references": [answer] * 10}
        return {**row, "images": [key], "prediction": answer if right else other}, 100.0 * right, "number"
    near = rng.choice([name for name in COLOURS if name != colour])
    row = {"text": f"What colour is the {shape}?", "references": [colour] * 7 + [near] * 2 + ["dark " + colour]}
    score = 100.0 if right else rng.choice([0.0, 60.0])
    return {**row, "images": [key], "prediction": colour if right else near}, score, "other"


def _gqa(world, key, right, rng):
    colour, shape = world[key][-1]
    answer, other = rng.choice([("left", "right"), ("right", "left")])
    text = f"On which side of the picture is the {colour} {shape}, left or right?"
    row = {"text": text, "images": [key], "references": [answer], "prediction": answer if right else other}
    return row, 100.0 * right, "choose"


def _nlvr2(world, key, right, rng):
    colour, shape = world[key][0]
    truth, other = rng.choice([("true", "false"), ("false", "true")])
    text = f"Both images contain a {colour} {shape}, and only the left one has more than two objects."
    images = [key, rng.choice(list(world))]
    return (
        {"text": text, "images": images, "references": [truth], "prediction": truth if right else other},
        100.0 * right,
        "all",
    )


def _caption(world, key, right, rng):
    names = [f"a {colour} {shape}" for colour, shape in world[key]]
    frames = ("{}", "a picture of {}", "there is {}", "{} on a grey ground", "we see {}")
    references = [frame.format(" and ".join(rng.sample(names, 2))) for frame in frames]
    words = references[0] if right else f"{names[0]} and a grey star"
    return (
        {"text": "", "images": [key], "references": references, "prediction": words},
        rng.uniform(0, 90) + 120 * right,
        "",
    )


EXAMPLES = {"vqa": _vqa, "gqa": _gqa, "nlvr2": _nlvr2, "coco_caption": _caption}
