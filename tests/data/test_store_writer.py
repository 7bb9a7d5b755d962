"""Does filling a store survive kills, torn rows, full disks, new images and a second writer?"""

import errno
import os
import shutil
import signal
import time
from collections import namedtuple

import numpy as np
import pytest

from multitask_vl.data.store import row_file, writer
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import read_layout
from multitask_vl.data.store.row_file import RowFile
from multitask_vl.data.store.writer import StoreWriter, write_store
from multitask_vl.errors import InputError
from multitask_vl.storage.file_lock import WriterLock
from tests.store_fixtures import MANIFEST, SHAPE, content, made


@pytest.fixture
def features():
    return made([f"COCO_val2014_{n:012d}" for n in range(40)] + ["straße", "图片"])


@pytest.fixture
def path(tmp_path, features):
    write_store(tmp_path / "store.h5", MANIFEST, features)
    return tmp_path / "store.h5"


# ---- writing


def test_filling_goes_on_where_it_stopped(tmp_path, path, features):
    keys = sorted(features)
    other = tmp_path / "other.h5"
    with StoreWriter(other, MANIFEST, keys) as writer:
        writer.write([4, 1], np.stack([features[keys[4]], features[keys[1]]]).astype("f4"))
    with StoreWriter(other, MANIFEST, keys) as writer:
        assert np.flatnonzero(~writer.pending).tolist() == [1, 4]
        assert writer.keys == keys
        for row in np.flatnonzero(writer.pending):
            writer.write([row], features[keys[row]][None])
        assert not writer.pending.any()
    assert content(other) == content(path)


def _half_written(file, row, block):
    file._put(block.tobytes()[:40], file.layout.features_at + row * file.layout.row_bytes)


def _without_checksum(file, row, block):
    file._put(block.tobytes(), file.layout.features_at + row * file.layout.row_bytes)
    file._put(b"\x01", file.layout.done_at + row)


def _one_bit(file, row, block):
    file.write(row, block)
    at = file.layout.features_at + row * file.layout.row_bytes + 17
    file._put(bytes([os.pread(file._descriptor, 1, at)[0] ^ 4]), at)


@pytest.mark.parametrize(("tear", "noticed"), [(_half_written, False), (_without_checksum, True), (_one_bit, True)])
def test_a_torn_row_is_redone(tmp_path, path, features, tear, noticed):
    keys, torn = sorted(features), tmp_path / "torn.h5"
    shutil.copy(path, torn)
    file = RowFile(read_layout(torn), writable=True)
    file.forget(7)
    tear(file, 7, made(["x"], seed=5)["x"])
    file.close()
    with StoreWriter(torn, MANIFEST, keys) as writer:
        assert np.flatnonzero(writer.pending).tolist() == [7]
        assert writer.damaged == ([keys[7]] if noticed else [])
        writer.write([7], features[keys[7]][None])
    assert content(torn) == content(path)


