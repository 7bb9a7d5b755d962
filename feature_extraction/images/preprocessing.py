"""Conversion of image files to RGB squares.

For upright 8-bit images such as COCO's, the result equals the published extraction of VL-Adapter: RGB, then a bicubic
resize to the square. Other files follow these rules (`PREPROCESSING` in the manifest), where the published code depends
on the decoder:

- The EXIF orientation is applied, since people annotate what they see upright.
- Transparent pixels become white instead of their hidden color.
- 16-bit gray is scaled to 8 bits, not clipped; 32-bit and float pixels have no known range and are rejected.
- The first frame of an animation is used.
- A truncated file is rejected instead of being filled with gray.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torchvision.transforms import functional as tvf

from feature_extraction.images.image_sources import ImageFile
from multitask_vl.storage.exif import apply_exif_orientation

# Stored in manifests and compared with them, so the text must not change unless the pixels do.
PREPROCESSING = "upright, transparency on white, 16 bit scaled, first frame"
INTERPOLATION = "bicubic"
UNSUPPORTED_MODES = ("I", "F")


class ImageDecodeError(Exception):
    """An image file cannot be decoded; the message is the reason."""


def load_square(image: ImageFile | Path, size: int, resize: Literal["squash", "crop"]) -> tuple[np.ndarray, bool]:
    """Load an image as the square that the vision encoder gets.

    Args:
        image: the file.
        size: side of the square in pixels.
        resize: ``squash`` the image to the square, or resize its shortest side to `size` and ``crop`` the center.

    Returns:
        pixels, uint8 [3, size, size], and whether the image was rotated by its EXIF orientation.

    Raises:
        ImageDecodeError: the file cannot be decoded, for any reason.
    """
    rgb, rotated = load_rgb(image)
    return np.asarray(_fit(rgb, size, resize)).transpose(2, 0, 1), rotated


def load_rgb(image: ImageFile | Path) -> tuple[Image.Image, bool]:
    """Load an image upright in RGB, and whether it was rotated by its EXIF orientation.

    Raises:
        ImageDecodeError: the file cannot be decoded, for any reason.
    """
    try:
        return _open_rgb(image.open() if isinstance(image, ImageFile) else image)
    except ImageDecodeError:
        raise
    except Exception as error:  # Pillow's decoders raise almost any type on corrupt files
        reason = f"{type(error).__name__}: {error}".replace(f" {str(image)!r}", "")
        # Pillow names an in-memory file by its address, which differs from run to run.
        reason = re.sub(r" <_io\.BytesIO object at 0x\w+>", "", reason)
        raise ImageDecodeError(reason.strip().removesuffix(":")) from error


def _open_rgb(file: Path | io.BytesIO) -> tuple[Image.Image, bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        opened = Image.open(file)
    with opened as image:
        image, rotated = apply_exif_orientation(image)
        return _to_rgb(image), rotated


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in UNSUPPORTED_MODES:
        raise ImageDecodeError(
            f"pixels of mode {image.mode} (32 bit) have no known range; convert the file to 8 or 16 bit"
        )
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGBA", rgba.size, "white")
        image.alpha_composite(rgba)
    return image.convert("RGB")


def _fit(image: Image.Image, size: int, resize: Literal["squash", "crop"]) -> Image.Image:
    if resize == "squash":
        return tvf.resize(image, [size, size], tvf.InterpolationMode.BICUBIC)
    short, long = sorted(image.size)
    if size * size * long > short * Image.MAX_IMAGE_PIXELS:
        raise ImageDecodeError(f"too narrow to crop a square from: {image.size[0]}x{image.size[1]} pixels")
    return tvf.center_crop(tvf.resize(image, [size], tvf.InterpolationMode.BICUBIC), [size, size])
