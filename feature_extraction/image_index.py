"""Which images are there, and what are they called: folders -> image keys and files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multitask_vl.errors import InputError

ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
SHOWN = 20


@dataclass(frozen=True)
class ImageIndex:
    """Image files by key.

    Attributes:
        paths: key (file name without its ending) -> file, sorted by key.
        ignored: number of visible files that are no images by their ending.
    """

    paths: dict[str, Path]
    ignored: int


def index_images(folders: Sequence[Path]) -> ImageIndex:
    """Find the images of folders and all folders below them, links followed; hidden files and folders are left out.

    Args:
        folders: where to look. A file reached twice counts once.

    Raises:
        InputError: a folder does not exist, two different files have the same key, a name is not UTF-8, or there is no
            image at all; all problems of a kind at once.
    """
    if not folders:
        raise InputError("features.images: names no folder to search for images; set features.images=[FOLDER, ...]")
    absent = [f"features.images: {folder}: no such folder" for folder in folders if not Path(folder).is_dir()]
    if absent:
        raise InputError(absent)
    found: dict[str, Path] = {}
    seen: set[tuple[int, int]] = set()
    clashes, unnamed, ignored = [], [], 0
    for folder in folders:
        for path in _files(Path(folder), seen):
            if path.suffix.lower() not in ENDINGS:
                ignored += 1
            elif not _is_text(path.stem):
                unnamed.append(
                    f"{os.fsencode(path)!r}: the file name is not UTF-8, so it cannot be an image key; rename it"
                )
            elif path.stem not in found:
                found[path.stem] = path
            elif not path.samefile(found[path.stem]):
                clashes.append(f"image key {path.stem} stands for two files: {found[path.stem]} and {path}; rename one")
    problems = unnamed + clashes
    if problems:
        more = [f"... and {len(problems) - SHOWN:,} more such files"] if len(problems) > SHOWN else []
        raise InputError(problems[:SHOWN] + more)
    if not found:
        raise InputError(
            f"features.images: no image in {', '.join(map(str, folders))} ({ignored:,} other files; known endings: "
            f"{' '.join(sorted(ENDINGS))})"
        )
    return ImageIndex(dict(sorted(found.items())), ignored)


def _files(folder: Path, seen: set[tuple[int, int]]):
    """Visible files below a folder; one already visited (a link in a circle, a folder named twice) is passed over."""
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