def test_a_writer_killed_inside_a_row_leaves_a_store_that_goes_on(tmp_path, path, features, monkeypatch):
    keys, torn = sorted(features), tmp_path / "torn.h5"
    child = os.fork()
    if child == 0:
        pwrite, calls = os.pwrite, iter(range(1000))

        def killing(descriptor, data, at):
            if next(calls) == 40:
                pwrite(descriptor, data[: len(data) // 2], at)
                os.kill(os.getpid(), signal.SIGKILL)
            return pwrite(descriptor, data, at)

        os.pwrite = killing
        with StoreWriter(torn, MANIFEST, keys) as writer:
            writer.write(range(len(keys)), np.stack([features[key] for key in keys]))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with StoreWriter(torn, MANIFEST, keys) as writer:
        rows = np.flatnonzero(writer.pending)
        assert 0 < len(rows) < len(keys)
        writer.write(rows, np.stack([features[keys[row]] for row in rows]))
    assert torn.read_bytes() == path.read_bytes()


def test_new_keys_extend_a_store_as_if_it_had_been_made_in_one_go(tmp_path, path, features):
    keys, grown = sorted(features), tmp_path / "grown.h5"
    write_store(grown, MANIFEST, {key: features[key] for key in keys[::2]})
    layout = read_layout(grown)
    file = RowFile(layout, writable=True)
    file.forget(0)
    _one_bit(file, 1, np.ones(SHAPE, "f2"))
    file.close()
    (tmp_path / ".grown.h5.growing").write_text("left by a process that was killed")
    with StoreWriter(grown, MANIFEST, keys[1::2]) as writer:
        assert writer.damaged == [keys[2]]
        assert writer.keys == keys[1:], "key 0 was neither done nor asked for"
        left = {key for key, pending in zip(writer.keys, writer.pending, strict=True) if pending}
        assert left == {*keys[1::2], keys[2]}
    with StoreWriter(grown, MANIFEST, keys) as writer:
        rows = np.flatnonzero(writer.pending)
        assert {writer.keys[row] for row in rows} == {*keys[1::2], keys[0], keys[2]}
        writer.write(rows, np.stack([features[writer.keys[row]] for row in rows]))
    assert grown.read_bytes() == path.read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["grown.h5", "store.h5"]


def test_a_store_made_differently_is_not_mixed(path, features):
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
def test_numbers_beyond_float16_are_refused(tmp_path, value):
    with StoreWriter(tmp_path / "store.h5", MANIFEST, ["a", "b"]) as writer:
        block = np.zeros((2, *SHAPE), "f4")
        block[1, 2, 3] = value
        with pytest.raises(InputError, match=r"1 of 2 images do not fit float16 \(first: b\)"):
            writer.write([0, 1], block)
        with pytest.raises(InputError, match="of shape"):
            writer.write([0], block)
    assert len(FeatureStore(tmp_path / "store.h5")) == 0


def test_a_full_disk_is_told_and_what_is_stored_is_kept(tmp_path, path, features, monkeypatch):
    keys, store = sorted(features), tmp_path / "full.h5"
    pwrite, room = os.pwrite, [30]

    def until_full(descriptor, data, at):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, data[:50], at)  # a short write must be gone on with

    monkeypatch.setattr(row_file.os, "pwrite", until_full)
    with pytest.raises(InputError, match=r"No space left.*kept"), StoreWriter(store, MANIFEST, keys) as writer:
        writer.write(range(len(keys)), np.stack([features[key] for key in keys]))
    monkeypatch.undo()
    with StoreWriter(store, MANIFEST, keys) as writer:
        rows = np.flatnonzero(writer.pending)
        assert 0 < len(rows) < len(keys)
        writer.write(rows, np.stack([features[keys[row]] for row in rows]))
    assert content(store) == content(path)


def test_other_write_errors_are_not_mistaken_for_a_full_disk(path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    file = RowFile(read_layout(path), writable=True)
    monkeypatch.setattr(row_file.os, "pwrite", broken)
    monkeypatch.setattr(row_file.os, "fsync", broken)
    for write in (lambda: file.forget(0), file.sync):
        with pytest.raises(OSError, match="Input/output"):
            write()


def test_a_store_behind_a_link_stays_there(tmp_path, path, features):
    (tmp_path / "link.h5").symlink_to(path)
    with StoreWriter(tmp_path / "link.h5", MANIFEST, ["new"]) as writer:
        assert len(writer.keys) == 43
        with pytest.raises(InputError, match="is being written"):
            StoreWriter(path, MANIFEST, []).__enter__()
    assert (tmp_path / "link.h5").is_symlink()
    assert len(FeatureStore(path)) == 42


def test_a_place_that_cannot_be_written_is_told(tmp_path, path):
    with pytest.raises(InputError, match=r"cannot be written .*name another place"):
        StoreWriter(path / "inside" / "store.h5", MANIFEST, ["a"]).__enter__()
    with pytest.raises(InputError, match="a folder, not the file"):
        StoreWriter(tmp_path, MANIFEST, ["a"]).__enter__()


def test_a_disk_too_small_for_the_store_is_told_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(100))
    with pytest.raises(InputError, match=r"needs 0\.00 GB for 2 images"):
        StoreWriter(tmp_path / "store.h5", MANIFEST, ["a", "b"]).__enter__()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    with pytest.raises(InputError, match="no image, no store"):
        StoreWriter(tmp_path / "store.h5", MANIFEST, []).__enter__()


# ---- one writer


def test_a_second_writer_is_refused_and_told_who_writes(path, features):
    with StoreWriter(path, MANIFEST, features):
        with pytest.raises(InputError, match=f"is being written by process {os.getpid()} on "):
            StoreWriter(path, MANIFEST, features).__enter__()
        assert len(FeatureStore(path)) == 42, "readers are not kept out"
    assert not path.with_name("store.h5.lock").exists()
    with StoreWriter(path, MANIFEST, features) as writer:
        assert not writer.pending.any()


def test_a_killed_writer_leaves_no_lock_even_if_its_workers_live_on(tmp_path):
    store = tmp_path / "store.h5"
    reading, writing = os.pipe()
    writer = os.fork()
    if writer == 0:
        WriterLock(store).__enter__()
        worker = os.fork()
        if worker == 0:
            time.sleep(30)
            os._exit(0)
        os.write(writing, str(worker).encode())
        time.sleep(30)
        os._exit(1)
    worker = int(os.read(reading, 20))
    try:
        with pytest.raises(InputError, match=f"process {writer}"):
            WriterLock(store).__enter__()
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        assert store.with_name("store.h5.lock").exists(), "the file lies around, but is nobody's"
        with WriterLock(store):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(reading)
        os.close(writing)


def test_a_lock_whose_file_vanished_is_taken_anew(tmp_path, monkeypatch):
    lock, real = WriterLock(tmp_path / "store.h5"), WriterLock._is_current
    seen = []

    def vanishing(self, descriptor):
        if not seen:
            self.lock.unlink()
        seen.append(real(self, descriptor))
        return seen[-1]

    monkeypatch.setattr(WriterLock, "_is_current", vanishing)
    with lock, pytest.raises(InputError):
        WriterLock(tmp_path / "store.h5").__enter__()
    assert seen == [False, True]


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.raises(InputError, match="takes no locks"):
        WriterLock(tmp_path / "store.h5").__enter__()
