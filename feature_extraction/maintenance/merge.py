"""Merging of stores or shards into one file, with verified checksums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from feature_extraction.maintenance.inspection import checked_rows
from multitask_vl.data.store.format import StoreHeader, is_url, shard_files
from multitask_vl.data.store.progress import ProgressFn, no_progress
from multitask_vl.data.store.row_reader import open_rows, read_header
from multitask_vl.data.store.writer import StoreWriter
from multitask_vl.errors import InputError


@dataclass
class MergeResult:
    """Result of a merge.

    Attributes:
        rows: rows of the target.
        done: rows of the target that have features.
        copied: rows copied by this run.
        duplicates: number of images that several sources have with the same features.
        corrupt: keys whose checksum failed in their source; their rows of the target are not done.
    """

    rows: int = 0
    done: int = 0
    copied: int = 0
    duplicates: int = 0
    corrupt: list[str] = field(default_factory=list)


def merge(sources: Sequence[Path | str], target: Path, progress: ProgressFn = no_progress) -> MergeResult:
    """Copy the rows of all sources into one file; running it again resumes.

    Rows that are not done in any source are not done in the target either, and extraction can fill them there. An
    existing target keeps its rows.

    Args:
        sources: store files, common names of shards, URLs.
        target: the file to write.
        progress: shows the progress.

    Raises:
        InputError: manifests differ, an image has different features in two sources, or the target cannot be written.
    """
    paths = [file for source in sources for file in shard_files(source)]
    headers = [read_header(path) for path in paths]
    _check_manifests(headers)
    _check_target(target, paths)
    result = MergeResult()
    owners = _choose_owners(headers, result)
    with StoreWriter(target, headers[0].manifest, owners, progress) as writer:
        pending = {key: row for row, key in enumerate(writer.keys) if writer.pending[row] and key in owners}
        for index, header in enumerate(headers):
            target_rows = {}
            for key, target_row in pending.items():
                owner, row = owners[key]
                if owner == index and header.done[row]:
                    target_rows[row] = target_row
            description = f"copying {Path(str(header.path)).name}"
            for row, valid, features in checked_rows(header, progress, description, sorted(target_rows)):
                if valid:
                    writer.write([target_rows[row]], features[None])
                    result.copied += 1
                else:
                    result.corrupt.append(header.keys[row].decode())
        result.rows, result.done = len(writer.keys), int((~writer.pending).sum())
    return result


def _check_manifests(headers: Sequence[StoreHeader]) -> None:
    first = headers[0]
    problems = [
        f"{first.path} and {header.path} cannot be merged: their features were made differently. "
        f"{'; '.join(differences)}"
        for header in headers[1:]
        if (differences := first.manifest.differences(header.manifest))
    ]
    if problems:
        raise InputError(problems)


def _check_target(target: Path, paths: Sequence[Path | str]) -> None:
    if any(not is_url(path) and Path(path).resolve() == target.resolve() for path in paths):
        raise InputError(f"{target}: is one of the stores to merge; name a new file")
    if shard_files(target) != [target]:
        raise InputError(f"{target}: shards of this name exist, so reading it would be ambiguous; name another file")


def _choose_owners(headers: Sequence[StoreHeader], result: MergeResult) -> dict[str, tuple[int, int]]:
    """Return, for each key, the index of the header and the row to copy: the first that is done, else the first."""
    owners: dict[str, tuple[int, int]] = {}
    conflicts = []
    for index, header in enumerate(headers):
        for row, name in enumerate(header.keys):
            key = name.decode()
            if key not in owners:
                owners[key] = (index, row)
                continue
            owner, owner_row = owners[key]
            if not headers[owner].done[owner_row]:
                owners[key] = (index, row)
            elif header.done[row]:
                result.duplicates += 1
                if not _same_features(headers[owner], owner_row, header, row):
                    conflicts.append(f"{key} in {headers[owner].path} and {header.path}")
    if conflicts:
        raise InputError(
            f"{len(conflicts):,} images have different features in two stores (first: {conflicts[0]}); omit one of the "
            "stores, or verify both: multitask-vl store verify STORE"
        )
    return owners


def _same_features(first: StoreHeader, first_row: int, second: StoreHeader, second_row: int) -> bool:
    if first.crc32[first_row] != second.crc32[second_row]:
        return False
    pair = np.empty((2, *first.shape), "<f2")
    for header, row, out in ((first, first_row, pair[:1]), (second, second_row, pair[1:])):
        reader = open_rows(header)
        reader.read_rows([row], out)
        reader.close()
    return pair[0].tobytes() == pair[1].tobytes()
