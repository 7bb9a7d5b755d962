"""Conversion of image files to RGB squares."""

import struct

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from feature_extraction.images.preprocessing import ImageDecodeError, load_square
from tests.drawn_images import random_image
from tests.feature_extraction.image_files import PIXEL_FORMATS, RED, UNREADABLE


def square(path, resize="squash", size=64) -> np.ndarray:
    pixels, _ = load_square(path, size, resize)
    assert pixels.shape == (3, size, size)
    assert pixels.dtype == np.uint8
    return pixels


# ---- resize and crop


@pytest.mark.parametrize("size", [(80, 48), (48, 80), (30, 31), (64, 64), (501, 64)])
def test_resize_equals_torchvision(tmp_path, size):
    random_image(1, *size).save(tmp_path / "1.png")
    image, bicubic = Image.open(tmp_path / "1.png"), transforms.InterpolationMode.BICUBIC
    squashed = transforms.Resize((64, 64), bicubic)(image)
    np.testing.assert_array_equal(square(tmp_path / "1.png"), np.asarray(squashed).transpose(2, 0, 1))
    cropped = transforms.Compose([transforms.Resize(64, bicubic), transforms.CenterCrop(64)])(image)
    np.testing.assert_array_equal(square(tmp_path / "1.png", "crop"), np.asarray(cropped).transpose(2, 0, 1))


def test_crop_rejects_too_narrow_image(tmp_path):
    Image.new("RGB", (1, 60_000)).save(tmp_path / "1.png")
    with pytest.raises(ImageDecodeError, match="too narrow to crop a square from: 1x60000"):
        square(tmp_path / "1.png", "crop", 224)
    assert square(tmp_path / "1.png", "squash").max() == 0


# ---- pixel formats and EXIF orientation


@pytest.mark.parametrize("write", PIXEL_FORMATS)
def test_pixel_format_becomes_rgb(tmp_path, write):
    color = write(tmp_path / "1.png")
    np.testing.assert_allclose(square(tmp_path / "1.png").mean((1, 2)), color, atol=1)


def test_cmyk_becomes_rgb_and_first_frame_is_used(tmp_path):
    Image.new("CMYK", (40, 30), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    np.testing.assert_allclose(square(tmp_path / "c.jpg").mean((1, 2)), RED, atol=3)
    frames = [Image.new("RGB", (40, 30), color) for color in (RED, (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(square(tmp_path / "a.gif").mean((1, 2)), RED, atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = random_image(3, 64, 64)
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x112] = orientation
    stored.save(tmp_path / "1.png", exif=exif)
    pixels, rotated = load_square(tmp_path / "1.png", 64, "squash")
    np.testing.assert_array_equal(pixels, np.asarray(upright).transpose(2, 0, 1))
    assert rotated == (orientation != 1)


def test_invalid_exif_is_tolerated(tmp_path):
    """An invalid EXIF block is ignored; one whose other tags cannot be written again still gives the orientation."""
    stored = random_image(3, 64, 48)
    stored.save(tmp_path / "plain.jpg")
    plain = square(tmp_path / "plain.jpg")
    stored.save(tmp_path / "none.jpg", exif=b"Exif\0\0" + b"no TIFF header at all")
    np.testing.assert_array_equal(square(tmp_path / "none.jpg"), plain)
    # orientation 6, and a negative width
    tags = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHIi", 0x100, 9, 1, -1)
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4)
    stored.save(tmp_path / "odd.jpg", exif=block)
    with Image.open(tmp_path / "odd.jpg") as opened, Image.open(tmp_path / "plain.jpg") as upright:
        expected = upright.transpose(Image.Transpose.ROTATE_270)
        assert opened.size == upright.size
    pixels, rotated = load_square(tmp_path / "odd.jpg", 64, "squash")
    assert rotated
    expected.save(tmp_path / "expected.png")
    np.testing.assert_array_equal(pixels, square(tmp_path / "expected.png"))


# ---- unreadable files


@pytest.mark.parametrize("write", UNREADABLE)
def test_unreadable_file_states_the_reason(tmp_path, write):
    message = write(tmp_path / "1.img")
    with pytest.raises(ImageDecodeError, match=message):
        square(tmp_path / "1.img")
