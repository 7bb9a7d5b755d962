"""What does a feature store look like on disk: its skeleton, where its rows lie, and which files are one store."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from multitask_vl.data.store.manifest import FORMAT_VERSION, Manifest
from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import sync

URL = re.compile(r"[a-z][a-z0-9+.:-]*://")
SHARD = re.compile(r"(?P<name>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})")
PAGE = 4096
DAMAGES = (OSError, RuntimeError, LookupError, TypeError)
"""What h5py raises on a damaged file, depending on which part of it is."""
EXTRACT = "python launch/extract_features.py --config CONFIG"


@dataclass(frozen=True)
class Layout:
    """One store file: what it says of itself and where the bytes of its rows lie.

    Attributes:
        path: the file, or the URL of one that lies elsewhere.
        manifest: how its features were made.
        keys: UTF-8 image keys [N], in the order of the rows.
        done: which rows count [N], bool, at the time of looking.
        crc32: `zlib.crc32` of each row's bytes [N], uint32, at the time of looking.
        count: rows of the file.
        size: bytes of the file.
        features_at: byte offset of `features` [N, T, D], little-endian float16.
        done_at: byte offset of `done` [N], uint8.
        crc32_at: byte offset of `crc32` [N], little-endian uint32.
        identity: device and inode, to notice that the file was replaced since; zeros for a URL.
    """

    path: Path | str
    manifest: Manifest
    keys: np.ndarray
    done: np.ndarray
    crc32: np.ndarray
    count: int
    size: int
    features_at: int
    done_at: int
    crc32_at: int
    identity: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """T and D of a row."""
        return self.manifest.cells, self.manifest.dim

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's features."""
        return self.manifest.cells * self.manifest.dim * 2

    def holds_the_same_as(self, other: Layout) -> bool:
        """Are manifests, keys, done rows and their checksums equal, that is the features themselves?"""
        return (
            not self.manifest.differences(other.manifest)
            and np.array_equal(self.keys, other.keys)
            and np.array_equal(self.done, other.done)
            and np.array_equal(self.crc32[self.done], other.crc32[other.done])
        )


def create(path: Path, manifest: Manifest, keys: Sequence[str]) -> None:
    """Write a store without rows: all its structure, no features yet, every `done` 0.

    Everything is allocated here, once, so that filling rows never touches the structure: a process killed while filling
    cannot damage the file. The space of the features is a hole until it is written. The caller holds the writer's lock.

    Args:
        path: where the store appears, complete, by a rename.
        manifest: how the features will be made.
        keys: image keys, distinct, in the order of the rows; at least one.
    """
    encoded = encode(keys)
    partial = path.with_name(f".{path.name}.partial")
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    count, width = len(encoded), encoded.dtype.itemsize
    # The writer's lock is ours (writer_lock.py); HDF5's own fails on many cluster file systems, so it is off.
    with h5py.File(partial, "w", locking=False, alignment_threshold=PAGE, alignment_interval=PAGE) as file:
        file.attrs["manifest"] = manifest.model_dump_json()
        file.create_dataset("keys", data=encoded.astype(h5py.string_dtype("utf-8", width)))
        file.create_dataset("done", data=np.zeros(count, "u1"))
        file.create_dataset("crc32", data=np.zeros(count, "<u4"))
        file.create_dataset("features", shape=(count, manifest.cells, manifest.dim), dtype="<f2", dcpl=early)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    sync(path.parent)


def read_layout(path: Path) -> Layout:
    """Open a store file, check that it is one and is whole, and close it again.

    Raises:
        InputError: no such file, not HDF5, truncated, another kind of HDF5 file, or of a newer format.
    """
    if path.is_dir():
        raise InputError(f"{path}: a folder, not the file of a feature store; name the file: features.store=FILE.h5")
    if not path.is_file():
        raise InputError(f"{path}: no such feature store; make it: {EXTRACT}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read this feature store")
    if not h5py.is_hdf5(path):
        raise InputError(f"{path}: not an HDF5 file ({path.stat().st_size:,} bytes); move it away and run: {EXTRACT}")
    try:
        with h5py.File(path, "r", locking=False) as file:
            status = path.stat()
            return layout_of(path, file, status.st_size, (status.st_dev, status.st_ino))
    except DAMAGES as error:
        raise InputError(damaged(path, str(error))) from error


