"""Which images are there, and what are they called: folders, shards and lists -> image keys and places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feature_extraction.images.image_sources import ImageFile, images_of
from multitask_vl.errors import InputError

ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
SHOWN = 20


@dataclass(frozen=True)
class ImageIndex:
    """Images by key.

    Attributes:
        paths: key (file name without its ending, unless a list names it) -> where it lies, sorted by key.
        ignored: number of visible files that are no images by their ending.
        copies: number of files left out because the same picture lies elsewhere under the same key, as Visual Genome's
            pictures do in GQA's folder.
    """

    paths: dict[str, ImageFile]
    ignored: int
    copies: int


def index_images(sources: Sequence[Path]) -> ImageIndex:
    """Find the images of folders, tar shards and lists (`sources.images_of`); hidden files are left out.

    Args:
        sources: where to look. A file reached twice counts once.

    Raises:
        InputError: a source does not exist, two different files have the same key, a name is not UTF-8, or there is no
            image at all; all problems of a kind at once.
    """
    if not sources:
        raise InputError("features.images: names no folder to search for images; set features.images=[FOLDER, ...]")
    found: dict[str, ImageFile] = {}
    seen: set[tuple[int, int]] = set()
    clashes, unnamed, absent, ignored, copies = [], [], [], 0, 0
    for source in sources:
        try:
            for given, image in images_of(Path(source), seen):
                key = given or image.name.stem
                if given is None and image.name.suffix.lower() not in ENDINGS:
                    ignored += 1
                elif not _is_text(key):
                    unnamed.append(
                        f"{str(image).encode('utf-8', 'surrogateescape')!r}: the file name is not UTF-8, so it cannot "
                        "be an image key; rename it"
                    )
                elif key not in found:
                    found[key] = image
                elif gone := [one for one in (found[key], image) if not one.path.exists()]:
                    clashes.append(f"image key {key} stands for two files: {gone[0]} is a link to nothing; remove it")
                elif image.same(found[key]):
                    continue
                elif image.is_copy_of(found[key]):
                    copies += 1
                else:
                    clashes.append(
                        f"image key {key} stands for two files: {found[key]} and {image}; rename one, or name both in "
                        "a list"
                    )
        except InputError as error:
            absent += error.problems
    if absent:
        raise InputError(absent)
    problems = unnamed + clashes
    if problems:
        more = [f"... and {len(problems) - SHOWN:,} more such files"] if len(problems) > SHOWN else []
        raise InputError(problems[:SHOWN] + more)
    if not found:
        raise InputError(
            f"features.images: no image in {', '.join(map(str, sources))} ({ignored:,} other files; known endings: "
            f"{' '.join(sorted(ENDINGS))})"
        )
    return ImageIndex(dict(sorted(found.items())), ignored, copies)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
