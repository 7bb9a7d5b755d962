"""How does a store come nearer: a whole, checked copy of its files on a fast local disk."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from multitask_vl.data.store.format import Layout, is_url, read_layout
from multitask_vl.data.store.row_file import RowFile
from multitask_vl.data.store.rows import layout_of_place
from multitask_vl.data.store.writer import Watch
from multitask_vl.errors import UNWRITABLE, InputError
from multitask_vl.storage.atomic import sync
from multitask_vl.storage.file_lock import WriterLock

CHUNK = 32 << 20


def local_copy(path: Path | str, folder: Path, watch: Watch = lambda rows, what: rows) -> Path:
    """The copy of a store file in a folder; made now unless it is there and holds the same rows.

    Of processes that start together one copies and the others wait for it. The copy appears by a rename after all its
    rows' checksums are verified. One that the store has outgrown since (more rows done, rows redone) is replaced.

    Args:
        path: a file, or the URL of one.
        folder: made if need be. Copies of several stores may share it.
        watch: shows the progress.

    Raises:
        InputError: the disk is too small or cannot be written, or rows of the copy fail their checksum.
    """
    source = layout_of_place(path)
    whole = path if is_url(path) else str(Path(path).resolve())
    name = Path(whole.split("?")[0])
    target = Path(folder) / f"{name.stem}.{hashlib.sha256(whole.encode()).hexdigest()[:10]}.h5"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with WriterLock(target, wait=True):
            if not _is_copy(target, source):
                _copy(source, target, watch)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise InputError(
            f"features.local_copy: {error.filename or target}: {error.strerror}; name a folder on another disk "
            "(features.local_copy=DIR), or null to read the store where it is"
        ) from error
    return target


def _is_copy(target: Path, source: Layout) -> bool:
    if not target.exists():
        return False
    try:
        return read_layout(target).holds_the_same_as(source)
    except InputError:  # cut by a full disk or not ours at all: it is replaced
        return False


def _copy(source: Layout, target: Path, watch: Watch) -> None:
    partial = target.with_name(f".{target.name}.partial")
    for old in (target, partial):  # of no use any more; processes that read it keep what they opened
        old.unlink(missing_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < source.size:
        raise InputError(
            f"features.local_copy: {target.parent}: {source.path} needs {source.size / 1e9:,.2f} GB, "
            f"{free / 1e9:,.2f} GB are free; name a folder on another disk (features.local_copy=DIR), or null to read "
            "the store where it is"
        )
    try:
        with partial.open("wb") as file:
            for chunk in watch(_chunks(source), f"copying to {target.parent}"):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        _check(read_layout(partial), source, watch)
        partial.replace(target)
        sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def _chunks(source: Layout) -> Iterator[bytes]:
    if is_url(source.path):
        from multitask_vl.data.store.remote_rows import RemoteRows

        yield from RemoteRows(source).chunks()
        return
    with Path(source.path).open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _check(copy: Layout, source: Layout, watch: Watch) -> None:
    rows, buffer = RowFile(copy), np.empty(copy.shape, "<f2")
    done = np.flatnonzero(copy.done).tolist()
    wrong = [row for row in watch(done, "checking the copy") if not rows.matches(row, buffer)]
    rows.close()
    if wrong:
        raise InputError(
            f"features.local_copy: {len(wrong):,} of {len(done):,} rows copied from {source.path} fail their checksum "
            f"(first: {copy.keys[wrong[0]].decode()}). Is the store sound? python -m feature_extraction.maintenance.manage verify "
            f"{source.path}"
        )
