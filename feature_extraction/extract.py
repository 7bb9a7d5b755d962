"""How do images become a feature store: decode, encode, store, from wherever the last run stopped."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from feature_extraction.background_writer import WriteAhead
from feature_extraction.encoder import Encoder, load_encoder
from feature_extraction.failures import printable, record_failures, recorded_failures
from feature_extraction.images.decode import ImageBatches, decoded
from feature_extraction.images.image_index import ImageIndex, index_images
from feature_extraction.progress import bar, watch
from feature_extraction.work_sharing import Part, parts_of, this_process, turns
from multitask_vl.config.schema import Config
from multitask_vl.data.store.manifest import Manifest
from multitask_vl.data.store.writer import StoreWriter
from multitask_vl.errors import InputError


@dataclass
class Summary:
    """What an extraction did, and what the store holds now.

    Attributes:
        store: the file, or the name its shards share.
        manifest: how its features were made.
        images: images found.
        skipped: of these, how many were done before, or by other processes.
        extracted: of these, how many this process did.
        failures: key, path and reason of each image that could not be read, by key.
        damaged: keys of stored rows whose checksum failed and that were therefore redone.
        beyond: rows of the store without an image.
        turned: images that were turned upright by their orientation tag.
        ignored: files that are no images.
        copies: files left out as copies of others of the same name.
        wall_s: seconds this process spent on new images.
        size: bytes of the store's files.
    """

    store: Path
    manifest: Manifest
    images: int = 0
    skipped: int = 0
    extracted: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    beyond: int = 0
    turned: int = 0
    ignored: int = 0
    copies: int = 0
    wall_s: float = 0.0
    size: int = 0

    @property
    def complete(self) -> bool:
        """Does the store hold every image?"""
        return self.skipped + self.extracted == self.images


def extract(config: Config, device: torch.device | str | None = None) -> Summary:
    """Fill the store of a configuration with the features of all its images; a second run goes on.

    Any number of processes may do this together (`processes.this_process`), and any of them may die: the others, or
    the same command again, go on where it stopped.

    Args:
        config: `clip`, `features` and `data_dir` are read.
        device: None takes the GPU if there is one, each process of a machine its own.

    Raises:
        InputError: bad images, model, weights, store or disk. Unreadable images are no error: they stand in the
            summary and in ``failures.jsonl`` beside the store, and the next run tries them again.
    """
    features, process = config.features, this_process()
    store = _one_store(config)
    index = index_images([config.data_dir / source.expanduser() for source in features.images])
    if process.world > features.shards:
        raise InputError(
            f"features.shards: {features.shards} for {process.world} processes, so some would have nothing to do; set "
            f"features.shards={4 * process.world} or so"
        )
    parts = parts_of(store, index.paths, features.shards)
    if device is None and torch.cuda.is_available():
        device = f"cuda:{process.local % torch.cuda.device_count()}"
    encoder = load_encoder(config.clip, features.precision, device, features.compile)
    summary = Summary(store, encoder.manifest, len(index.paths), ignored=index.ignored, copies=index.copies)

    def opened(part: Part) -> StoreWriter:
        return StoreWriter(part.path, encoder.manifest, part.keys, watch)

    shown = bar(total=summary.images, desc="extracting", unit="img")
    with shown, closing(turns(parts, process, opened, shown.write)) as work:
        for part, writer in work:
            failures = _fill(writer, config, encoder, index, summary, shown, process.beside)
            record_failures(part.path, failures)
    undone = sum(len(part.undone() or ()) for part in parts)
    summary.skipped = summary.images - undone - summary.extracted
    listed = recorded_failures(part.path for part in parts)
    summary.failures = sorted((one for part in parts for one in listed[part.path.name]), key=lambda one: one["key"])
    summary.size = sum(part.path.stat().st_size for part in parts)
    return summary


def _fill(
    writer: StoreWriter, config: Config, encoder: Encoder, index: ImageIndex, summary: Summary, shown: tqdm, beside: int
) -> list[dict[str, str]]:
    """Fill the pending rows of one file; returns the failures, by key."""
    features, clip = config.features, config.clip
    wanted = np.array([key in index.paths for key in writer.keys])
    summary.damaged += writer.damaged
    summary.beyond += int((~wanted).sum())
    todo = writer.pending & wanted
    shown.update(int((wanted & ~todo).sum()))
    images = [index.paths.get(key) for key in writer.keys]
    batches = ImageBatches(images, todo, features.batch_size, clip.image_size, clip.resize)
    started, failures = time.perf_counter(), []
    with WriteAhead(writer.write) as ahead:
        for batch in decoded(batches, features.workers, encoder.device, beside):
            if batch.pixels is not None:
                ahead.put(batch.rows, encoder.encode(batch.pixels), batch.readable)
            summary.extracted += int(batch.readable.sum())
            summary.turned += batch.turned
            failures += [
                {"key": writer.keys[row], "path": printable(str(images[row])), "reason": reason}
                for row, reason in batch.failures
            ]
            shown.update(int(batch.readable.sum()) + len(batch.failures))
    summary.wall_s += time.perf_counter() - started
    return failures


def _one_store(config: Config) -> Path:
    stores = config.features.store if isinstance(config.features.store, list) else [config.features.store]
    if len(stores) != 1 or not isinstance(stores[0], Path):
        what = f"names {len(stores)}" if len(stores) != 1 else f"names the URL {stores[0]}"
        raise InputError(
            f"features.store: extraction fills one store on a disk, the configuration {what}; name one: "
            "features.store=FILE.h5"
        )
    return config.data_dir / stores[0].expanduser()
