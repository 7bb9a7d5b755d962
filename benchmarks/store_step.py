"""How long does a training step wait for its data: BART-base, batches of 64 real questions, two workers."""

from __future__ import annotations

import gzip
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from multitask_vl.config import load_config
from multitask_vl.data.store.feature_store import Manifest
from multitask_vl.data.store.writer import StoreWriter
from multitask_vl.run.build import Run, prepare
from multitask_vl.training.optim import build_optimizer

IMAGES, BATCH, WORKERS, AHEAD = 2000, 64, 2, 4
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


class Steps(Dataset):
    """Step number -> its batch, as training makes it."""

    def __init__(self, run: Run):
        self.schedule, self.collator, self.seed = run.schedule(), run.collators["vqa", "train"], run.config.seed

    def __getitem__(self, step: int):
        return self.collator.training(self.schedule.draw(step).rows, self.seed, step)


def measure_step(folder: Path, questions: Path, tokenizer: Path, steps: int) -> str:
    """Train a few steps, then read as fast as two workers can; both as Markdown.

    Args:
        folder: for features and annotations.
        questions: folder with ``vqa_{questions,annotations}_train.json.gz``.
        tokenizer: BART's.
        steps: how many are timed, after two that are not.
    """
    keys = _annotations(folder, questions)
    _store(folder / "features.h5", keys)
    run = _run(folder, tokenizer)
    loader = DataLoader(
        Steps(run), sampler=range(steps + 2), batch_size=None, num_workers=WORKERS, prefetch_factor=AHEAD
    )
    optimizer = build_optimizer(run.model.trainable(), run.config.training)
    task, waits, walls = run.tasks["vqa"], [], []
    run.model.train()
    batches = iter(loader)
    for _ in range(steps + 2):
        started = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - started)
        total, count = task.reduce(run.model(batch), *batch.to_reduce())
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        walls.append(time.perf_counter() - started)
    waited, took = waits[2:], walls[2:]
    alone = _alone(run)
    return "\n".join(
        [
            f"A training step of BART-base (adapters, batch {BATCH}, VQA v2 questions, {torch.get_num_threads()} "
            f"threads on the CPU) with {WORKERS} workers that read 49 x 2048 features, {steps} steps:\n",
            "| | |",
            "| --- | ---: |",
            f"| a step takes | {1000 * statistics.median(took):,.0f} ms |",
            f"| of that it waits for data | {1000 * sum(waited) / steps:,.2f} ms, "
            f"{100 * sum(waited) / sum(took):.3f} % |",
            f"| the longest wait | {1000 * max(waited):,.2f} ms |",
            f"| workers alone, nothing else computing | a batch every {1000 * alone:,.1f} ms |",
        ]
    )


def _annotations(folder: Path, questions: Path) -> list[str]:
    """The questions about the first images, in the official layout; their image keys."""
    asked, answered = (
        json.loads(gzip.decompress((questions / f"vqa_{kind}_train.json.gz").read_bytes()))
        for kind in ("questions", "annotations")
    )
    images = sorted({one["image_id"] for one in asked["questions"]})[:IMAGES]
    kept = set(images)
    for kind, data in (("questions", asked), ("annotations", answered)):
        some = [one for one in data[kind] if one["image_id"] in kept]
        (folder / f"{kind}.json").write_text(json.dumps({**data, kind: some}))
    return [f"COCO_train2014_{image:012d}" for image in images]


def _store(path: Path, keys: list[str]) -> None:
    manifest = Manifest(
        encoder="RN101", weights_tag="random:0", weights_sha256=None, image_size=224, resize="squash", mean=(0, 0, 0),
        std=(1, 1, 1), layer="layer4", grid=(7, 7), dim=2048,
    )  # fmt: skip
    pool = np.abs(np.random.default_rng(0).standard_normal((BATCH, 49, 2048), "f4")).astype("<f2")
    with StoreWriter(path, manifest, keys) as writer:
        for row in range(len(keys)):
            writer.write([row], pool[row % BATCH][None])


def _run(folder: Path, tokenizer: Path) -> Run:
    compose = ["base", "backbones/bart_base_random", "clip/rn101_random", "methods/adapter_single"]
    split = {"questions": "questions.json", "annotations": "annotations.json"}
    settings = {
        "compose": [str(CONFIGS / f"{name}.yaml") for name in compose],
        "data_dir": str(folder),
        "backbone": {"tokenizer": str(tokenizer.resolve())},
        "features": {"store": "features.h5"},
        "tasks": {
            "vqa": {
                "prompt": "vqa: ", "max_input_tokens": 20, "max_target_tokens": 10, "too_long": "truncate",
                "splits": {"train": {**split, "image_key": "COCO_train2014_{image_id:012d}"}},
            }
        },
        "training": {"batch_size": BATCH},
        "evaluation": {"during": [], "final": []},
        "tracking": {"trackers": []},
    }  # fmt: skip
    (folder / "step.yaml").write_text(json.dumps(settings))
    return prepare(load_config(folder / "step.yaml"), Accelerator(cpu=True), ["train"])


def _alone(run: Run, batches: int = 200) -> float:
    """Seconds between batches where nobody else computes, after the first that were read ahead."""
    skipped = WORKERS * AHEAD
    loader = DataLoader(
        Steps(run), sampler=range(batches + skipped), batch_size=None, num_workers=WORKERS, prefetch_factor=AHEAD
    )
    for number, _ in enumerate(loader):
        if number == skipped - 1:
            started = time.perf_counter()
    return (time.perf_counter() - started) / batches
