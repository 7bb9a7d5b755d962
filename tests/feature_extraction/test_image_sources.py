"""Images in tar shards and list files."""

import io
import os
import tarfile

import numpy as np
import pytest

from feature_extraction.extract import extract
from feature_extraction.images.image_index import index_images
from feature_extraction.images.image_sources import ImageFile
from feature_extraction.images.preprocessing import ImageDecodeError, load_square
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.errors import InputError
from tests.drawn_images import random_image, tiny_config


def encode_image(seed: int, format: str = "PNG") -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    random_image(seed).save(buffer, format)
    return buffer.getvalue()


def write_shard(path, members: dict[str, bytes]) -> None:
    """Write a tar file as webdataset does."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))


# ---- tar shards


def test_shard_members_have_the_pixels_of_files(tmp_path):
    for number in range(2):
        members = {f"a/{number}{n}.png": encode_image(n) for n in range(3)}
        write_shard(tmp_path / f"s-00{number}.tar", members | {f"a/{number}0.json": b"{}", "a/._x.png": b""})
    index = index_images([tmp_path / "s-{000..001}.tar"])
    assert list(index.files) == ["00", "01", "02", "10", "11", "12"]
    assert index.non_images == 2
    assert str(index.files["11"]) == f"{tmp_path / 's-001.tar'}:a/11.png"
    assert index_images([tmp_path / "s-*.tar", tmp_path / "s-001.tar"]) == index, "a repeated shard counts once"
    (tmp_path / "1.png").write_bytes(encode_image(1))
    for file in (index.files["01"], index.files["11"]):
        member, plain = load_square(file, 64, "squash"), load_square(tmp_path / "1.png", 64, "squash")
        np.testing.assert_array_equal(member[0], plain[0])


def test_store_from_shards_equals_store_from_folder(tmp_path):
    folder = tiny_config(tmp_path / "folder", num_workers=0)
    extract(folder, "cpu")
    files = sorted(path for path in (tmp_path / "folder" / "images").rglob("*.*"))
    sharded = tiny_config(tmp_path / "sharded", images=["s-*.tar"], num_workers=1)
    for number in range(2):
        members = {path.name: path.read_bytes() for path in files[number::2]}
        write_shard(tmp_path / "sharded" / f"s-{number}.tar", members)
    assert extract(sharded, "cpu").complete
    first, second = (FeatureStore(tmp_path / name / "features.h5") for name in ("folder", "sharded"))
    assert first.keys() == second.keys()
    np.testing.assert_array_equal(first.get_many(first.keys()), second.get_many(first.keys()))


def test_shard_truncated_after_indexing_fails_for_one_image(tmp_path):
    write_shard(tmp_path / "s.tar", {"1.png": encode_image(1), "2.png": encode_image(2), "3.txt": b"text"})
    index = index_images([tmp_path / "s.tar"])
    os.truncate(tmp_path / "s.tar", index.files["2"].offset + 40)
    assert load_square(index.files["1"], 64, "squash")[0].any()
    with pytest.raises(ImageDecodeError, match=r"^OSError: truncated: the shard ends after 40 of its"):
        load_square(index.files["2"], 64, "squash")
    write_shard(tmp_path / "bad.tar", {"1.png": b"text", "2.png": b""})
    for file in index_images([tmp_path / "bad.tar"]).files.values():
        with pytest.raises(ImageDecodeError, match=r"^UnidentifiedImageError: cannot identify image file$"):
            load_square(file, 64, "squash")


def test_corrupt_or_truncated_shard_is_an_error(tmp_path):
    complete = tmp_path / "complete.tar"
    write_shard(complete, {f"{number}.png": encode_image(number) for number in range(6)})
    data, index = complete.read_bytes(), index_images([complete])
    header = index.files["3"].offset - tarfile.BLOCKSIZE
    flipped = bytearray(data)
    flipped[header + 5] ^= 1
    after_last = index.files["5"].offset + -(-index.files["5"].size // 512) * 512
    corrupt = {
        "flipped": (bytes(flipped), f"is corrupt at byte {header:,}, after 3 files: invalid header"),
        "zeroed": (data[:header] + bytes(512) + data[header + 512 :], f"is corrupt at byte {header:,}, after 3 files"),
        "between": (data[:header], f"is truncated at byte {header:,}, after 3 files; copy it again"),
        "header": (data[: header + 100], "is corrupt at byte"),
        "inside": (data[: header + 600], r"cannot be read as an uncompressed tar file \(.*, after \d files\); copy"),
        "end": (data[:after_last], f"is truncated at byte {after_last:,}, after 6 files"),
    }
    for name, (content, message) in corrupt.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.tar: {message}"):
            index_images([tmp_path / f"{name}.tar"])
    (tmp_path / "one_zero_block.tar").write_bytes(data[: after_last + 512])
    assert len(index_images([tmp_path / "one_zero_block.tar"]).files) == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.tar", r"no\.tar: cannot be read as an uncompressed tar file"),
        ("s.tar.gz", r"s\.tar\.gz: neither a folder, nor a shard \(\.tar, not compressed\), nor a list"),
        ("missing-{00..11}.tar", r"missing-00\.tar: no such folder, shard or list"),
        ("missing-*.tar", r"missing-\*\.tar: no such folder"),
    ],
)
def test_unusable_source_is_an_error(tmp_path, name, message):
    (tmp_path / "no.tar").write_bytes(b"x" * 2000)
    (tmp_path / "s.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        index_images([tmp_path / name])


def test_number_of_open_shards_is_bounded(tmp_path):
    for number in range(20):
        write_shard(tmp_path / f"{number:02d}.tar", {f"{number}.png": encode_image(1)})
    index = index_images([tmp_path / "*.tar"])
    before = len(os.listdir("/proc/self/fd"))
    for file in index.files.values():
        load_square(file, 64, "squash")
    assert len(os.listdir("/proc/self/fd")) <= before + 8


# ---- lists and copies


def test_list_names_files_and_keys(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.data", "c.png"):
        (tmp_path / "photos" / name).write_text(name)
    (tmp_path / "list.txt").write_text(f"photos/a.jpg\nsecond\tphotos/b.data\n\n{tmp_path / 'photos' / 'c.png'}\n")
    files = index_images([tmp_path / "list.txt"]).files
    assert {key: image.path.name for key, image in files.items()} == {"a": "a.jpg", "c": "c.png", "second": "b.data"}
    (tmp_path / "list.txt").write_text("photos/a.jpg\nphotos/d.jpg\nphotos/e.jpg\n")
    with pytest.raises(InputError, match=r"list\.txt:2: no such file: .*d\.jpg(?s:.*)2 lines of"):
        index_images([tmp_path / "list.txt"])


def test_list_may_start_with_bom_and_must_be_utf8(tmp_path):
    (tmp_path / "1.png").write_bytes(encode_image(1))
    (tmp_path / "list.tsv").write_text("\ufeffk1\t1.png\n", encoding="utf-8")
    assert list(index_images([tmp_path / "list.tsv"]).files) == ["k1"]
    (tmp_path / "list.tsv").write_text("k1\t1.png\n", encoding="utf-16")
    with pytest.raises(InputError, match=r"list\.tsv: is UTF-16; convert it to UTF-8: iconv"):
        index_images([tmp_path / "list.tsv"])


def test_copies_with_one_key_count_once(tmp_path):
    for folder in ("VG_100K", "gqa"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "7.jpg").write_bytes(encode_image(7, "JPEG"))
    write_shard(tmp_path / "s.tar", {"7.jpg": encode_image(7, "JPEG")})
    index = index_images([tmp_path, tmp_path / "s.tar"])
    assert index.files == {"7": ImageFile(tmp_path / "VG_100K" / "7.jpg")}
    assert index.duplicate_files == 2
    (tmp_path / "gqa" / "7.jpg").write_bytes(encode_image(8, "JPEG"))
    with pytest.raises(InputError, match="image key 7 names two files"):
        index_images([tmp_path])
