"""Validation of uploaded images, by their header before anything is decoded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from feature_extraction.images.preprocessing import ImageDecodeError, load_rgb
from multitask_vl.inference.image_features import describe_non_image

MAX_DISPLAY_SIDE = 640
"""Longest side of an image on the page, in pixels."""


@dataclass(frozen=True)
class Limits:
    """Limits of one question.

    Attributes:
        megabytes: maximum size of an upload.
        megapixels: maximum size of an image, which a small file may exceed.
        characters: maximum length of the text.
        max_queue: maximum number of queued questions.
    """

    megabytes: float = 10
    megapixels: float = 40
    characters: int = 1000
    max_queue: int = 64


class UploadRejected(Exception):
    """An upload that is rejected; the text is the reason, without paths of the server."""


def load_upload(path: Path, limits: Limits) -> Image.Image:
    """Return an uploaded image in RGB and in its display orientation, at most `MAX_DISPLAY_SIDE` pixels long.

    Raises:
        UploadRejected: the file is too large, or it is not an image.
    """
    prefix = f"{path.name}: rejected: "
    if not path.is_file():
        raise UploadRejected(f"{prefix}the upload has expired; upload it again")
    if path.stat().st_size > limits.megabytes * 1e6:
        size = path.stat().st_size / 1e6
        raise UploadRejected(f"{prefix}the file has {size:.1f} MB; the maximum is {limits.megabytes:g} MB")
    if reason := describe_non_image(path):
        raise UploadRejected(f"{prefix}{reason}")
    width, height = _image_size(path, prefix)
    if width * height > limits.megapixels * 1e6:
        raise UploadRejected(
            f"{prefix}the image has {width} x {height} = {width * height / 1e6:.1f} megapixels; the maximum is "
            f"{limits.megapixels:g}. Reduce its size"
        )
    try:
        image, _ = load_rgb(path)
    except ImageDecodeError as error:
        raise UploadRejected(f"{prefix}{str(error).replace(str(path.parent), '')}") from error
    image.thumbnail((MAX_DISPLAY_SIDE, MAX_DISPLAY_SIDE), Image.Resampling.LANCZOS)
    return image


def _image_size(path: Path, prefix: str) -> tuple[int, int]:
    try:
        with warnings.catch_warnings():
            # the caller checks the size against its own limit
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.size
    except Image.DecompressionBombError as error:
        raise UploadRejected(f"{prefix}the image has far too many pixels ({str(error).split(' pixels')[0]})") from error
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise UploadRejected(f"{prefix}not a supported image file (PNG, JPEG, WebP, GIF, BMP, TIFF)") from error
