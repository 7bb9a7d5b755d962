"""A run that takes seconds: four tasks in official files, random grid features, a BART of a few thousand weights."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from accelerate.state import AcceleratorState

from multitask_vl.data.store.manifest import Manifest
from multitask_vl.data.store.writer import write_store
from multitask_vl.synthetic.tokenizer import build_tokenizer, save_tokenizer

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 14
COLORS = ("red", "blue", "green")
PROMPTS = ("vqa", "gqa", "nlvr", "caption", ":")
WORDS = ("what", "color", "is", "the", "thing", "?", "a", "there", "in", "both", ".", "true", "false", "no", "yes")
SIZES = {"train": 23, "report": 7}
"""Rows of each split; odd, so that two processes share them unevenly."""


def write_files(folder: Path) -> None:
    """Official annotation files of four tasks, a feature store and a tokenizer under ``folder``."""
    rng = np.random.default_rng(0)
    for split, size in SIZES.items():
        questions, annotations, gqa, nlvr2, images = [], [], {}, [], []
        for i in range(size):
            answer, image = COLORS[i % 3], int(rng.integers(IMAGES))
            people = [answer] * 8 + [COLORS[(i + 1) % 3]] * 2
            questions.append({"question_id": i, "image_id": image, "question": "what color is the thing ?"})
            annotations.append(
                {
                    "question_id": i,
                    "image_id": image,
                    "question_type": "what color",
                    "answer_type": "other",
                    "multiple_choice_answer": answer,
                    "answers": [
                        {"answer": said, "answer_id": k + 1, "answer_confidence": "yes"}
                        for k, said in enumerate(people)
                    ],
                }
            )
            gqa[str(i)] = {
                "question": "is the thing red ?",
                "imageId": f"{image:012d}",
                "answer": "yes" if i % 2 else "no",
                "isBalanced": True,
                "types": {"structural": "verify", "semantic": "attr", "detailed": "verify"},
            }
            nlvr2.append(
                {
                    "sentence": f"there is a {answer} thing in both .",
                    "identifier": f"{split}-{i // 2}-0-{i % 2}",
                    "label": "True" if i % 2 else "False",
                }
            )
            images.append(
                {
                    "filename": f"{i % IMAGES:012d}.png",
                    "imgid": i,
                    "cocoid": i,
                    "split": split,
                    "sentids": [2 * i, 2 * i + 1],
                    "sentences": [
                        {"raw": f"a {color} thing .", "sentid": 2 * i + k, "imgid": i, "tokens": ["a", color, "thing"]}
                        for k, color in enumerate((answer, COLORS[(i + 1) % 3]))
                    ],
                }
            )
        header = {"data_type": "tiny", "data_subtype": split}
        _json(folder / f"vqa_{split}_questions.json", {**header, "questions": questions})
        _json(folder / f"vqa_{split}_annotations.json", {**header, "annotations": annotations})
        _json(folder / f"gqa_{split}.json", gqa)
        (folder / f"nlvr2_{split}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in nlvr2))
        _json(folder / f"captions_{split}.json", {"dataset": "coco", "images": images})
    keys = [f"{image:012d}" for image in range(IMAGES)]
    pairs = {f"{split}-{n}-0" for split, size in SIZES.items() for n in range((size + 1) // 2)}
    keys += [f"{pair}-img{side}" for pair in sorted(pairs) for side in (0, 1)]
    features = {key: rng.standard_normal((4, 8)).astype(np.float16) for key in keys}
    manifest = Manifest(
        encoder="RN101", weights_tag="random:0", weights_sha256=None, image_size=224, resize="squash",
        mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
        layer="layer4", grid=(2, 2), dim=8,
    )  # fmt: skip
    write_store(folder / "features.h5", manifest, features)
    save_tokenizer(build_tokenizer([*PROMPTS, *WORDS, *COLORS]), folder / "tokenizer")


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def values(folder: Path) -> dict:
    """The configuration of a tiny run over `write_files(folder)`, as it stands in a YAML."""
    splits = list(SIZES)
    return {
        "data_dir": str(folder),
        "run_dir": str(folder / "run"),
        "seed": 3,
        "backbone": {
            "config": {
                "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
                "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
                "max_position_embeddings": 64,
            },
            "tokenizer": str(folder / "tokenizer"),
            "dropout": 0.1,
        },
        "visual": {"feature_dim": 8, "pool": None},
        "features": {"store": "features.h5"},
        "tasks": {
            "vqa": {
                "splits": {
                    s: {
                        "questions": f"vqa_{s}_questions.json", "annotations": f"vqa_{s}_annotations.json",
                        "image_key": "{image_id:012d}",
                    }
                    for s in splits
                }
            },
            "gqa": {"splits": {s: {"questions": f"gqa_{s}.json"} for s in splits}},
            "nlvr2": {"splits": {s: {"items": f"nlvr2_{s}.jsonl"} for s in splits}},
            "coco_caption": {
                "splits": {s: {"captions": f"captions_{s}.json"} for s in splits},
                "scorers": ["Bleu", "ROUGE_L", "CIDEr"],  # METEOR's Java takes longer than the rest of the run
            },
        },
        "method": {"name": "adapter", "rank": 4, "sharing": "per_task"},
        "routing": {"function": {"vqa": "mul", "gqa": "add", "nlvr2": "mm1", "coco_caption": "mm2"}},
        "training": {
            "steps": 12, "batch_size": 6, "lr": 1e-2, "log_every": 1, "checkpoint_every": 4, "warmup_ratio": 0.25,
        },
        "evaluation": {"during": [], "final": ["report"], "caption_tokenizer": "python", "batch_size": 8},
        "tracking": {"trackers": []},
    }  # fmt: skip


def write_config(folder: Path, **sections: dict) -> Path:
    """``folder/tiny.yaml`` with some sections changed (a mapping is laid over the section, other values replace it)."""
    config = values(folder)
    for name, changes in sections.items():
        config[name] = {**config[name], **changes} if isinstance(config.get(name), dict) else changes
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def command(config: Path, *words: str, processes: int = 1) -> list[str]:
    """The command line that trains ``config``; several processes by torchrun, which gives real gloo ones on a CPU."""
    script = ["launch/train_multitask.py", "--config", str(config), *words]
    if processes == 1:
        return [sys.executable, *script]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *launcher, *script]


def environment(**more: str) -> dict[str, str]:
    """The environment of a command under test: one thread, no hub, and whatever else is asked for."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def run(config: Path, *words: str, processes: int = 1, **env: str) -> subprocess.CompletedProcess:
    """Train to the end and give back what was said; the caller looks at the return code."""
    return subprocess.run(
        command(config, *words, processes=processes), cwd=ROOT, env=environment(**env),
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


def launch(script: str, *words: str) -> int:
    """The exit code of a launch script called in this process; what it says goes to the test's capture."""
    AcceleratorState._reset_state(reset_partial_state=True)
    before = sys.argv
    sys.argv = [f"launch/{script}.py", *words]
    try:
        return runpy.run_path(str(ROOT / "launch" / f"{script}.py"))["main"]()
    finally:
        sys.argv = before
        AcceleratorState._reset_state(reset_partial_state=True)


def losses(folder: Path) -> list[tuple[int, str, float]]:
    """(step, task, loss) of every training row of a run folder's metrics."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["task"], row["loss"]) for row in rows if "loss" in row]