def layout_of(path: Path | str, file: h5py.File, size: int, identity: tuple[int, int] = (0, 0)) -> Layout:
    """The layout of an opened HDF5 file of `size` bytes; errors as for `read_layout`."""
    if "manifest" not in file.attrs:
        raise InputError(
            f"{path}: an HDF5 file, but not a feature store (no manifest; it holds {len(file)} entries). If it is a "
            f"group per image, turn it into one: python -m feature_extraction.maintenance.manage import {path} NEW.h5 --config "
            "CONFIG"
        )
    manifest = Manifest.from_json(file.attrs["manifest"], path)
    if manifest.format_version > FORMAT_VERSION:
        raise InputError(
            f"{path}: format {manifest.format_version}, this version of the project reads up to {FORMAT_VERSION}; "
            "update it"
        )
    absent = [one for one in ("features", "keys", "done", "crc32") if file.get(one, getclass=True) is not h5py.Dataset]
    if absent:
        raise InputError(damaged(path, f"no dataset {', '.join(absent)}"))
    count = len(file["keys"])
    wanted = {
        "features": ((count, manifest.cells, manifest.dim), "<f2"),
        "done": ((count,), "|u1"),
        "crc32": ((count,), "<u4"),
    }
    at = {}
    for name, (shape, dtype) in wanted.items():
        one = file[name]
        at[name] = one.id.get_offset()
        if one.shape != shape or one.dtype.str != dtype or at[name] is None:
            how = "contiguous" if at[name] is not None else "not contiguous"
            raise InputError(damaged(path, f"{name} is {one.shape} {one.dtype} {how}, not {shape} {np.dtype(dtype)}"))
    ends = at["features"] + count * manifest.cells * manifest.dim * 2
    if size < ends:
        raise InputError(damaged(path, f"{size:,} bytes where its rows end at {ends:,}"))
    return Layout(
        path=path,
        manifest=manifest,
        keys=np.asarray(file["keys"][:], dtype=f"S{file['keys'].dtype.itemsize}"),
        done=file["done"][:] == 1,
        crc32=file["crc32"][:],
        count=count,
        size=size,
        features_at=at["features"],
        done_at=at["done"],
        crc32_at=at["crc32"],
        identity=identity,
    )


def encode(keys: Sequence[str]) -> np.ndarray:
    """Keys as a fixed-width array of UTF-8 bytes [N]; its order is that of the strings."""
    encoded = [key.encode() for key in keys]
    return np.array(encoded, dtype=f"S{max(map(len, encoded), default=1) or 1}")


def is_url(path: Path | str) -> bool:
    """Does a store lie behind a URL rather than in a file of this machine?"""
    return isinstance(path, str) and URL.match(path) is not None


def place(text: str) -> Path | str:
    """What somebody named as a store: a URL as it stands, everything else as a path."""
    return text if is_url(text) else Path(text)


def shards(path: Path | str) -> list[Path | str]:
    """The files that a configured store consists of: the file itself, or all of ``NAME-00003-of-00016.h5``.

    A URL stands for itself: shards behind URLs are listed one by one.

    Raises:
        InputError: shards are missing, belong to two different splits, or stand beside a whole store of the same name.
    """
    if is_url(path):
        return [path]
    path = Path(path)
    names = [(one, SHARD.fullmatch(one.stem)) for one in path.parent.glob(f"*{path.suffix}")]
    parts = {one: match for one, match in names if match and match["name"] == path.stem}
    if not parts:
        return [path]
    example = min(parts)
    if path.is_file():
        raise InputError(f"{path}: the store stands beside shards of the same name ({example.name}); move one away")
    counts = sorted({match["count"] for match in parts.values()})
    if len(counts) > 1:
        raise InputError(f"{path}: shards of several splits, of {' and of '.join(counts)}; move the stale ones away")
    missing = sorted(set(range(int(counts[0]))) - {int(match["index"]) for match in parts.values()})
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of {int(counts[0])} shards are missing (first: "
            f"{path.stem}-{missing[0]:05d}-of-{counts[0]}{path.suffix}); make them: {EXTRACT}"
        )
    return sorted(parts)


def damaged(path: Path | str, why: str) -> str:
    return f"{path}: truncated or damaged feature store ({why}); copy it again, or delete it and run: {EXTRACT}"
