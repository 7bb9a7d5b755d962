"""Which process of how many is this, which files of a store are its own, and which may it take over?"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_extraction.failures import recorded_failures
from multitask_vl.data.store.format import SHARD, encode, read_layout
from multitask_vl.data.store.writer import StoreWriter
from multitask_vl.errors import InputError
from multitask_vl.storage.file_lock import Busy

POLL_S = 1.0
"""Seconds between looks at files that other processes are writing."""


@dataclass(frozen=True)
class Process:
    """One of several processes that fill a store together.

    Attributes:
        rank: which one, from 0.
        world: how many there are.
        local: which one on this machine, from 0.
        beside: how many are on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    beside: int = 1


def this_process(environment: Mapping[str, str] = os.environ) -> Process:
    """What the launcher says: a SLURM array's task, and in it a process of torchrun, accelerate launch or srun."""

    def number(name: str, otherwise: int) -> int:
        return int(environment.get(name) or otherwise)

    task, tasks = 0, number("SLURM_ARRAY_TASK_COUNT", 1)
    if "SLURM_ARRAY_TASK_ID" in environment:
        first, step = number("SLURM_ARRAY_TASK_MIN", 0), number("SLURM_ARRAY_TASK_STEP", 1)
        task = (number("SLURM_ARRAY_TASK_ID", 0) - first) // step
    if "RANK" in environment and "WORLD_SIZE" in environment:
        rank, world = number("RANK", 0), number("WORLD_SIZE", 1)
        local, beside = number("LOCAL_RANK", 0), number("LOCAL_WORLD_SIZE", 1)
    elif "SLURM_STEP_NUM_TASKS" in environment:  # only inside srun; the batch script alone is one process
        rank, world = number("SLURM_PROCID", 0), number("SLURM_STEP_NUM_TASKS", 1)
        local, beside = number("SLURM_LOCALID", 0), -(-world // number("SLURM_STEP_NUM_NODES", 1))
    else:
        rank, world, local, beside = 0, 1, 0, 1
    return Process(task * world + rank, tasks * world, local, beside)


@dataclass(frozen=True)
class Part:
    """One file of a store and the images that belong into it.

    Attributes:
        path: the file.
        keys: their keys, sorted.
    """

    path: Path
    keys: list[str]

    def undone(self) -> list[str] | None:
        """Keys without features; None where the file is not there yet. Checksums are not looked at."""
        if not self.path.exists():
            return None
        layout = read_layout(self.path)
        done = layout.keys[layout.done]  # sorted, as the writer leaves them
        wanted = encode(self.keys)
        there = np.isin(wanted, done, assume_unique=True)
        return [key for key, found in zip(self.keys, there, strict=True) if not found]

    def settled(self) -> bool:
        """Is there nothing left to do, but for images that somebody tried and could not read?"""
        undone = self.undone()
        if not undone:
            return undone is not None
        failed = {entry["key"] for entry in recorded_failures([self.path])[self.path.name]}
        return failed.issuperset(undone)


def parts_of(store: Path, keys: Iterable[str], shards: int) -> list[Part]:
    """Deal images to the files of a store: by a hash of the key, so that a key stays where it is when others come.

    Raises:
        InputError: a file would be empty, or the store is there already in another number of files.
    """
    names = [store] if shards == 1 else [shard_path(store, index, shards) for index in range(shards)]
    here = {path for path in store.parent.glob(f"*{store.suffix}") if _belongs(path, store)} - set(names)
    if here:
        raise InputError(
            f"features.shards: {store.name} is there already in another number of files (first: {min(here)}), not in "
            f"{shards}; set features.shards to theirs, or move them away"
        )
    dealt: list[list[str]] = [[] for _ in names]
    for key in sorted(keys):
        dealt[zlib.crc32(key.encode()) % shards].append(key)
    empty = sum(not part for part in dealt)
    if empty:
        raise InputError(
            f"features.shards: {sum(map(len, dealt)):,} images leave {empty} of {shards} files empty; set fewer"
        )
    return [Part(path, part) for path, part in zip(names, dealt, strict=True)]


def shard_path(store: Path, index: int, shards: int) -> Path:
    """``NAME-00003-of-00016.h5``."""
    return store.with_name(f"{store.stem}-{index:05d}-of-{shards:05d}{store.suffix}")


def _belongs(path: Path, store: Path) -> bool:
    match = SHARD.fullmatch(path.stem)
    return path == store or bool(match and match["name"] == store.stem)


def turns(
    parts: list[Part], process: Process, opened: Callable[[Part], StoreWriter], tell: Callable[[str], None]
) -> Iterator[tuple[Part, StoreWriter]]:
    """The parts that this process gets to fill, one after the other, each opened while it is looked at.

    First its own share, each of which it opens, so that stored rows are checked once in a run. Then whatever is not
    settled and not being written: the files of a process that died, or that is slow. Ends when every part is settled,
    so all processes end together and say the same of the store.

    Raises:
        Busy: there is one part and one process, and another process is writing it.
    """
    count, alone = len(parts), len(parts) == 1 and process.world == 1
    order = [*range(process.rank % count, count), *range(process.rank % count)]
    own = [at for at in order if at % process.world == process.rank % process.world]
    left = own + [at for at in order if at not in own]
    mine, told = set(own), False
    while left:
        taken = None
        for at in left:
            if at not in mine and parts[at].settled():
                taken = at
                break
            with ExitStack() as stack:
                try:
                    writer = stack.enter_context(opened(parts[at]))
                except Busy:
                    if alone:
                        raise
                    mine.discard(at)  # somebody was faster; what is done there has been checked there
                    continue
                yield parts[at], writer
            taken = at
            break
        if taken is not None:
            left.remove(taken)
            continue
        if not told:
            tell(f"waiting for {len(left)} files that other processes are writing (first: {parts[left[0]].path.name})")
            told = True
        time.sleep(POLL_S)
