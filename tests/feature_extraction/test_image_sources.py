"""Are images found in tar shards, lists and the official folders, under the keys that tasks ask for?"""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from feature_extraction.extract import extract
from feature_extraction.images.image_index import index_images
from feature_extraction.images.image_sources import ImageFile
from feature_extraction.images.preprocessing import Unreadable, read_square
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.errors import InputError
from tests.drawn_images import picture, tiny_config
from tests.task_files import karpathy_file, make, read, vqa_files


def encoded(seed: int, kind: str = "PNG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, kind)
    return buffer.getvalue()


def shard(path, members: dict[str, bytes]) -> None:
    """A tar file as webdataset writes them."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))


# ---- tar shards


def test_members_of_shards_are_the_same_pixels_as_files(tmp_path):
    for number in range(2):
        members = {f"a/{number}{n}.png": encoded(n) for n in range(3)} | {f"a/{number}0.json": b"{}", "a/._x.png": b""}
        shard(tmp_path / f"s-00{number}.tar", members)
    index = index_images([tmp_path / "s-{000..001}.tar"])
    assert list(index.paths) == ["00", "01", "02", "10", "11", "12"]
    assert index.ignored == 2
    assert str(index.paths["11"]) == f"{tmp_path / 's-001.tar'}:a/11.png"
    assert index_images([tmp_path / "s-*.tar", tmp_path / "s-001.tar"]) == index, "a shard named twice counts once"
    (tmp_path / "1.png").write_bytes(encoded(1))
    for file in (index.paths["01"], index.paths["11"]):
        found, plain = read_square(file, 64, "squash"), read_square(tmp_path / "1.png", 64, "squash")
        np.testing.assert_array_equal(found[0], plain[0])


def test_a_store_of_shards_is_that_of_the_folder(tmp_path):
    folder = tiny_config(tmp_path / "folder", workers=0)
    extract(folder, "cpu")
    files = sorted(path for path in (tmp_path / "folder" / "images").rglob("*.*"))
    tarred = tiny_config(tmp_path / "tarred", images=["s-*.tar"], workers=1)
    for number in range(2):
        members = {path.name: path.read_bytes() for path in files[number::2]}
        shard(tmp_path / "tarred" / f"s-{number}.tar", members)
    assert extract(tarred, "cpu").complete
    one, other = (FeatureStore(tmp_path / name / "features.h5") for name in ("folder", "tarred"))
    assert one.keys() == other.keys()
    np.testing.assert_array_equal(one.get_many(one.keys()), other.get_many(one.keys()))


def test_a_shard_that_ends_inside_an_image_costs_that_image(tmp_path):
    shard(tmp_path / "s.tar", {"1.png": encoded(1), "2.png": encoded(2), "3.txt": b"no image"})
    index = index_images([tmp_path / "s.tar"])
    os.truncate(tmp_path / "s.tar", index.paths["2"].offset + 40)
    assert read_square(index.paths["1"], 64, "squash")[0].any()
    with pytest.raises(Unreadable, match=r"^OSError: truncated: the shard ends after 40 of its"):
        read_square(index.paths["2"], 64, "squash")
    shard(tmp_path / "bad.tar", {"1.png": b"no image", "2.png": b""})
    for file in index_images([tmp_path / "bad.tar"]).paths.values():
        with pytest.raises(Unreadable, match=r"^UnidentifiedImageError: cannot identify image file$"):
            read_square(file, 64, "squash")


def test_a_shard_that_is_damaged_or_cut_between_its_images_is_told(tmp_path):
    whole = tmp_path / "whole.tar"
    shard(whole, {f"{number}.png": encoded(number) for number in range(6)})
    data, index = whole.read_bytes(), index_images([whole])
    header = index.paths["3"].offset - tarfile.BLOCKSIZE
    flipped = bytearray(data)
    flipped[header + 5] ^= 1
    after_last = index.paths["5"].offset + -(-index.paths["5"].size // 512) * 512
    damaged = {
        "flipped": (bytes(flipped), f"is damaged at byte {header:,}, after 3 files: no header of a"),
        "zeroed": (data[:header] + bytes(512) + data[header + 512 :], f"is damaged at byte {header:,}, after 3 files"),
        "between": (data[:header], f"is cut short at byte {header:,}, after 3 files; copy it again"),
        "header": (data[: header + 100], "is damaged at byte"),
        "inside": (data[: header + 600], r"cannot be read as an uncompressed tar file \(.*, after \d files\); copy"),
        "end": (data[:after_last], f"is cut short at byte {after_last:,}, after 6 files"),
    }
    for name, (content, said) in damaged.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.tar: {said}"):
            index_images([tmp_path / f"{name}.tar"])
    (tmp_path / "one_zero_block.tar").write_bytes(data[: after_last + 512])
    assert len(index_images([tmp_path / "one_zero_block.tar"]).paths) == 6


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no.tar", r"no\.tar: cannot be read as an uncompressed tar file"),
        ("s.tar.gz", r"s\.tar\.gz: neither a folder, nor a shard \(\.tar, not compressed\), nor a list"),
        ("absent-{00..11}.tar", r"absent-00\.tar: no such folder, shard or list"),
        ("absent-*.tar", r"absent-\*\.tar: no such folder"),
    ],
)
def test_a_source_that_is_none_is_told(tmp_path, name, said):
    (tmp_path / "no.tar").write_bytes(b"x" * 2000)
    (tmp_path / "s.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match=said):
        index_images([tmp_path / name])


def test_many_open_shards_are_closed_again(tmp_path):
    for number in range(20):
        shard(tmp_path / f"{number:02d}.tar", {f"{number}.png": encoded(1)})
    index = index_images([tmp_path / "*.tar"])
    before = len(os.listdir("/proc/self/fd"))
    for file in index.paths.values():
        read_square(file, 64, "squash")
    assert len(os.listdir("/proc/self/fd")) <= before + 8


# ---- lists and copies


def test_a_list_names_files_and_keys(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.data", "c.png"):
        (tmp_path / "photos" / name).write_text(name)
    (tmp_path / "list.txt").write_text(f"photos/a.jpg\nsecond\tphotos/b.data\n\n{tmp_path / 'photos' / 'c.png'}\n")
    index = index_images([tmp_path / "list.txt"])
    assert {key: image.path.name for key, image in index.paths.items()} == {
        "a": "a.jpg",
        "c": "c.png",
        "second": "b.data",
    }
    (tmp_path / "list.txt").write_text("photos/a.jpg\nphotos/d.jpg\nphotos/e.jpg\n")
    with pytest.raises(InputError, match=r"list\.txt:2: no such file: .*d\.jpg(?s:.*)2 lines of"):
        index_images([tmp_path / "list.txt"])


def test_copies_under_one_key_count_once(tmp_path):
    for folder in ("VG_100K", "gqa"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "7.jpg").write_bytes(encoded(7, "JPEG"))
    shard(tmp_path / "s.tar", {"7.jpg": encoded(7, "JPEG")})
    index = index_images([tmp_path, tmp_path / "s.tar"])
    assert index.paths == {"7": ImageFile(tmp_path / "VG_100K" / "7.jpg")}
    assert index.copies == 2
    (tmp_path / "gqa" / "7.jpg").write_bytes(encoded(8, "JPEG"))
    with pytest.raises(InputError, match="image key 7 stands for two files"):
        index_images([tmp_path])


def test_pictures_that_differ_in_the_middle_alone_are_no_copies(tmp_path):
    for folder, colour in (("train", "red"), ("val", "blue")):
        (tmp_path / folder).mkdir()
        picture = Image.new("RGB", (128, 128), "white")
        picture.paste(colour, (32, 32, 96, 96))
        picture.save(tmp_path / folder / "7.bmp")
    one, other = (ImageFile(tmp_path / folder / "7.bmp") for folder in ("train", "val"))
    assert one.ends() == other.ends()
    with pytest.raises(InputError, match="image key 7 stands for two files"):
        index_images([tmp_path])


def test_a_link_to_nothing_beside_a_picture_is_told(tmp_path):
    (tmp_path / "1.png").write_bytes(encoded(1))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "1.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"image key 1 stands for two files: .*1\.png is a link to nothing; remove"):
        index_images([tmp_path])


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    (tmp_path / "1.png").write_bytes(encoded(1))
    (tmp_path / "closed").mkdir()
    listed = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)  # the superuser is refused nothing
    with pytest.raises(InputError, match=r"closed: cannot be read: Permission denied; make it readable \(chmod"):
        index_images([tmp_path])


def test_a_list_may_begin_with_a_mark_and_must_be_utf_8(tmp_path):
    (tmp_path / "1.png").write_bytes(encoded(1))
    (tmp_path / "list.tsv").write_text("\ufeffk1\t1.png\n", encoding="utf-8")
    assert list(index_images([tmp_path / "list.tsv"]).paths) == ["k1"]
    (tmp_path / "list.tsv").write_text("k1\t1.png\n", encoding="utf-16")
    with pytest.raises(InputError, match=r"list\.tsv: is UTF-16; write it as UTF-8: iconv"):
        index_images([tmp_path / "list.tsv"])


# ---- the official downloads


def touched(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_keys_of_the_official_folders_are_those_that_tasks_ask_for(tmp_path):
    """The folders as the archives unpack, and the questions of each data set read by its task."""
    images = tmp_path / "images"
    touched(images, *(f"coco/val2014/COCO_val2014_{number:012d}.jpg" for number in range(5)))
    touched(images, "coco/annotations/captions_val2014.json", "vg/VG_100K/1.jpg", "vg/VG_100K_2/2.jpg")
    touched(images, "gqa/images/2370799.jpg", "gqa/images/n161313.jpg", "nlvr2/dev/dev-850-0-img0.png")
    touched(images, "nlvr2/dev/dev-850-0-img1.png", "nlvr2/images/train/34/train-3433-1-img0.png", "coco/.DS_Store")
    index = index_images([images / "coco", images / "vg", images / "gqa", images / "nlvr2"])
    assert index.ignored == 1
    asked = set()
    (tmp_path / "gqa.json").write_text(
        json.dumps(
            {
                str(n): {"imageId": image, "question": "?", "answer": "a"}
                for n, image in enumerate(("2370799", "n161313"))
            }
        )
    )
    (tmp_path / "nlvr2.json").write_text(
        json.dumps({"sentence": "s", "label": "True", "identifier": "dev-850-0-0"}) + "\n"
    )
    for task in (
        make("vqa", tmp_path, **vqa_files(tmp_path)),
        make("gqa", tmp_path, questions="gqa.json"),
        make("nlvr2", tmp_path, items="nlvr2.json"),
        make("coco_caption", tmp_path, captions=karpathy_file(tmp_path), subset="test", one_per="image"),
    ):
        asked |= {key for example in read(task) for key in example.images}
    assert asked <= index.paths.keys(), asked - index.paths.keys()
    assert len(asked) >= 5
