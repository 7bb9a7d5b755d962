"""Images of examples: finding their files and embedding them into pages."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from multitask_vl.reports.run import Run
from multitask_vl.storage.exif import apply_exif_orientation

IMAGE_EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
MAX_SIDE = 320
"""Longest side in pixels of an image in a gallery."""


@dataclass(frozen=True)
class EmbeddedImage:
    """An image for a page.

    Attributes:
        key: image key.
        uri: the image as a data URI; None if it cannot be shown.
        width, height: size in pixels.
        problem: why the image cannot be shown.
    """

    key: str
    uri: str | None
    width: int
    height: int
    problem: str | None = None


def image_folders(run: Run) -> list[Path]:
    """The folders of features.images; relative ones are below `data_dir`.

    A relative `data_dir` is searched in the working directory and in every folder above the run, so a page written
    from another working directory finds its images too.
    """
    data_dir = Path(run.setting("data_dir", ".")).expanduser()
    starts = [Path(), *run.folder.resolve().parents]
    folders = []
    for configured in run.setting("features.images", []):
        relative = data_dir / Path(configured).expanduser()
        folders.append(next((start / relative for start in starts if (start / relative).is_dir()), relative))
    return folders


def find_images(folders: Iterable[Path], keys: Collection[str]) -> dict[str, Path]:
    """Key -> image file whose name without the extension is the key. Keys without a file are omitted.

    Folders are searched recursively, symbolic links included; the first folder with a file wins.
    """
    wanted, found, visited = set(keys), {}, set()
    for folder in folders:
        for directory, subdirectories, names in os.walk(folder, followlinks=True):
            status = os.stat(directory)
            if (status.st_dev, status.st_ino) in visited:
                subdirectories.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            subdirectories.sort()
            for name in sorted(names):
                stem, extension = os.path.splitext(name)
                if stem in wanted and extension.lower() in IMAGE_EXTENSIONS:
                    found[stem] = Path(directory, name)
                    wanted.discard(stem)
            if not wanted:
                return found
    return found


def load_images(folders: Iterable[Path], keys: Collection[str]) -> dict[str, EmbeddedImage]:
    """Key -> image of at most `MAX_SIDE` pixels per side; `problem` is set for images not found or not readable."""
    paths = find_images(folders, keys)
    return {key: embed_image(key, paths.get(key)) for key in dict.fromkeys(keys)}


def embed_image(key: str, path: Path | None) -> EmbeddedImage:
    """One image file as a JPEG data URI."""
    if path is None:
        return EmbeddedImage(key, None, 0, 0, "not found")
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (2 * MAX_SIDE, 2 * MAX_SIDE))
            image = to_rgb(opened)
    except Exception as error:  # Pillow's decoders raise many exception types on corrupt files
        return EmbeddedImage(key, None, 0, 0, f"unreadable ({type(error).__name__})")
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return EmbeddedImage(key, jpeg_data_uri(image, quality=88, subsampling=0), image.width, image.height)


def jpeg_data_uri(image: Image.Image, **options: int) -> str:
    """An image as a JPEG data URI; ``options`` are those of Pillow's encoder."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", optimize=True, **options)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def to_rgb(opened: Image.Image) -> Image.Image:
    """The RGB image that feature extraction uses: EXIF orientation applied, white background, 16 bit scaled to 8."""
    image, _ = apply_exif_orientation(opened)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
