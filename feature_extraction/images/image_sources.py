"""Image sources: folders, tar shards and list files."""

from __future__ import annotations

import codecs
import glob
import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, NoReturn

from multitask_vl.errors import InputError
from multitask_vl.storage.hashing import file_sha256

LIST_EXTENSIONS = (".txt", ".tsv", ".lst")
BRACE_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_OPEN_SHARDS = 8
EDGE_BYTES = 4096
"""Bytes at each end of a file that are compared before its checksum."""


class ImageFile(NamedTuple):
    """One image: a file, or a member of a tar shard.

    Attributes:
        path: the file, or the shard.
        member: name inside the shard; empty for a plain file.
        offset, size: byte range inside the shard.
    """

    path: Path
    member: str = ""
    offset: int = 0
    size: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @property
    def name(self) -> Path:
        """File name as a path, for its stem and extension."""
        return Path(self.member) if self.member else self.path

    def open(self) -> Path | io.BytesIO:
        """Return something that Pillow opens; a member is read by its offset, so processes can share a shard.

        Raises:
            OSError: the shard ends inside the member.
        """
        if not self.member:
            return self.path
        data = os.pread(_open_shard(self.path).descriptor, self.size, self.offset)
        if len(data) < self.size:
            raise OSError(f"truncated: the shard ends after {len(data):,} of its {self.size:,} bytes")
        return io.BytesIO(data)

    def is_same_file(self, other: ImageFile) -> bool:
        """Return whether both are the same file or member, possibly through links."""
        return (self.member, self.offset) == (other.member, other.offset) and self.path.samefile(other.path)

    def is_copy_of(self, other: ImageFile) -> bool:
        """Return whether both have the same bytes; sizes and edges are compared first."""
        return self.size_and_edges() == other.size_and_edges() and self._sha256() == other._sha256()

    def size_and_edges(self) -> tuple[int, bytes, bytes]:
        """Return the size in bytes and the first and last `EDGE_BYTES` bytes."""
        with self.path.open("rb") as file:
            size = self.size if self.member else os.fstat(file.fileno()).st_size
            first = os.pread(file.fileno(), min(EDGE_BYTES, size), self.offset)
            last = os.pread(file.fileno(), min(EDGE_BYTES, size), self.offset + max(0, size - EDGE_BYTES))
        return size, first, last

    def _sha256(self) -> str:
        if not self.member:
            return file_sha256(self.path)
        with self.path.open("rb") as file:
            return hashlib.sha256(os.pread(file.fileno(), self.size, self.offset)).hexdigest()


def iter_images(source: Path, visited: set[tuple[int, int]]) -> Iterator[tuple[str | None, ImageFile]]:
    """Yield every visible file of a source and its key, if the source names one.

    Args:
        source: a folder (searched recursively, links are followed); a tar shard, or a pattern of shards with ``*`` or
            ``{000..099}``; or a list file, whose lines are paths (relative to the list) or ``KEY<tab>PATH``.
        visited: device and inode of the folders and shards already visited, which are skipped; updated.

    Raises:
        InputError: the source does not exist or is none of these, or lines of a list name missing files.
    """
    if source.is_dir():
        yield from ((None, ImageFile(path)) for path in _walk_folder(source, visited))
    elif source.suffix.lower() in LIST_EXTENSIONS and source.is_file():
        yield from _read_list(source)
    else:
        for shard in _expand_shards(source):
            status = shard.stat()
            if (status.st_dev, status.st_ino) not in visited:
                visited.add((status.st_dev, status.st_ino))
                yield from ((None, image) for image in _tar_members(shard))


def _walk_folder(folder: Path, visited: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield the visible files below a folder; folders already visited (circular links, repeats) are skipped."""
    for current, folders, names in os.walk(folder, followlinks=True, onerror=_raise_unreadable):
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(current, name) for name in sorted(names) if not name.startswith("."))


def _raise_unreadable(error: OSError) -> NoReturn:
    raise InputError(
        f"features.images: {error.filename}: cannot be read: {error.strerror}; make it readable (chmod -R u+rX "
        f"{error.filename}), or move it away"
    ) from error


def _read_list(source: Path) -> Iterator[tuple[str | None, ImageFile]]:
    problems = []
    with source.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise InputError(
                f"features.images: {source}: is UTF-16; convert it to UTF-8: iconv -f utf-16 -t utf-8 {source} > "
                "NEW.txt"
            )
    with source.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            key, tab, name = line.rstrip("\r\n").rpartition("\t")
            if not name:
                continue
            path = source.parent / name
            if path.is_file():
                yield key if tab else None, ImageFile(path)
            else:
                problems.append(f"{source}:{number}: no such file: {path}")
    if problems:
        raise InputError([*problems[:10], f"{len(problems):,} lines of {source} name files that do not exist"])


def _expand_shards(source: Path) -> list[Path]:
    """Return the shards that a name or pattern stands for, in order."""
    names = [str(source)]
    while match := BRACE_RANGE.search(names[0]):
        first, last = match.groups()
        numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        names = [BRACE_RANGE.sub(number, name, count=1) for name in names for number in numbers]
    shards = [Path(path) for name in names for path in (sorted(glob.glob(name)) or [name])]
    if missing := [path for path in shards if not path.exists()]:
        raise InputError([f"features.images: {path}: no such folder, shard or list" for path in missing[:10]])
    if others := [path for path in shards if path.suffix != ".tar"]:
        raise InputError(
            f"features.images: {others[0]}: neither a folder, nor a shard (.tar, not compressed), nor a list "
            f"({' '.join(LIST_EXTENSIONS)})"
        )
    return shards


def _tar_members(shard: Path) -> Iterator[ImageFile]:
    count = 0
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isfile() and not Path(member.name).name.startswith("."):
                    count += 1
                    yield ImageFile(shard, member.name, member.offset_data, member.size)
                archive.members.clear()  # tarfile would keep every header in memory
            _check_end(shard, archive.offset, count)
    except (tarfile.TarError, EOFError) as error:
        raise InputError(
            f"features.images: {shard}: cannot be read as an uncompressed tar file ({error}, after {count:,} "
            "files); copy it again"
        ) from error


def _check_end(shard: Path, offset: int, files: int) -> None:
    """Check that an archive ends with blocks of zeros; tarfile takes any invalid header for the end.

    Args:
        offset: byte offset at which tarfile found no further header.
        files: number of files before it, for the message.

    Raises:
        InputError: the archive is corrupt or truncated.
    """
    with shard.open("rb") as file:
        file.seek(offset)
        count = 0
        while chunk := file.read(1 << 20):
            count += len(chunk)
            if chunk.count(0) < len(chunk):
                raise InputError(
                    f"features.images: {shard}: is corrupt at byte {offset:,}, after {files:,} files: invalid header, "
                    "but more data follows; copy it again"
                )
    if count < tarfile.BLOCKSIZE:
        raise InputError(
            f"features.images: {shard}: is truncated at byte {offset + count:,}, after {files:,} files; copy it again"
        )


@lru_cache(maxsize=MAX_OPEN_SHARDS)
def _open_shard(path: Path) -> _OpenShard:
    return _OpenShard(path)


class _OpenShard:
    """An open shard, closed when the cache drops it. Reads state their offset, so forked processes can share it."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
