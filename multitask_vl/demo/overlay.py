"""Attention maps drawn on images: dark where attention is low, colored where it is high."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from PIL import Image

COLORMAP = "inferno"
MAX_OPACITY = 0.75
"""Opacity of the map."""
DIMMED = 0.3
"""Brightness of the image under the map where attention is lowest."""


def draw_attention(
    image: Image.Image, weights: np.ndarray, value_range: tuple[float, float], crop: bool = False
) -> Image.Image:
    """Return an image with an attention map on it.

    Args:
        image: RGB image, in its display orientation.
        weights: attention [rows, columns] on a grid over the image.
        value_range: attention drawn darkest and brightest; images drawn with the same range can be compared.
        crop: the grid covers the central square only, as in a center crop; the rest is drawn in gray.
    """
    side = min(image.size)
    left, top = ((length - side) // 2 if crop else 0 for length in image.size)
    width, height = (side, side) if crop else image.size
    scaled = (weights - value_range[0]) / max(value_range[1] - value_range[0], 1e-12)
    resized = Image.fromarray(scaled.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    scaled = np.asarray(resized).clip(0, 1)
    color = matplotlib.colormaps[COLORMAP](scaled)[..., :3]
    scaled = scaled[..., None]
    pixels = np.asarray(image.crop((left, top, left + width, top + height))) / 255
    mixed = (1 - MAX_OPACITY) * pixels + MAX_OPACITY * (scaled * color + (1 - scaled) * DIMMED * pixels)
    overlay = image.convert("L").convert("RGB")
    overlay.paste(Image.fromarray((mixed.clip(0, 1) * 255).round().astype(np.uint8)), (left, top))
    return overlay


def data_uri(image: Image.Image) -> str:
    """Return an image as a JPEG data URI, so that the server does not have to serve a file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
