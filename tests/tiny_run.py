"""A training run of seconds: four tasks in official files, random features, a BART of a few thousand weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from accelerate.state import AcceleratorState

from multitask_vl.cli.main import main
from multitask_vl.data.store.manifest import Manifest
from multitask_vl.data.store.writer import write_store
from multitask_vl.synthetic.tokenizer import build_tokenizer, save_tokenizer

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 14
COLORS = ("red", "blue", "green")
PROMPTS = ("vqa", "gqa", "nlvr", "caption", ":")
WORDS = ("what", "color", "is", "the", "thing", "?", "a", "there", "in", "both", ".", "true", "false", "no", "yes")
SIZES = {"train": 23, "test": 7}
"""Rows of each split; odd, so that two processes share them unevenly."""


def write_dataset(folder: Path) -> None:
    """Write official annotation files of four tasks, a feature store and a tokenizer into ``folder``."""
    rng = np.random.default_rng(0)
    for split, size in SIZES.items():
        images = [int(rng.integers(IMAGES)) for _ in range(size)]
        _write_vqa(folder, split, images)
        _write_gqa(folder, split, images)
        _write_nlvr2(folder, split, size)
        _write_captions(folder, split, size)
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


def _write_vqa(folder: Path, split: str, images: list[int]) -> None:
    questions, annotations = [], []
    for i, image in enumerate(images):
        answer, other = COLORS[i % 3], COLORS[(i + 1) % 3]
        questions.append({"question_id": i, "image_id": image, "question": "what color is the thing ?"})
        answers = [
            {"answer": given, "answer_id": k + 1, "answer_confidence": "yes"}
            for k, given in enumerate([answer] * 8 + [other] * 2)
        ]
        annotations.append(
            {
                "question_id": i,
                "image_id": image,
                "question_type": "what color",
                "answer_type": "other",
                "multiple_choice_answer": answer,
                "answers": answers,
            }
        )
    header = {"data_type": "tiny", "data_subtype": split}
    _json(folder / f"vqa_{split}_questions.json", {**header, "questions": questions})
    _json(folder / f"vqa_{split}_annotations.json", {**header, "annotations": annotations})


def _write_gqa(folder: Path, split: str, images: list[int]) -> None:
    questions = {
        str(i): {
            "question": "is the thing red ?",
            "imageId": f"{image:012d}",
            "answer": "yes" if i % 2 else "no",
            "isBalanced": True,
            "types": {"structural": "verify", "semantic": "attr", "detailed": "verify"},
        }
        for i, image in enumerate(images)
    }
    _json(folder / f"gqa_{split}.json", questions)


def _write_nlvr2(folder: Path, split: str, size: int) -> None:
    items = [
        {
            "sentence": f"there is a {COLORS[i % 3]} thing in both .",
            "identifier": f"{split}-{i // 2}-0-{i % 2}",
            "label": "True" if i % 2 else "False",
        }
        for i in range(size)
    ]
    (folder / f"nlvr2_{split}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def _write_captions(folder: Path, split: str, size: int) -> None:
    images = [
        {
            "filename": f"{i % IMAGES:012d}.png",
            "imgid": i,
            "cocoid": i,
            "split": split,
            "sentids": [2 * i, 2 * i + 1],
            "sentences": [
                {"raw": f"a {color} thing .", "sentid": 2 * i + k, "imgid": i, "tokens": ["a", color, "thing"]}
                for k, color in enumerate((COLORS[i % 3], COLORS[(i + 1) % 3]))
            ],
        }
        for i in range(size)
    ]
    _json(folder / f"captions_{split}.json", {"dataset": "coco", "images": images})


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def base_config(folder: Path) -> dict:
    """Return the configuration of a tiny run over `write_dataset(folder)`, as read from YAML."""
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
            "max_steps": 12, "batch_size": 6, "lr": 1e-2, "log_steps": 1, "checkpoint_steps": 4, "warmup_ratio": 0.25,
        },
        "evaluation": {"eval_splits": [], "final_splits": ["test"], "caption_tokenizer": "python", "batch_size": 8},
        "tracking": {"trackers": []},
    }  # fmt: skip


def write_config(folder: Path, only_tasks: Sequence[str] | None = None, **sections: dict) -> Path:
    """Write ``folder/tiny.yaml``; a mapping in ``sections`` is merged into the section, other values replace it."""
    config = base_config(folder)
    if only_tasks is not None:
        config["tasks"] = {name: config["tasks"][name] for name in only_tasks}
        config["routing"]["function"] = {name: config["routing"]["function"][name] for name in only_tasks}
    for name, changes in sections.items():
        config[name] = {**config[name], **changes} if isinstance(config.get(name), dict) else changes
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def command(config: Path, *arguments: str, processes: int = 1) -> list[str]:
    """Return the command that trains ``config``; several processes are a gloo group of torchrun."""
    script = ["launch/train_multitask.py", "--config", str(config), *arguments]
    if processes == 1:
        return [sys.executable, *script]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *launcher, *script]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a command under test: one thread, no hub, and the given variables."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def run(config: Path, *arguments: str, processes: int = 1, **env: str) -> subprocess.CompletedProcess:
    """Train to the end and return the finished process, with its output."""
    return subprocess.run(
        command(config, *arguments, processes=processes), cwd=ROOT, env=environment(**env),
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


def launch(*arguments: str) -> int:
    """Run a subcommand of `multitask-vl` in this process; returns its exit code."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return main(arguments)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def read_losses(folder: Path) -> list[tuple[int, str, float]]:
    """Return (step, task, loss) of every training row in the metrics of a run folder."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["task"], row["loss"]) for row in rows if "loss" in row]
