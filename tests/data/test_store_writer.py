"""Writing stores: resuming after a kill, torn rows, full disks, new keys, concurrent writers."""

import errno
import os
import shutil
import signal
from collections import namedtuple

import numpy as np
import pytest

from multitask_vl.data.store import local_rows, writer
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import read_local_header
from multitask_vl.data.store.local_rows import LocalRows
from multitask_vl.data.store.writer import StoreWriter, write_store
from multitask_vl.errors import InputError
from tests.store_fixtures import MANIFEST, SHAPE, random_features, store_bytes


@pytest.fixture
def features():
    return random_features([f"COCO_val2014_{n:012d}" for n in range(40)] + ["straße", "图片"])


@pytest.fixture
def path(tmp_path, features):
    write_store(tmp_path / "store.h5", MANIFEST, features)
    return tmp_path / "store.h5"


def stack(features, keys):
    return np.stack([features[key] for key in keys])


# ---- writing


def test_writer_resumes_pending_rows(tmp_path, path, features):
    keys = sorted(features)
    other = tmp_path / "other.h5"
    with StoreWriter(other, MANIFEST, keys) as writer:
        writer.write([4, 1], stack(features, [keys[4], keys[1]]).astype("f4"))
    with StoreWriter(other, MANIFEST, keys) as writer:
        assert np.flatnonzero(~writer.pending).tolist() == [1, 4]
        assert writer.keys == keys
        for row in np.flatnonzero(writer.pending):
            writer.write([row], features[keys[row]][None])
        assert not writer.pending.any()
    assert store_bytes(other) == store_bytes(path)


def _half_written(file, row, block):
    file._pwrite(block.tobytes()[:40], file.header.features_offset + row * file.header.row_bytes)


def _without_checksum(file, row, block):
    file._pwrite(block.tobytes(), file.header.features_offset + row * file.header.row_bytes)
    file._pwrite(b"\x01", file.header.done_offset + row)


def _flipped_bit(file, row, block):
    file.write(row, block)
    offset = file.header.features_offset + row * file.header.row_bytes + 17
    file._pwrite(bytes([os.pread(file._descriptor, 1, offset)[0] ^ 4]), offset)


@pytest.mark.parametrize(("tear", "is_done"), [(_half_written, False), (_without_checksum, True), (_flipped_bit, True)])
def test_torn_row_is_written_again(tmp_path, path, features, tear, is_done):
    keys, torn = sorted(features), tmp_path / "torn.h5"
    shutil.copy(path, torn)
    file = LocalRows(read_local_header(torn), writable=True)
    file.mark_undone(7)
    tear(file, 7, random_features(["x"], seed=5)["x"])
    file.close()
    with StoreWriter(torn, MANIFEST, keys) as writer:
        assert np.flatnonzero(writer.pending).tolist() == [7]
        assert writer.corrupt == ([keys[7]] if is_done else [])
        writer.write([7], features[keys[7]][None])
    assert store_bytes(torn) == store_bytes(path)


