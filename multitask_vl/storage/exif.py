"""EXIF orientation of images."""

from __future__ import annotations

from PIL import ExifTags, Image

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Value of the orientation tag -> transpose that undoes it (EXIF 2.32, 4.6.4 A)."""


def apply_exif_orientation(image: Image.Image) -> tuple[Image.Image, bool]:
    """Load an image and transpose it as its EXIF orientation tag requires.

    An unreadable tag is ignored: cameras and editors corrupt EXIF blocks more often than pixels.

    Returns:
        the transposed image, and whether the tag asked for a transpose.
    """
    # Pillow transposes a TIFF while loading and drops its tag; other formats may store the tag after the pixels
    before_load = _required_transpose(image) if image.format == "TIFF" else None
    image.load()
    after_load = _required_transpose(image)
    transposed = before_load is not None or after_load is not None
    return (image if after_load is None else image.transpose(after_load)), transposed


def _required_transpose(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TRANSPOSES.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # on a corrupt block Pillow's readers raise nearly every type there is
        return None
