"""Checked copies of store files on a fast local disk."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from multitask_vl.data.store.format import StoreHeader, is_url, read_local_header
from multitask_vl.data.store.local_rows import LocalRows
from multitask_vl.data.store.progress import ProgressFn, no_progress
from multitask_vl.data.store.row_reader import read_header
from multitask_vl.errors import WRITE_ERRNOS, InputError
from multitask_vl.storage.atomic import atomic_replace
from multitask_vl.storage.file_lock import FileLock

CHUNK = 32 << 20
ALTERNATIVES = "name a folder on another disk (features.local_copy=DIR), or null to read the store without a local copy"


def local_copy(path: Path | str, folder: Path, progress: ProgressFn = no_progress) -> Path:
    """Return the copy of a store file in a folder, made now unless an up-to-date one exists.

    Of processes that start together one copies and the others wait. A copy appears by a rename after the checksums of
    all its rows are verified; it is replaced when the store has changed since (more rows done, rows extracted again).

    Args:
        path: a store file, or its URL.
        folder: created if missing; may hold copies of several stores.
        progress: shows the progress of copying and checking.

    Raises:
        InputError: the disk is full or cannot be written, or rows of the copy fail their checksum.
    """
    source = read_header(path)
    location = path if is_url(path) else str(Path(path).resolve())
    name = Path(location.split("?")[0])
    target = Path(folder) / f"{name.stem}.{hashlib.sha256(location.encode()).hexdigest()[:10]}.h5"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target, wait=True):
            if not _is_up_to_date(target, source):
                _copy(source, target, progress)
    except OSError as error:
        if error.errno not in WRITE_ERRNOS:
            raise
        raise InputError(
            f"features.local_copy: {error.filename or target}: {error.strerror}; {ALTERNATIVES}"
        ) from error
    return target


def _is_up_to_date(target: Path, source: StoreHeader) -> bool:
    if not target.exists():
        return False
    try:
        return read_local_header(target).same_contents(source)
    except InputError:  # truncated by a full disk, or not a store: it is replaced
        return False


def _copy(source: StoreHeader, target: Path, progress: ProgressFn) -> None:
    temp = target.with_name(f".{target.name}.partial")
    for stale in (target, temp):  # processes that read the old copy keep their open file
        stale.unlink(missing_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < source.size:
        raise InputError(
            f"features.local_copy: {target.parent}: {source.path} needs {source.size / 1e9:,.2f} GB, "
            f"{free / 1e9:,.2f} GB are free; {ALTERNATIVES}"
        )
    with atomic_replace(target, temp):
        with temp.open("wb") as file:
            for chunk in progress(_chunks(source), f"copying to {target.parent}"):
                file.write(chunk)
        _verify(read_local_header(temp), source, progress)


def _chunks(source: StoreHeader) -> Iterator[bytes]:
    if is_url(source.path):
        from multitask_vl.data.store.remote_rows import RemoteRows

        yield from RemoteRows(source).chunks()
        return
    with Path(source.path).open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _verify(copy: StoreHeader, source: StoreHeader, progress: ProgressFn) -> None:
    rows, buffer = LocalRows(copy), np.empty(copy.shape, "<f2")
    done = np.flatnonzero(copy.done).tolist()
    corrupt = [row for row in progress(done, "checking the copy") if not rows.checksum_ok(row, buffer)]
    rows.close()
    if corrupt:
        raise InputError(
            f"features.local_copy: {len(corrupt):,} of {len(done):,} rows copied from {source.path} fail their "
            f"checksum (first: {copy.keys[corrupt[0]].decode()}). Check the store: multitask-vl store verify "
            f"{source.path}"
        )