def test_writer_killed_inside_a_row_is_resumed(tmp_path, path, features):
    keys, torn = sorted(features), tmp_path / "torn.h5"
    child = os.fork()
    if child == 0:
        pwrite, calls = os.pwrite, iter(range(1000))

        def kill_at_40(descriptor, data, offset):
            if next(calls) == 40:
                pwrite(descriptor, data[: len(data) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return pwrite(descriptor, data, offset)

        os.pwrite = kill_at_40
        with StoreWriter(torn, MANIFEST, keys) as writer:
            writer.write(range(len(keys)), stack(features, keys))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with StoreWriter(torn, MANIFEST, keys) as writer:
        rows = np.flatnonzero(writer.pending)
        assert 0 < len(rows) < len(keys)
        writer.write(rows, stack(features, [keys[row] for row in rows]))
    assert torn.read_bytes() == path.read_bytes()


def test_grown_store_equals_one_created_with_all_keys(tmp_path, path, features):
    keys, grown = sorted(features), tmp_path / "grown.h5"
    write_store(grown, MANIFEST, {key: features[key] for key in keys[::2]})
    file = LocalRows(read_local_header(grown), writable=True)
    file.mark_undone(0)
    _flipped_bit(file, 1, np.ones(SHAPE, "f2"))
    file.close()
    (tmp_path / ".grown.h5.growing").write_text("left by a killed process")
    with StoreWriter(grown, MANIFEST, keys[1::2]) as writer:
        assert writer.corrupt == [keys[2]]
        assert writer.keys == keys[1:], "key 0 was neither done nor requested"
        pending = {key for key, is_pending in zip(writer.keys, writer.pending, strict=True) if is_pending}
        assert pending == {*keys[1::2], keys[2]}
    with StoreWriter(grown, MANIFEST, keys) as writer:
        rows = np.flatnonzero(writer.pending)
        assert {writer.keys[row] for row in rows} == {*keys[1::2], keys[0], keys[2]}
        writer.write(rows, stack(features, [writer.keys[row] for row in rows]))
    assert grown.read_bytes() == path.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["grown.h5", "store.h5"]


def test_writer_rejects_another_manifest(path, features):
    other = MANIFEST.model_copy(update={"image_size": 448, "weights_sha256": "cd" * 32})
    with pytest.raises(InputError) as caught:
        StoreWriter(path, other, features).__enter__()
    assert "image_size: 224, not 448" in str(caught.value)
    assert "weights_sha256" in str(caught.value)
    assert f"rm {path}" in str(caught.value)
    newer_tool = MANIFEST.model_copy(update={"tool_version": "99"})
    with StoreWriter(path, newer_tool, features) as writer:
        assert not writer.pending.any()


@pytest.mark.parametrize("value", [70000.0, np.inf, np.nan])
def test_writer_rejects_values_beyond_float16(tmp_path, value):
    with StoreWriter(tmp_path / "store.h5", MANIFEST, ["a", "b"]) as writer:
        block = np.zeros((2, *SHAPE), "f4")
        block[1, 2, 3] = value
        with pytest.raises(InputError, match=r"1 of 2 images do not fit float16 \(first: b\)"):
            writer.write([0, 1], block)
        with pytest.raises(InputError, match="of shape"):
            writer.write([0], block)
    assert len(FeatureStore(tmp_path / "store.h5")) == 0


def test_full_disk_is_reported_and_stored_rows_are_kept(tmp_path, path, features, monkeypatch):
    keys, store = sorted(features), tmp_path / "full.h5"
    pwrite, remaining = os.pwrite, [30]

    def until_full(descriptor, data, offset):
        remaining[0] -= 1
        if remaining[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, data[:50], offset)  # a short write has to be continued

    monkeypatch.setattr(local_rows.os, "pwrite", until_full)
    with pytest.raises(InputError, match=r"No space left.*kept"), StoreWriter(store, MANIFEST, keys) as writer:
        writer.write(range(len(keys)), stack(features, keys))
    monkeypatch.undo()
    with StoreWriter(store, MANIFEST, keys) as writer:
        rows = np.flatnonzero(writer.pending)
        assert 0 < len(rows) < len(keys)
        writer.write(rows, stack(features, [keys[row] for row in rows]))
    assert store_bytes(store) == store_bytes(path)


def test_other_write_errors_are_raised_unchanged(path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    file = LocalRows(read_local_header(path), writable=True)
    monkeypatch.setattr(local_rows.os, "pwrite", broken)
    monkeypatch.setattr(local_rows.os, "fsync", broken)
    for write in (lambda: file.mark_undone(0), file.sync):
        with pytest.raises(OSError, match="Input/output"):
            write()


def test_writer_follows_a_symbolic_link(tmp_path, path):
    (tmp_path / "link.h5").symlink_to(path)
    with StoreWriter(tmp_path / "link.h5", MANIFEST, ["new"]) as writer:
        assert len(writer.keys) == 43
        with pytest.raises(InputError, match="is being written"):
            StoreWriter(path, MANIFEST, []).__enter__()
    assert (tmp_path / "link.h5").is_symlink()
    assert len(FeatureStore(path)) == 42


def test_unwritable_path_is_reported(tmp_path, path):
    with pytest.raises(InputError, match=r"cannot be written .*name another path"):
        StoreWriter(path / "inside" / "store.h5", MANIFEST, ["a"]).__enter__()
    with pytest.raises(InputError, match="a folder, not a feature store file"):
        StoreWriter(tmp_path, MANIFEST, ["a"]).__enter__()


def test_disk_space_is_checked_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(100))
    with pytest.raises(InputError, match=r"needs 0\.00 GB for 2 images"):
        StoreWriter(tmp_path / "store.h5", MANIFEST, ["a", "b"]).__enter__()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    with pytest.raises(InputError, match="there are no images to store"):
        StoreWriter(tmp_path / "store.h5", MANIFEST, []).__enter__()


def test_second_writer_is_rejected_but_readers_are_not(path, features):
    with StoreWriter(path, MANIFEST, features):
        with pytest.raises(InputError, match=f"is being written by process {os.getpid()} on "):
            StoreWriter(path, MANIFEST, features).__enter__()
        assert len(FeatureStore(path)) == 42
    assert not path.with_name("store.h5.lock").exists()
    with StoreWriter(path, MANIFEST, features) as writer:
        assert not writer.pending.any()
