"""What does the trunk see of an image file: decoding, conversion to RGB, and the fit into a square.

Conventions, recorded in the manifest as `CONVENTION`. For plain upright 8-bit pictures, such as COCO's, they equal the
published extraction of VL-Adapter (RGB, then bicubic to the square). They differ from it where that takes what the
decoder happens to leave:

- the camera's orientation tag is applied, since people annotate what they see upright;
- transparent pixels show white, not the colour that happens to be hidden below them;
- 16-bit grey is scaled to 8 bit, not clipped; 32-bit and float pixels have no known range and are refused;
- of an animation the first frame counts;
- a truncated file is refused, not filled up with grey.
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
from multitask_vl.storage.exif import upright

CONVENTION = "upright, transparency on white, 16 bit scaled, first frame"
INTERPOLATION = "bicubic"
UNRANGED = ("I", "F")


class Unreadable(Exception):
    """An image file that cannot be turned into pixels; the text is the reason."""


def read_square(image: ImageFile | Path, size: int, resize: Literal["squash", "crop"]) -> tuple[np.ndarray, bool]:
    """The square of an image that the trunk sees.

    Args:
        image: where it lies.
        size: side of the square in pixels.
        resize: squash the whole image to the square, or shortest side to `size` and then the centre.

    Returns:
        pixels, uint8 [3, size, size], and whether the image had to be turned upright.

    Raises:
        Unreadable: with the reason, whatever is wrong with the file.
    """
    rgb, turned = read_upright(image)
    return np.asarray(_fit(rgb, size, resize)).transpose(2, 0, 1), turned


def read_upright(image: ImageFile | Path) -> tuple[Image.Image, bool]:
    """An image as people see it, in RGB, and whether it had to be turned upright.

    Raises:
        Unreadable: with the reason, whatever is wrong with the file.
    """
    try:
        return _open_rgb(image.opened() if isinstance(image, ImageFile) else image)
    except Unreadable:
        raise
    except Exception as error:  # on damaged files Pillow's decoders raise nearly every type there is
        reason = f"{type(error).__name__}: {error}".replace(f" {str(image)!r}", "")
        # Pillow names an object in memory by its address, which would differ from run to run.
        reason = re.sub(r" <_io\.BytesIO object at 0x\w+>", "", reason)
        raise Unreadable(reason.strip().removesuffix(":")) from error


def _open_rgb(file: Path | io.BytesIO) -> tuple[Image.Image, bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        opened = Image.open(file)
    with opened as image:
        image, turned = upright(image)
        return _to_rgb(image), turned


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in UNRANGED:
        raise Unreadable(f"pixels of mode {image.mode} (32 bit) have no known range; convert the file to 8 or 16 bit")
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        image = Image.new("RGBA", picture.size, "white")
        image.alpha_composite(picture)
    return image.convert("RGB")


def _fit(image: Image.Image, size: int, resize: Literal["squash", "crop"]) -> Image.Image:
    if resize == "squash":
        return tvf.resize(image, [size, size], tvf.InterpolationMode.BICUBIC)
    short, long = sorted(image.size)
    if size * size * long > short * Image.MAX_IMAGE_PIXELS:
        raise Unreadable(f"too narrow to crop a square from: {image.size[0]}x{image.size[1]} pixels")
    return tvf.center_crop(tvf.resize(image, [size], tvf.InterpolationMode.BICUBIC), [size, size])
