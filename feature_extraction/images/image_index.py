"""Index of the images in folders, tar shards and lists, by image key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feature_extraction.images.image_sources import ImageFile, iter_images
from multitask_vl.errors import InputError

IMAGE_EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
MAX_PROBLEMS = 20


@dataclass(frozen=True)
class ImageIndex:
    """Images by key.

    Attributes:
        files: image key (file name without its extension, unless a list names it) -> file, sorted by key.
        non_images: number of visible files without an image extension.
        duplicate_files: number of files skipped because an identical file has the same key, as for the Visual Genome
            images that GQA's folder repeats.
    """

    files: dict[str, ImageFile]
    non_images: int
    duplicate_files: int


def index_images(sources: Sequence[Path]) -> ImageIndex:
    """Find the images of folders, tar shards and lists (`image_sources.iter_images`); hidden files are skipped.

    Args:
        sources: where to search. A file found twice counts once.

    Raises:
        InputError: a source does not exist, two different files have the same key, a name is not UTF-8, or there are
            no images; all problems of one kind together.
    """
    if not sources:
        raise InputError("features.images: names no folder to search for images; set features.images=[FOLDER, ...]")
    files: dict[str, ImageFile] = {}
    visited: set[tuple[int, int]] = set()
    bad_names, clashes, bad_sources, non_images, duplicates = [], [], [], 0, 0
    for source in sources:
        try:
            for given_key, image in iter_images(Path(source), visited):
                key = given_key or image.name.stem
                if given_key is None and image.name.suffix.lower() not in IMAGE_EXTENSIONS:
                    non_images += 1
                elif not _is_utf8(key):
                    bad_names.append(
                        f"{str(image).encode('utf-8', 'surrogateescape')!r}: the file name is not UTF-8, so it cannot "
                        "be an image key; rename it"
                    )
                elif key not in files:
                    files[key] = image
                elif problem := _clash(key, files[key], image):
                    clashes.append(problem)
                elif not image.is_same_file(files[key]):
                    duplicates += 1
        except InputError as error:
            bad_sources += error.problems
    if bad_sources:
        raise InputError(bad_sources)
    if problems := bad_names + clashes:
        hidden = len(problems) - MAX_PROBLEMS
        raise InputError(problems[:MAX_PROBLEMS] + ([f"... and {hidden:,} more such files"] if hidden > 0 else []))
    if not files:
        raise InputError(
            f"features.images: no images in {', '.join(map(str, sources))} ({non_images:,} other files; image "
            f"extensions: {' '.join(sorted(IMAGE_EXTENSIONS))})"
        )
    return ImageIndex(dict(sorted(files.items())), non_images, duplicates)


def _clash(key: str, first: ImageFile, second: ImageFile) -> str | None:
    """Describe the problem of two files with one key; None: they are the same file, or have the same bytes."""
    if broken := [image for image in (first, second) if not image.path.exists()]:
        return f"image key {key} names two files, and {broken[0]} is a broken link; remove it"
    if second.is_same_file(first) or second.is_copy_of(first):
        return None
    return f"image key {key} names two files: {first} and {second}; rename one, or give both a key in a list"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
