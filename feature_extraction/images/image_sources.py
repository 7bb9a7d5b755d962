"""Where do images lie: folders, tar shards and list files -> the place of each image's bytes."""

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

LISTS = (".txt", ".tsv", ".lst")
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
OPEN_SHARDS = 8
ENDS = 4096


class ImageFile(NamedTuple):
    """One image: a file, or so many bytes from somewhere inside a tar shard.

    Attributes:
        path: the file, or the shard.
        member: name inside the shard; empty for a plain file.
        offset, size: where its bytes are in the shard.
    """

    path: Path
    member: str = ""
    offset: int = 0
    size: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @property
    def name(self) -> Path:
        """Its name as a path, for its stem and ending."""
        return Path(self.member) if self.member else self.path

    def opened(self) -> Path | io.BytesIO:
        """Something that Pillow opens. A member is read where it lies, so that any number of processes can read one
        shard; OSError if the shard ends inside it.
        """
        if not self.member:
            return self.path
        data = os.pread(_shard(self.path).descriptor, self.size, self.offset)
        if len(data) < self.size:
            raise OSError(f"truncated: the shard ends after {len(data):,} of its {self.size:,} bytes")
        return io.BytesIO(data)

    def same(self, other: ImageFile) -> bool:
        """Are these one and the same place?"""
        return (self.member, self.offset) == (other.member, other.offset) and self.path.samefile(other.path)

    def is_copy_of(self, other: ImageFile) -> bool:
        """Do both hold the same bytes? Nearly all that do not are told by their ends."""
        return self.ends() == other.ends() and self._sha256() == other._sha256()

    def _sha256(self) -> bytes:
        with self.path.open("rb") as file:
            if not self.member:
                return hashlib.file_digest(file, "sha256").digest()
            return hashlib.sha256(os.pread(file.fileno(), self.size, self.offset)).digest()

    def ends(self) -> tuple[int, bytes, bytes]:
        """Number of bytes, the first and the last of them: equal for copies."""
        with self.path.open("rb") as file:
            size = self.size if self.member else os.fstat(file.fileno()).st_size
            first = os.pread(file.fileno(), min(ENDS, size), self.offset)
            last = os.pread(file.fileno(), min(ENDS, size), self.offset + max(0, size - ENDS))
        return size, first, last


def images_of(source: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[str | None, ImageFile]]:
    """Every visible file of a source: its key if the source gives one, and where it lies.

    Args:
        source: a folder (all folders below it, links followed); a tar shard, or a pattern of shards with ``*`` or
            ``{000..099}``; or a list file, whose lines are paths (relative to the list) or ``KEY<tab>PATH``.
        seen: folders and shards already visited; added to. One reached twice counts once.

    Raises:
        InputError: the source does not exist, or is none of these; all lines of a list that name no file at once.
    """
    if source.is_dir():
        yield from ((None, ImageFile(path)) for path in _files(source, seen))
    elif source.suffix.lower() in LISTS and source.is_file():
        yield from _listed(source)
    else:
        for shard in _shards(source):
            status = shard.stat()
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                yield from ((None, image) for image in _members(shard))


def _files(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Visible files below a folder; one already visited (a link in a circle, a folder named twice) is passed over."""
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def _unreadable(error: OSError) -> NoReturn:
    raise InputError(
        f"features.images: {error.filename}: cannot be read: {error.strerror}; make it readable (chmod -R u+rX "
        f"{error.filename}), or move it away"
    ) from error


def _listed(source: Path) -> Iterator[tuple[str | None, ImageFile]]:
    problems = []
    with source.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise InputError(
                f"features.images: {source}: is UTF-16; write it as UTF-8: iconv -f utf-16 -t utf-8 {source} > NEW.txt"
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
        raise InputError([*problems[:10], f"{len(problems):,} lines of {source} name no file"])


def _shards(source: Path) -> list[Path]:
    """The shards a name stands for, in order."""
    names = [str(source)]
    while match := BRACES.search(names[0]):
        first, last = match.groups()
        numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        names = [BRACES.sub(number, name, count=1) for name in names for number in numbers]
    found = [Path(one) for name in names for one in (sorted(glob.glob(name)) or [name])]
    absent = [path for path in found if not path.exists()]
    if absent:
        raise InputError([f"features.images: {path}: no such folder, shard or list" for path in absent[:10]])
    if strange := [path for path in found if path.suffix != ".tar"]:
        raise InputError(
            f"features.images: {strange[0]}: neither a folder, nor a shard (.tar, not compressed), nor a list "
            f"({' '.join(LISTS)})"
        )
    return found


def _members(shard: Path) -> Iterator[ImageFile]:
    count = 0
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isfile() and not Path(member.name).name.startswith("."):
                    count += 1
                    yield ImageFile(shard, member.name, member.offset_data, member.size)
                archive.members.clear()  # tarfile would keep every header
            _check_end(shard, archive.offset, count)
    except (tarfile.TarError, EOFError) as error:
        raise InputError(
            f"features.images: {shard}: cannot be read as an uncompressed tar file ({error}, after {count:,} "
            "files); copy it again"
        ) from error


def _check_end(shard: Path, offset: int, files: int) -> None:
    """Where tarfile finds no further header it takes the archive for ended, whatever stands there.

    Raises:
        InputError: what follows is not the blocks of zeros that end an archive.
    """
    with shard.open("rb") as file:
        file.seek(offset)
        count = 0
        while chunk := file.read(1 << 20):
            count += len(chunk)
            if chunk.count(0) < len(chunk):
                raise InputError(
                    f"features.images: {shard}: is damaged at byte {offset:,}, after {files:,} files: no header of a "
                    "further one is there, and more follows; copy it again"
                )
    if count < tarfile.BLOCKSIZE:
        raise InputError(
            f"features.images: {shard}: is cut short at byte {offset + count:,}, after {files:,} files; copy it again"
        )


@lru_cache(maxsize=OPEN_SHARDS)
def _shard(path: Path) -> _Shard:
    return _Shard(path)


class _Shard:
    """An open shard, closed when it falls out of the cache. A read carries its own position, so a fork does no harm."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
