"""Sharing of an extraction among processes: ranks, shards and takeover of unfinished shards."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_extraction.failures import read_failures
from multitask_vl.data.store.format import SHARD_NAME, encode_keys, read_local_header
from multitask_vl.data.store.writer import StoreWriter
from multitask_vl.errors import InputError
from multitask_vl.logging import get_logger
from multitask_vl.storage.file_lock import LockHeld

logger = get_logger(__name__)
POLL_S = 1.0
"""Seconds between checks of files that other processes are writing."""


@dataclass(frozen=True)
class Process:
    """One of several processes that fill a store together.

    Attributes:
        rank: its number among all processes, from 0.
        world_size: number of processes.
        local_rank: its number among the processes of this machine, from 0.
        local_world_size: number of processes on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def current_process(environment: Mapping[str, str] = os.environ) -> Process:
    """Return the rank of this process from the environment variables of its launcher.

    A SLURM array multiplies the processes that torchrun, accelerate launch or srun start in each of its tasks.
    """

    def read(name: str, default: int) -> int:
        return int(environment.get(name) or default)

    task, num_tasks = 0, read("SLURM_ARRAY_TASK_COUNT", 1)
    if "SLURM_ARRAY_TASK_ID" in environment:
        first, step = read("SLURM_ARRAY_TASK_MIN", 0), read("SLURM_ARRAY_TASK_STEP", 1)
        task = (read("SLURM_ARRAY_TASK_ID", 0) - first) // step
    if "RANK" in environment and "WORLD_SIZE" in environment:
        rank, world_size = read("RANK", 0), read("WORLD_SIZE", 1)
        local_rank, local_world_size = read("LOCAL_RANK", 0), read("LOCAL_WORLD_SIZE", 1)
    elif "SLURM_STEP_NUM_TASKS" in environment:  # set inside srun only; a batch script without srun is one process
        rank, world_size = read("SLURM_PROCID", 0), read("SLURM_STEP_NUM_TASKS", 1)
        local_rank, local_world_size = read("SLURM_LOCALID", 0), -(-world_size // read("SLURM_STEP_NUM_NODES", 1))
    else:
        rank, world_size, local_rank, local_world_size = 0, 1, 0, 1
    return Process(task * world_size + rank, num_tasks * world_size, local_rank, local_world_size)


@dataclass(frozen=True)
class ShardTask:
    """One file of a store and the images to put into it.

    Attributes:
        path: the file.
        keys: image keys, sorted.
    """

    path: Path
    keys: list[str]

    def missing_keys(self) -> list[str] | None:
        """Return the keys without features; None: the file does not exist yet. Checksums are not verified."""
        if not self.path.exists():
            return None
        header = read_local_header(self.path)
        done = header.keys[header.done]  # sorted by the writer
        present = np.isin(encode_keys(self.keys), done, assume_unique=True)
        return [key for key, is_present in zip(self.keys, present, strict=True) if not is_present]

    def is_finished(self) -> bool:
        """Return whether every image has features or is recorded as unreadable."""
        missing = self.missing_keys()
        if not missing:
            return missing is not None
        failed = {entry["key"] for entry in read_failures([self.path])[self.path.name]}
        return failed.issuperset(missing)


def assign_shards(store: Path, keys: Iterable[str], shards: int) -> list[ShardTask]:
    """Distribute images over the files of a store by a hash of the key, so new images do not move the others.

    Raises:
        InputError: a file would be empty, or the store exists with another number of files.
    """
    paths = [store] if shards == 1 else [shard_path(store, index, shards) for index in range(shards)]
    others = {path for path in store.parent.glob(f"*{store.suffix}") if _belongs(path, store)} - set(paths)
    if others:
        raise InputError(
            f"features.shards: {store.name} exists with another number of files than {shards} (first: {min(others)}); "
            "set features.shards to that number, or move them away"
        )
    keys_by_shard: list[list[str]] = [[] for _ in paths]
    for key in sorted(keys):
        keys_by_shard[zlib.crc32(key.encode()) % shards].append(key)
    empty = sum(not shard for shard in keys_by_shard)
    if empty:
        count = sum(map(len, keys_by_shard))
        raise InputError(f"features.shards: {count:,} images leave {empty} of {shards} files empty; set fewer")
    return [ShardTask(path, shard) for path, shard in zip(paths, keys_by_shard, strict=True)]


def shard_path(store: Path, index: int, shards: int) -> Path:
    """Return ``NAME-00003-of-00016.h5``."""
    return store.with_name(f"{store.stem}-{index:05d}-of-{shards:05d}{store.suffix}")


def _belongs(path: Path, store: Path) -> bool:
    match = SHARD_NAME.fullmatch(path.stem)
    return path == store or bool(match and match["name"] == store.stem)


def claim_shards(
    tasks: list[ShardTask], process: Process, open_writer: Callable[[ShardTask], StoreWriter]
) -> Iterator[tuple[ShardTask, StoreWriter]]:
    """Yield the shards that this process gets to fill, one after the other, each with its open writer.

    A process starts with its own share and opens all of it, so that stored rows are verified once per run. It then
    takes over any shard that is neither finished nor being written, such as those of a crashed or slow process. The
    iterator ends when every shard is finished, so all processes end together and report the same store.

    Args:
        tasks: all files of the store.
        process: the rank of this process.
        open_writer: opens and locks a file.

    Raises:
        LockHeld: there are one shard and one process, and another process is writing the shard.
    """
    count = len(tasks)
    single = count == 1 and process.world_size == 1
    order = [*range(process.rank % count, count), *range(process.rank % count)]
    share = [index for index in order if index % process.world_size == process.rank % process.world_size]
    pending = share + [index for index in order if index not in share]
    unopened, is_waiting = set(share), False
    while pending:
        finished = None
        for index in pending:
            if index not in unopened and tasks[index].is_finished():
                finished = index
                break
            with ExitStack() as stack:
                try:
                    writer = stack.enter_context(open_writer(tasks[index]))
                except LockHeld:
                    if single:
                        raise
                    unopened.discard(index)  # another process was faster and has verified the rows
                    continue
                yield tasks[index], writer
            finished = index
            break
        if finished is not None:
            pending.remove(finished)
            continue
        if not is_waiting:
            first = tasks[pending[0]].path.name
            logger.info(
                f"waiting for {len(pending)} files that other processes are writing (first: {first})",
                main_process_only=False,
            )
            is_waiting = True
        time.sleep(POLL_S)
