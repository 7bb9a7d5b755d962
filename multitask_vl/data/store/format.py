"""On-disk format of the feature store: creation, header and shards."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from multitask_vl.data.store.manifest import EXTRACT_COMMAND, FORMAT_VERSION, Manifest
from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import atomic_replace

URL = re.compile(r"[a-z][a-z0-9+.:-]*://")
SHARD_NAME = re.compile(r"(?P<name>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})")
PAGE = 4096
H5_READ_ERRORS = (OSError, RuntimeError, LookupError, TypeError)
"""Exceptions of h5py on a corrupt file, depending on which part is corrupt."""


@dataclass(frozen=True)
class StoreHeader:
    """Everything in a store file but the features, and the byte offsets of its datasets.

    Attributes:
        path: the file, or its URL.
        manifest: how its features were made.
        keys: UTF-8 image keys [N], in the order of the rows.
        done: which rows have features [N], bool, when the header was read.
        crc32: `zlib.crc32` of each row's bytes [N], uint32, when the header was read.
        count: number of rows, N.
        size: size of the file in bytes.
        features_offset: byte offset of `features` [N, T, D], little-endian float16.
        done_offset: byte offset of `done` [N], uint8.
        crc32_offset: byte offset of `crc32` [N], little-endian uint32.
        identity: device and inode, to detect that the file was replaced since; zeros for a URL.
    """

    path: Path | str
    manifest: Manifest
    keys: np.ndarray
    done: np.ndarray
    crc32: np.ndarray
    count: int
    size: int
    features_offset: int
    done_offset: int
    crc32_offset: int
    identity: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a row, (T, D)."""
        return self.manifest.cells, self.manifest.dim

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's features."""
        return self.manifest.cells * self.manifest.dim * 2

    def same_contents(self, other: StoreHeader) -> bool:
        """Return whether manifests, keys, done rows and their checksums are equal, and so the features."""
        return (
            not self.manifest.differences(other.manifest)
            and np.array_equal(self.keys, other.keys)
            and np.array_equal(self.done, other.done)
            and np.array_equal(self.crc32[self.done], other.crc32[other.done])
        )


def create_store(path: Path, manifest: Manifest, keys: Sequence[str]) -> None:
    """Create a store file with all its structure and no features: every `done` is 0.

    Everything is allocated here, so that filling rows never changes the HDF5 structure and a process killed while
    filling cannot corrupt the file. The features take no disk space until they are written. The caller holds the
    writer's lock.

    Args:
        path: the store appears here by a rename, complete.
        manifest: how the features will be made.
        keys: distinct image keys in the order of the rows; at least one.
    """
    encoded = encode_keys(keys)
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    count, width = len(encoded), encoded.dtype.itemsize
    # Writers use FileLock; HDF5's own locks fail on many cluster file systems, so they are off.
    layout = {"locking": False, "alignment_threshold": PAGE, "alignment_interval": PAGE}
    temp = path.with_name(f".{path.name}.partial")
    with atomic_replace(path, temp), h5py.File(temp, "w", **layout) as file:
        file.attrs["manifest"] = manifest.model_dump_json()
        file.create_dataset("keys", data=encoded.astype(h5py.string_dtype("utf-8", width)))
        file.create_dataset("done", data=np.zeros(count, "u1"))
        file.create_dataset("crc32", data=np.zeros(count, "<u4"))
        file.create_dataset("features", shape=(count, manifest.cells, manifest.dim), dtype="<f2", dcpl=early)


def read_local_header(path: Path) -> StoreHeader:
    """Read the header of a store file and check that the file is complete.

    Raises:
        InputError: no such file, not HDF5, truncated, another kind of HDF5 file, or of a newer format.
    """
    if path.is_dir():
        raise InputError(f"{path}: a folder, not a feature store file; name the file: features.store=FILE.h5")
    if not path.is_file():
        raise InputError(f"{path}: no such feature store; create it: {EXTRACT_COMMAND}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read this feature store")
    if not h5py.is_hdf5(path):
        raise InputError(
            f"{path}: not an HDF5 file ({path.stat().st_size:,} bytes); move it away and run: {EXTRACT_COMMAND}"
        )
    try:
        with h5py.File(path, "r", locking=False) as file:
            status = path.stat()
            return parse_header(path, file, status.st_size, (status.st_dev, status.st_ino))
    except H5_READ_ERRORS as error:
        raise InputError(corrupt_message(path, str(error))) from error


