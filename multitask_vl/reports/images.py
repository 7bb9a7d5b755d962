"""Where is the picture of a key, and how does it get into a page that needs no other file."""

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
from multitask_vl.storage.exif import upright

ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
LONGEST_SIDE = 320


@dataclass(frozen=True)
class Picture:
    """A picture ready for a page: a data URI with its size in pixels, or the reason why there is none."""

    key: str
    uri: str | None
    width: int
    height: int
    problem: str | None = None


def picture_folders(run: Run) -> list[Path]:
    """Folders named under features.images, relative ones starting at `data_dir`.

    That starts at the working directory or, where it has nothing of the kind, at the nearest folder above the run which
    has: so a page made from elsewhere finds its pictures.
    """
    data_dir = Path(run.setting("data_dir", ".")).expanduser()
    starts = [Path(), *run.folder.resolve().parents]
    folders = []
    for named in run.setting("features.images", []):
        below = data_dir / Path(named).expanduser()
        folders.append(next((start / below for start in starts if (start / below).is_dir()), below))
    return folders


def find_pictures(folders: Iterable[Path], keys: Collection[str]) -> dict[str, Path]:
    """Key -> file whose name without the ending is the key, links followed; the first folder wins.

    Keys without a file are left out.
    """
    wanted, found, seen = set(keys), {}, set()
    for folder in folders:
        for place, below, names in os.walk(folder, followlinks=True):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                below.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            below.sort()
            for name in sorted(names):
                stem, ending = os.path.splitext(name)
                if stem in wanted and ending.lower() in ENDINGS:
                    found[stem] = Path(place, name)
                    wanted.discard(stem)
            if not wanted:
                return found
    return found


def load_pictures(folders: Iterable[Path], keys: Collection[str]) -> dict[str, Picture]:
    """Key -> picture, each at most `LONGEST_SIDE` pixels; what cannot be found or read says so in `problem`."""
    paths = find_pictures(folders, keys)
    return {key: embed(key, paths.get(key)) for key in dict.fromkeys(keys)}


def embed(key: str, path: Path | None) -> Picture:
    """One picture as the data URI of a JPEG."""
    if path is None:
        return Picture(key, None, 0, 0, "not found")
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (2 * LONGEST_SIDE, 2 * LONGEST_SIDE))
            image = upright_rgb(opened)
    except Exception as error:  # on damaged files Pillow's decoders raise nearly every type there is
        return Picture(key, None, 0, 0, f"unreadable ({type(error).__name__})")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return Picture(key, jpeg(image, quality=88, subsampling=0), image.width, image.height)


def jpeg(image: Image.Image, **options: int) -> str:
    """A picture as the data URI of a JPEG; ``options`` are those of Pillow's encoder."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", optimize=True, **options)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def upright_rgb(opened: Image.Image) -> Image.Image:
    """The picture as extraction shows it to the trunk: upright, transparency on white, 16 bit scaled to 8."""
    image, _ = upright(opened)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
