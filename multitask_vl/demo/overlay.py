"""How does attention look on a picture: darkened where there is little, in colour where there is much."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from PIL import Image

COLOURS = "inferno"
STRENGTH = 0.75
"""How much of a pixel is colour where there is most attention."""


def draw(image: Image.Image, cells: np.ndarray, scale: tuple[float, float], crop: bool = False) -> Image.Image:
    """A picture with attention drawn on it.

    Args:
        image: RGB, upright.
        cells: attention [rows, columns] on a grid over the picture.
        scale: attention that is shown dark, and in the brightest colour; pictures with the same can be compared.
        crop: the grid lies on the square in the picture's middle, not on all of it; the rest is grey.
    """
    side = min(image.size)
    left, top = ((length - side) // 2 if crop else 0 for length in image.size)
    width, height = (side, side) if crop else image.size
    strength = (cells - scale[0]) / max(scale[1] - scale[0], 1e-12)
    smooth = Image.fromarray(strength.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    strength = np.asarray(smooth).clip(0, 1)
    colour = matplotlib.colormaps[COLOURS](strength)[..., :3]
    seen = np.asarray(image.crop((left, top, left + width, top + height))) / 255
    mixed = (1 - STRENGTH) * seen + STRENGTH * (strength[..., None] * colour + (1 - strength[..., None]) * 0.3 * seen)
    drawn = image.convert("L").convert("RGB")
    drawn.paste(Image.fromarray((mixed.clip(0, 1) * 255).round().astype(np.uint8)), (left, top))
    return drawn


def uri(image: Image.Image) -> str:
    """A picture as text for a page, so that no file has to be served."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
