"""Time that a training step waits for its data: BART-base, batches of 64 real questions, two workers."""

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
from multitask_vl.data.store.manifest import Manifest
from multitask_vl.data.store.writer import StoreWriter
from multitask_vl.run.build import Run, setup_run
from multitask_vl.training.state import TrainState
from multitask_vl.training.step import train_step

IMAGES, BATCH, WORKERS, PREFETCH = 2000, 64, 2, 4
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


class StepBatches(Dataset):
    """Step number -> its plan and batch, as in training."""

    def __init__(self, run: Run):
        self.schedule, self.collator, self.seed = run.schedule(), run.collators["vqa", "train"], run.config.seed

    def __getitem__(self, step: int):
        plan = self.schedule.plan(step)
        return plan, self.collator.train_batch(plan.rows, self.seed, step)


def measure_step(folder: Path, questions: Path, tokenizer: Path, steps: int) -> str:
    """Train some steps, then read batches without training; return both measurements as Markdown.

    Args:
        folder: receives features and annotations.
        questions: folder with ``vqa_{questions,annotations}_train.json.gz``.
        tokenizer: folder of BART's tokenizer.
        steps: number of measured steps, after two warm-up steps.
    """
    keys = _annotations(folder, questions)
    _store(folder / "features.h5", keys)
    run = _run(folder, tokenizer)
    loader = DataLoader(
        StepBatches(run), sampler=range(steps + 2), batch_size=None, num_workers=WORKERS, prefetch_factor=PREFETCH
    )
    state = TrainState.create(run.model, run.tasks, run.schedule(), run.config, Accelerator(cpu=True))
    waits, walls = [], []
    batches = iter(loader)
    for _ in range(steps + 2):
        started = time.perf_counter()
        plan, batch = next(batches)
        waits.append(time.perf_counter() - started)
        train_step(state, plan, batch)
        walls.append(time.perf_counter() - started)
    waits, walls = waits[2:], walls[2:]
    loading = _loading_seconds(run)
    return "\n".join(
        [
            f"A training step of BART-base (adapters, batch {BATCH}, VQA v2 questions, {torch.get_num_threads()} "
            f"threads on the CPU) with {WORKERS} workers that read 49 x 2048 features, {steps} steps:\n",
            "| | |",
            "| --- | ---: |",
            f"| step time | {1000 * statistics.median(walls):,.0f} ms |",
            f"| of that, waiting for data | {1000 * sum(waits) / steps:,.2f} ms, "
            f"{100 * sum(waits) / sum(walls):.3f} % |",
            f"| the longest wait | {1000 * max(waits):,.2f} ms |",
            f"| workers alone, no training | one batch per {1000 * loading:,.1f} ms |",
        ]
    )


def _annotations(folder: Path, questions: Path) -> list[str]:
    """Write the questions about the first images in the official layout; return their image keys."""
    all_questions, all_annotations = (
        json.loads(gzip.decompress((questions / f"vqa_{kind}_train.json.gz").read_bytes()))
        for kind in ("questions", "annotations")
    )
    images = sorted({one["image_id"] for one in all_questions["questions"]})[:IMAGES]
    kept = set(images)
    for kind, data in (("questions", all_questions), ("annotations", all_annotations)):
        rows = [one for one in data[kind] if one["image_id"] in kept]
        (folder / f"{kind}.json").write_text(json.dumps({**data, kind: rows}))
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
    compose = ["base", "backbones/bart_base_random", "vision/rn101_random", "methods/adapter_single"]
    split = {"questions": "questions.json", "annotations": "annotations.json"}
    settings = {
        "compose": [str(CONFIGS / f"{name}.yaml") for name in compose],
        "data_dir": str(folder),
        "backbone": {"tokenizer": str(tokenizer.resolve())},
        "features": {"store": "features.h5"},
        "tasks": {
            "vqa": {
                "prompt": "vqa: ", "max_input_tokens": 20, "max_target_tokens": 10, "overflow": "truncate",
                "splits": {"train": {**split, "image_key": "COCO_train2014_{image_id:012d}"}},
            }
        },
        "training": {"batch_size": BATCH},
        "evaluation": {"eval_splits": [], "final_splits": []},
        "tracking": {"trackers": []},
    }  # fmt: skip
    (folder / "step.yaml").write_text(json.dumps(settings))
    return setup_run(load_config(folder / "step.yaml"), Accelerator(cpu=True), ["train"])


def _loading_seconds(run: Run, batches: int = 200) -> float:
    """Seconds per batch without training, after the prefetched ones."""
    skipped = WORKERS * PREFETCH
    loader = DataLoader(
        StepBatches(run),
        sampler=range(batches + skipped),
        batch_size=None,
        num_workers=WORKERS,
        prefetch_factor=PREFETCH,
    )
    for number, _ in enumerate(loader):
        if number == skipped - 1:
            started = time.perf_counter()
    return (time.perf_counter() - started) / batches