def parse_header(path: Path | str, file: h5py.File, size: int, identity: tuple[int, int] = (0, 0)) -> StoreHeader:
    """Return the header of an open HDF5 file of `size` bytes; errors as for `read_local_header`."""
    manifest = _read_manifest(path, file)
    names = ("features", "keys", "done", "crc32")
    missing = [name for name in names if file.get(name, getclass=True) is not h5py.Dataset]
    if missing:
        raise InputError(corrupt_message(path, f"no dataset {', '.join(missing)}"))
    count = len(file["keys"])
    expected = {
        "features": ((count, manifest.cells, manifest.dim), "<f2"),
        "done": ((count,), "|u1"),
        "crc32": ((count,), "<u4"),
    }
    offsets = {}
    for name, (shape, dtype) in expected.items():
        dataset = file[name]
        offsets[name] = dataset.id.get_offset()
        if dataset.shape != shape or dataset.dtype.str != dtype or offsets[name] is None:
            how = "contiguous" if offsets[name] is not None else "not contiguous"
            actual = f"{name} is {dataset.shape} {dataset.dtype} {how}"
            raise InputError(corrupt_message(path, f"{actual}, not {shape} {np.dtype(dtype)}"))
    end = offsets["features"] + count * manifest.cells * manifest.dim * 2
    if size < end:
        raise InputError(corrupt_message(path, f"{size:,} bytes, but its rows end at {end:,}"))
    return StoreHeader(
        path=path,
        manifest=manifest,
        keys=np.asarray(file["keys"][:], dtype=f"S{file['keys'].dtype.itemsize}"),
        done=file["done"][:] == 1,
        crc32=file["crc32"][:],
        count=count,
        size=size,
        features_offset=offsets["features"],
        done_offset=offsets["done"],
        crc32_offset=offsets["crc32"],
        identity=identity,
    )


def _read_manifest(path: Path | str, file: h5py.File) -> Manifest:
    if "manifest" not in file.attrs:
        raise InputError(
            f"{path}: an HDF5 file, but not a feature store (no manifest; {len(file)} entries). If it has one group "
            f"per image, convert it: multitask-vl store import {path} NEW.h5 --config CONFIG"
        )
    manifest = Manifest.from_json(file.attrs["manifest"], path)
    if manifest.format_version > FORMAT_VERSION:
        raise InputError(
            f"{path}: format {manifest.format_version}, this version of the project reads up to {FORMAT_VERSION}; "
            "update it"
        )
    return manifest


def encode_keys(keys: Sequence[str]) -> np.ndarray:
    """Return keys as a fixed-width array of UTF-8 bytes [N], which sorts like the strings."""
    encoded = [key.encode() for key in keys]
    return np.array(encoded, dtype=f"S{max(map(len, encoded), default=1) or 1}")


def is_url(path: Path | str) -> bool:
    """Return whether a store is behind a URL rather than a local file."""
    return isinstance(path, str) and URL.match(path) is not None


def path_or_url(text: str) -> Path | str:
    """Return a URL unchanged and anything else as a path."""
    return text if is_url(text) else Path(text)


def shard_files(path: Path | str) -> list[Path | str]:
    """Return the files of a configured store: the file itself, or all of ``NAME-00003-of-00016.h5``.

    A URL is returned as is: shards behind URLs are listed one by one.

    Raises:
        InputError: shards are missing, have different shard counts, or the unsharded store exists as well.
    """
    if is_url(path):
        return [path]
    path = Path(path)
    names = [(file, SHARD_NAME.fullmatch(file.stem)) for file in path.parent.glob(f"*{path.suffix}")]
    shards = {file: match for file, match in names if match and match["name"] == path.stem}
    if not shards:
        return [path]
    if path.is_file():
        raise InputError(f"{path}: both this store and shards of it exist ({min(shards).name}); move one away")
    counts = sorted({match["count"] for match in shards.values()})
    if len(counts) > 1:
        raise InputError(
            f"{path}: shards with different counts, of {' and of '.join(counts)}; move the stale ones away"
        )
    missing = sorted(set(range(int(counts[0]))) - {int(match["index"]) for match in shards.values()})
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of {int(counts[0])} shards are missing (first: "
            f"{path.stem}-{missing[0]:05d}-of-{counts[0]}{path.suffix}); create them: {EXTRACT_COMMAND}"
        )
    return sorted(shards)


def corrupt_message(path: Path | str, reason: str) -> str:
    """Return the message for a truncated or corrupt store file."""
    return (
        f"{path}: truncated or corrupt feature store ({reason}); copy it again, or delete it and run: {EXTRACT_COMMAND}"
    )
