"""Is an uploaded file a picture that this page takes: told by its header, before anything is decoded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from feature_extraction.images.preprocessing import Unreadable, read_upright
from multitask_vl.inference.image_features import what_it_is

SHOWN = 640
"""Longest side of a picture on the page, in pixels."""


@dataclass(frozen=True)
class Limits:
    """What the page takes.

    Attributes:
        megabytes: of one upload.
        megapixels: of one picture, which a small file may hold many of.
        characters: of a question.
        waiting: questions that may wait for their turn.
    """

    megabytes: float = 10
    megapixels: float = 40
    characters: int = 1000
    waiting: int = 64


class Refused(Exception):
    """An upload that is not taken; the text is the reason, without a path of the server."""


def picture(path: Path, limits: Limits) -> Image.Image:
    """An uploaded picture as the model sees it, upright and in RGB, at most `SHOWN` pixels long.

    Raises:
        Refused: it is too large, or it is no picture.
    """
    what = f"{path.name}: not taken: "
    if not path.is_file():
        raise Refused(f"{what}it is not there any more; upload it again")
    if path.stat().st_size > limits.megabytes * 1e6:
        raise Refused(f"{what}it has {path.stat().st_size / 1e6:.1f} megabytes; at most {limits.megabytes:g}")
    if known := what_it_is(path):
        raise Refused(f"{what}{known}")
    width, height = _size(path, what)
    if width * height > limits.megapixels * 1e6:
        raise Refused(
            f"{what}it has {width} x {height} = {width * height / 1e6:.1f} megapixels; at most {limits.megapixels:g}. "
            "Make it smaller"
        )
    try:
        image, _ = read_upright(path)
    except Unreadable as error:
        raise Refused(f"{what}{str(error).replace(str(path.parent), '')}") from error
    image.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    return image


def _size(path: Path, what: str) -> tuple[int, int]:
    try:
        with warnings.catch_warnings():
            # its size is looked at here, with a limit of ours
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                return opened.size
    except Image.DecompressionBombError as error:
        raise Refused(f"{what}it has far too many pixels ({str(error).split(' pixels')[0]})") from error
    except Exception as error:  # on damaged files Pillow's decoders raise nearly every type there is
        raise Refused(f"{what}no picture of a kind that is known (PNG, JPEG, WebP, GIF, BMP, TIFF)") from error
