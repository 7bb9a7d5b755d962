"""Resumable feature extraction: decode images, encode them, write the feature store."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from feature_extraction.background_writer import BackgroundWriter
from feature_extraction.encoder import Encoder, load_encoder
from feature_extraction.failures import printable_path, read_failures, record_failures
from feature_extraction.images.decode import ImageBatches, decode_batches
from feature_extraction.images.image_index import ImageIndex, index_images
from feature_extraction.progress import progress, progress_bar
from feature_extraction.work_sharing import ShardTask, assign_shards, claim_shards, current_process
from multitask_vl.config.schema import Config
from multitask_vl.data.store.manifest import Manifest
from multitask_vl.data.store.writer import StoreWriter
from multitask_vl.errors import InputError


@dataclass
class Summary:
    """Result of an extraction.

    Attributes:
        store: the store file, or the common name of its shards.
        manifest: how its features were made.
        images: number of images found.
        skipped: images that were done before or by other processes.
        extracted: images extracted by this process.
        failures: key, path and reason of each image that could not be read, sorted by key.
        corrupt_rows: keys of stored rows whose checksum failed; they were extracted again.
        extra_rows: number of rows of the store without an image.
        rotated: number of images that were rotated by their EXIF orientation.
        non_images: number of files that are not images.
        duplicate_files: number of files skipped as copies of others of the same name.
        wall_s: seconds this process spent on new images.
        size_bytes: size of the store's files.
    """

    store: Path
    manifest: Manifest
    images: int = 0
    skipped: int = 0
    extracted: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    corrupt_rows: list[str] = field(default_factory=list)
    extra_rows: int = 0
    rotated: int = 0
    non_images: int = 0
    duplicate_files: int = 0
    wall_s: float = 0.0
    size_bytes: int = 0

    @property
    def complete(self) -> bool:
        """Whether the store holds every image."""
        return self.skipped + self.extracted == self.images


def extract(config: Config, device: torch.device | str | None = None) -> Summary:
    """Fill the store of a configuration with the features of its images; running it again resumes.

    Any number of processes may share the work (`work_sharing.current_process`). If one of them crashes, the others take
    over its files, or the same command resumes.

    Args:
        config: `vision`, `features` and `data_dir` are read.
        device: None: the GPU if there is one, a different GPU for each process of a machine.

    Raises:
        InputError: bad images, model, weights, store or disk. Unreadable images are not an error: they are listed in
            the summary and in ``failures.jsonl`` next to the store, and the next run tries them again.
    """
    features, process = config.features, current_process()
    store = _store_path(config)
    index = index_images([config.data_dir / source.expanduser() for source in features.images])
    if process.world_size > features.shards:
        raise InputError(
            f"features.shards: {features.shards} shards for {process.world_size} processes leave some without work; "
            f"set features.shards={4 * process.world_size} or so"
        )
    tasks = assign_shards(store, index.files, features.shards)
    if device is None and torch.cuda.is_available():
        device = f"cuda:{process.local_rank % torch.cuda.device_count()}"
    encoder = load_encoder(config.vision, features.precision, device, features.compile)
    summary = Summary(
        store,
        encoder.manifest,
        len(index.files),
        non_images=index.non_images,
        duplicate_files=index.duplicate_files,
    )

    def open_writer(task: ShardTask) -> StoreWriter:
        return StoreWriter(task.path, encoder.manifest, task.keys, progress)

    bar = progress_bar(total=summary.images, desc="extracting", unit="img")
    with bar, closing(claim_shards(tasks, process, open_writer)) as claimed:
        for task, writer in claimed:
            failures = _fill(writer, config, encoder, index, summary, bar, process.local_world_size)
            record_failures(task.path, failures)
    missing = sum(len(task.missing_keys() or ()) for task in tasks)
    summary.skipped = summary.images - missing - summary.extracted
    recorded = read_failures(task.path for task in tasks)
    summary.failures = sorted((each for task in tasks for each in recorded[task.path.name]), key=lambda one: one["key"])
    summary.size_bytes = sum(task.path.stat().st_size for task in tasks)
    return summary


def _fill(
    writer: StoreWriter,
    config: Config,
    encoder: Encoder,
    index: ImageIndex,
    summary: Summary,
    bar: tqdm,
    local_world_size: int,
) -> list[dict[str, str]]:
    """Fill the pending rows of one store file; returns the failures in the order of the keys."""
    features, vision = config.features, config.vision
    has_image = np.array([key in index.files for key in writer.keys])
    summary.corrupt_rows += writer.corrupt
    summary.extra_rows += int((~has_image).sum())
    pending = writer.pending & has_image
    bar.update(int((has_image & ~pending).sum()))
    images = [index.files.get(key) for key in writer.keys]
    batches = ImageBatches(images, pending, features.batch_size, vision.image_size, vision.resize)
    started, failures = time.perf_counter(), []
    with BackgroundWriter(writer.write) as background:
        for batch in decode_batches(batches, features.num_workers, encoder.device, local_world_size):
            if batch.pixels is not None:
                background.put(batch.rows, encoder.encode(batch.pixels), batch.readable)
            summary.extracted += int(batch.readable.sum())
            summary.rotated += batch.rotated
            failures += [
                {"key": writer.keys[row], "path": printable_path(str(images[row])), "reason": reason}
                for row, reason in batch.failures
            ]
            bar.update(int(batch.readable.sum()) + len(batch.failures))
    summary.wall_s += time.perf_counter() - started
    return failures


def _store_path(config: Config) -> Path:
    stores = config.features.store if isinstance(config.features.store, list) else [config.features.store]
    if len(stores) != 1 or not isinstance(stores[0], Path):
        given = f"{len(stores)} stores" if len(stores) != 1 else f"the URL {stores[0]}"
        raise InputError(
            f"features.store: extraction writes one local store, but the configuration has {given}; set "
            "features.store=FILE.h5"
        )
    return config.data_dir / stores[0].expanduser()
