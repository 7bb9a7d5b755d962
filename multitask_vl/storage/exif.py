"""How was the camera held: a picture's orientation tag, read where it can be, and the picture turned by it."""

from __future__ import annotations

from PIL import ExifTags, Image

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Value of the tag -> what undoes it (EXIF 2.32, 4.6.4 A)."""


def upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """A picture, its pixels loaded, as people see it, and whether its tag says that it was stored otherwise.

    A tag that cannot be read is none: cameras and editors damage EXIF blocks more often than pixels.
    """
    # loading turns the pixels of a TIFF and takes the tag away; of others the tag may come after the pixels
    before = _turn(image) if image.format == "TIFF" else None
    image.load()
    left = _turn(image)
    turned = before is not None or left is not None
    return (image if left is None else image.transpose(left)), turned


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # on damaged blocks Pillow's readers raise nearly every type there is
        return None
