"""Builders of image files: pixel formats with the RGB color they show, and unreadable files with the error."""

import os

import numpy as np
from PIL import Image

from tests.drawn_images import random_image

RED, WHITE = (255, 0, 0), (255, 255, 255)


def gray(path):
    Image.new("L", (40, 30), 90).save(path)
    return (90, 90, 90)


def bilevel(path):
    Image.new("1", (40, 30), 1).save(path)
    return WHITE


def palette(path):
    Image.new("RGB", (40, 30), RED).quantize().save(path)
    return RED


def transparent(path):
    Image.new("RGBA", (40, 30), (255, 0, 0, 0)).save(path)
    return WHITE


def half_transparent(path):
    Image.new("RGBA", (40, 30), (255, 0, 0, 128)).save(path)
    return (255, 127, 127)


def opaque_rgba(path):
    Image.new("RGBA", (40, 30), (10, 20, 30, 255)).save(path)
    return (10, 20, 30)


def gray_alpha(path):
    Image.new("LA", (40, 30), (7, 0)).save(path)
    return WHITE


def transparent_palette(path):
    Image.new("RGB", (40, 30), RED).quantize().save(path, transparency=0)
    return WHITE


def transparent_color(path):
    Image.new("RGB", (40, 30), RED).save(path, transparency=RED)
    return WHITE


def sixteen_bit(path):
    Image.fromarray(np.full((30, 40), 200 * 257, np.uint16)).save(path)
    return (200, 200, 200)


PIXEL_FORMATS = [
    gray, bilevel, palette, transparent, half_transparent, opaque_rgba, gray_alpha, transparent_palette,
    transparent_color, sixteen_bit,
]  # fmt: skip
"""Functions that write an image file and return the color it shows."""


def truncated(path):
    random_image(1, 300, 200).save(path, "jpeg")
    os.truncate(path, 2000)
    return "truncated"


def float_pixels(path):
    Image.new("F", (4, 4)).save(path, "tiff")
    return "mode F .* no known range"


def integer_pixels(path):
    Image.new("I", (4, 4)).save(path, "tiff")
    return "mode I .* no known range"


def decompression_bomb(path):
    Image.new("1", (10_000, 10_000)).save(path, "png")
    return r"^DecompressionBombWarning: Image size \(100000000 pixels\)"


def empty(path):
    path.touch()
    return "^UnidentifiedImageError: cannot identify image file$"


def missing(path):
    return r"^FileNotFoundError: \[Errno 2\] No such file or directory$"


def corrupt_png(path):
    random_image(1, 300, 200).save(path, "png")
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)
    return "Error"


UNREADABLE = [truncated, float_pixels, integer_pixels, decompression_bomb, empty, missing, corrupt_png]
"""Functions that write an unreadable file and return a pattern of the error message."""
