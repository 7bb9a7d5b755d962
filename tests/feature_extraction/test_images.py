"""Are the right images found under the right keys, and does each kind of file become the pixels people see?"""

import os
import struct

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from feature_extraction.images.image_index import index_images
from feature_extraction.images.preprocessing import Unreadable, read_square
from multitask_vl.errors import InputError
from tests.drawn_images import picture

RED, WHITE = (255, 0, 0), (255, 255, 255)


def square(path, resize="squash", size=64) -> np.ndarray:
    pixels, _ = read_square(path, size, resize)
    assert pixels.shape == (3, size, size)
    assert pixels.dtype == np.uint8
    return pixels


# ---- finding


def test_images_are_found_at_any_depth_by_their_stem(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/b/9.PNG", "a/COCO_1.x.jpg", "3.jpeg", "a/.hidden.jpg", "a/._3.jpg", "notes.txt", "a/x.json"):
        (tmp_path / name).touch()
    index = index_images([tmp_path])
    assert list(index.paths) == ["3", "9", "COCO_1.x"]
    assert index.paths["9"].path == tmp_path / "a" / "b" / "9.PNG"
    assert index.ignored == 2


def test_links_are_followed_and_circles_and_repeated_folders_do_no_harm(tmp_path):
    real, linked = tmp_path / "real", tmp_path / "linked"
    real.mkdir()
    linked.mkdir()
    (real / "1.jpg").touch()
    (linked / "photos").symlink_to(real)
    (real / "up").symlink_to(linked)
    (linked / "same.jpg").symlink_to(real / "1.jpg")
    assert list(index_images([linked]).paths) == ["1", "same"]
    assert list(index_images([linked, real, tmp_path]).paths) == ["1", "same"]


def test_one_key_for_two_files_names_both(tmp_path):
    for name in ("train/7.jpg", "val/7.png", "val/8.jpg", "val/8.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with pytest.raises(InputError) as caught:
        index_images([tmp_path / "train", tmp_path / "val"])
    first, second = caught.value.problems
    assert first.startswith(
        f"image key 7 stands for two files: {tmp_path / 'train/7.jpg'} and {tmp_path / 'val/7.png'}"
    )
    assert "image key 8" in second


def test_many_clashes_are_counted(tmp_path):
    for number in range(30):
        (tmp_path / f"{number}.jpg").touch()
        (tmp_path / f"{number}.png").write_text("other")
    with pytest.raises(InputError) as caught:
        index_images([tmp_path])
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "... and 10 more such files"


def test_folders_without_images_and_names_without_text_are_told(tmp_path):
    with pytest.raises(InputError, match="names no folder"):
        index_images([])
    with pytest.raises(InputError) as caught:
        index_images([tmp_path / "a", tmp_path, tmp_path / "b"])
    assert [problem.split()[1] for problem in caught.value.problems] == [f"{tmp_path / 'a'}:", f"{tmp_path / 'b'}:"]
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"no image in .* \(1 other files; known endings: \.bmp"):
        index_images([tmp_path])
    open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg"), "w").close()
    with pytest.raises(InputError, match=r"caf\\xe9\.jpg.*not UTF-8"):
        index_images([tmp_path])


# ---- fitting into the square


@pytest.mark.parametrize("size", [(80, 48), (48, 80), (30, 31), (64, 64), (501, 64)])
def test_the_fit_is_torchvisions_as_published(tmp_path, size):
    picture(1, *size).save(tmp_path / "1.png")
    image, bicubic = Image.open(tmp_path / "1.png"), transforms.InterpolationMode.BICUBIC
    squashed = transforms.Resize((64, 64), bicubic)(image)
    np.testing.assert_array_equal(square(tmp_path / "1.png"), np.asarray(squashed).transpose(2, 0, 1))
    cropped = transforms.Compose([transforms.Resize(64, bicubic), transforms.CenterCrop(64)])(image)
    np.testing.assert_array_equal(square(tmp_path / "1.png", "crop"), np.asarray(cropped).transpose(2, 0, 1))


def test_an_image_too_narrow_to_crop_is_refused(tmp_path):
    Image.new("RGB", (1, 60_000)).save(tmp_path / "1.png")
    with pytest.raises(Unreadable, match="too narrow to crop a square from: 1x60000"):
        square(tmp_path / "1.png", "crop", 224)
    assert square(tmp_path / "1.png", "squash").max() == 0


# ---- kinds of files


def _grey(path):
    Image.new("L", (40, 30), 90).save(path)
    return (90, 90, 90)


def _bilevel(path):
    Image.new("1", (40, 30), 1).save(path)
    return WHITE


def _palette(path):
    Image.new("RGB", (40, 30), RED).quantize().save(path)
    return RED


def _transparent(path):
    Image.new("RGBA", (40, 30), (255, 0, 0, 0)).save(path)
    return WHITE


def _half_transparent(path):
    Image.new("RGBA", (40, 30), (255, 0, 0, 128)).save(path)
    return (255, 127, 127)


def _opaque_rgba(path):
    Image.new("RGBA", (40, 30), (10, 20, 30, 255)).save(path)
    return (10, 20, 30)


def _grey_alpha(path):
    Image.new("LA", (40, 30), (7, 0)).save(path)
    return WHITE


def _transparent_palette(path):
    Image.new("RGB", (40, 30), RED).quantize().save(path, transparency=0)
    return WHITE


def _transparent_colour(path):
    Image.new("RGB", (40, 30), RED).save(path, transparency=RED)
    return WHITE


def _sixteen_bit(path):
    Image.fromarray(np.full((30, 40), 200 * 257, np.uint16)).save(path)
    return (200, 200, 200)


KINDS = [
    _grey, _bilevel, _palette, _transparent, _half_transparent, _opaque_rgba, _grey_alpha, _transparent_palette,
    _transparent_colour, _sixteen_bit,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_pixel_becomes_rgb(tmp_path, kind):
    colour = kind(tmp_path / "1.png")
    np.testing.assert_allclose(square(tmp_path / "1.png").mean((1, 2)), colour, atol=1)


def test_cmyk_jpeg_and_animation_and_jpeg_of_two_pictures(tmp_path):
    Image.new("CMYK", (40, 30), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    np.testing.assert_allclose(square(tmp_path / "c.jpg").mean((1, 2)), RED, atol=3)
    frames = [Image.new("RGB", (40, 30), colour) for colour in (RED, (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(square(tmp_path / "a.gif").mean((1, 2)), RED, atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_tag_is_applied(tmp_path, orientation):
    upright = picture(3, 64, 64)
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
    pixels, turned = read_square(tmp_path / "1.png", 64, "squash")
    np.testing.assert_array_equal(pixels, np.asarray(upright).transpose(2, 0, 1))
    assert turned == (orientation != 1)


def test_a_damaged_tag_does_not_cost_the_picture(tmp_path):
    """An EXIF block that is none, and one whose other tags cannot be written again."""
    stored = picture(3, 64, 48)
    stored.save(tmp_path / "plain.jpg")
    plain = square(tmp_path / "plain.jpg")
    stored.save(tmp_path / "none.jpg", exif=b"Exif\0\0" + b"no TIFF header at all")
    np.testing.assert_array_equal(square(tmp_path / "none.jpg"), plain)
    # orientation 6, and a width below 0
    tags = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHIi", 0x100, 9, 1, -1)
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4)
    stored.save(tmp_path / "odd.jpg", exif=block)
    with Image.open(tmp_path / "odd.jpg") as opened, Image.open(tmp_path / "plain.jpg") as upright:
        expected = upright.transpose(Image.Transpose.ROTATE_270)
        assert opened.size == upright.size
    pixels, turned = read_square(tmp_path / "odd.jpg", 64, "squash")
    assert turned
    expected.save(tmp_path / "expected.png")
    np.testing.assert_array_equal(pixels, square(tmp_path / "expected.png"))


# ---- files that cannot be read


def _truncated(path):
    picture(1, 300, 200).save(path, "jpeg")
    os.truncate(path, 2000)
    return "truncated"


def _float_pixels(path):
    Image.new("F", (4, 4)).save(path, "tiff")
    return "mode F .* no known range"


def _wide_integers(path):
    Image.new("I", (4, 4)).save(path, "tiff")
    return "mode I .* no known range"


def _bomb(path):
    Image.new("1", (10_000, 10_000)).save(path, "png")
    return r"^DecompressionBombWarning: Image size \(100000000 pixels\)"


def _nothing(path):
    path.touch()
    return "^UnidentifiedImageError: cannot identify image file$"


def _absent(path):
    return r"^FileNotFoundError: \[Errno 2\] No such file or directory$"


def _broken_png(path):
    picture(1, 300, 200).save(path, "png")
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)
    return "Error"


@pytest.mark.parametrize("kind", [_truncated, _float_pixels, _wide_integers, _bomb, _nothing, _absent, _broken_png])
def test_a_file_that_cannot_be_read_says_why(tmp_path, kind):
    said = kind(tmp_path / "1.img")
    with pytest.raises(Unreadable, match=said):
        square(tmp_path / "1.img")
