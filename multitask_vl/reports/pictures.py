"""Where is the picture of a key, and how does it get into a page that needs no other file."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from multitask_vl.reports.run import Run

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
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
    """Key -> file whose name without the ending is the key; the first folder wins. Keys without a file are left out."""
    wanted, found = set(keys), {}
    for folder in folders:
        for place, below, names in os.walk(folder):
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
            # Transparent pixels become white, as on paper.
            image = opened.convert("RGBA") if "A" in opened.getbands() or "transparency" in opened.info else opened
            if image.mode == "RGBA":
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
    # PIL reports broken files by several classes, and very large ones by its own.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Picture(key, None, 0, 0, f"unreadable ({type(error).__name__})")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, subsampling=0, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(key, uri, image.width, image.height)
