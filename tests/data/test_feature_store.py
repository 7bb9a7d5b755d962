"""Feature store: reading by key, several files as one, corrupt and foreign files."""

import json
import multiprocessing
import os
import pickle
import zlib

import h5py
import numpy as np
import pytest

from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import create_store, read_local_header
from multitask_vl.data.store.local_rows import LocalRows
from multitask_vl.data.store.writer import StoreWriter, write_store
from multitask_vl.errors import InputError
from tests.store_fixtures import MANIFEST, SHAPE, random_features


@pytest.fixture
def features():
    return random_features([f"COCO_val2014_{n:012d}" for n in range(40)] + ["straße", "图片"])


@pytest.fixture
def path(tmp_path, features):
    write_store(tmp_path / "store.h5", MANIFEST, features)
    return tmp_path / "store.h5"


# ---- reading


def test_store_reads_rows_in_any_order(path, features):
    store = FeatureStore(path)
    keys = [list(features)[i] for i in np.random.default_rng(1).integers(0, len(features), 300)]
    rows = store.get_many(keys)
    assert rows.shape == (300, *SHAPE)
    assert rows.dtype == np.float16
    for key, row in zip(keys, rows, strict=True):
        np.testing.assert_array_equal(row, features[key])
    np.testing.assert_array_equal(store.get("图片"), features["图片"])
    assert store.get_many([]).shape == (0, *SHAPE)


def test_store_finds_its_keys(path, features):
    store = FeatureStore(str(path))
    assert store.keys() == sorted(features)
    assert len(store) == 42
    assert "straße" in store
    assert "strasse" not in store
    assert 42 not in store
    longer = max(features, key=lambda key: len(key.encode())) + "0"
    assert longer not in store, "a key longer than any stored one is not truncated"
    assert store.missing(["b", "straße", "a", "b"]) == ["b", "a"]
    assert store.manifest == MANIFEST


def test_missing_keys_are_counted_with_the_fix(path):
    message = r"2 of 3 image keys have no features in store.h5 \(first: x\).*multitask-vl store verify"
    with pytest.raises(InputError, match=message):
        FeatureStore(path).get_many(["x", "图片", "y", "x"])


def test_store_is_readable_with_plain_h5py(path, features):
    with h5py.File(path) as file:
        keys = file["keys"].asstr()[:].tolist()
        assert keys == sorted(features)
        assert file["features"].chunks is None
        assert file["features"].dtype == np.float16
        assert json.loads(file.attrs["manifest"])["encoder"] == "RN101"
        for row, key in enumerate(keys):
            np.testing.assert_array_equal(file["features"][row], features[key])
            assert file["crc32"][row] == zlib.crc32(features[key])
        assert file["done"][:].tolist() == [1] * len(keys)


def test_store_bytes_depend_on_content_only(path, tmp_path, features):
    write_store(tmp_path / "again.h5", MANIFEST, dict(reversed(features.items())))
    assert (tmp_path / "again.h5").read_bytes() == path.read_bytes()


def test_adjacent_rows_are_read_with_one_call(path, features, monkeypatch):
    keys = sorted(features)
    rows, reads = LocalRows(read_local_header(path)), []
    preadv = os.preadv
    monkeypatch.setattr("multitask_vl.data.store.local_rows.MAX_BUFFERS", 3)
    monkeypatch.setattr(os, "preadv", lambda *args: reads.append(len(args[1])) or preadv(*args))
    requested = [7, 3, 5, 4, 3, 6, 20]
    outs = np.empty((7, *SHAPE), "<f2")
    rows.read_rows(requested, outs)
    np.testing.assert_array_equal(outs, np.stack([features[keys[row]] for row in requested]))
    assert reads == [1, 3, 2, 1]
    rows.read_rows([], outs)


def _read(store, keys):
    return store.get_many(keys)


def test_open_store_is_passed_to_a_forked_process(path, features):
    store, keys = FeatureStore(path), list(features)
    store.get(keys[0])  # opens the file
    with multiprocessing.get_context("fork").Pool(1) as pool:
        rows = pool.apply_async(_read, (store, keys[::4])).get(60)
    np.testing.assert_array_equal(rows, np.stack([features[key] for key in keys[::4]]))
    np.testing.assert_array_equal(store.get(keys[1]), features[keys[1]])


def test_pickled_store_has_no_open_file(path, features):
    store = FeatureStore(path)
    store.get("图片")
    copy = pickle.loads(pickle.dumps(store))
    assert store._open
    assert not copy._open
    np.testing.assert_array_equal(copy.get("图片"), features["图片"])


def test_forked_processes_read_one_descriptor_concurrently(path, features):
    store, keys = FeatureStore(path), list(features)
    store.get(keys[0])
    child = os.fork()
    if child == 0:
        correct = all((store.get(key) == features[key]).all() for key in keys * 20)
        os._exit(0 if correct else 1)
    assert all((store.get(key) == features[key]).all() for key in reversed(keys * 20))
    assert os.waitpid(child, 0)[1] == 0


def test_undone_rows_are_missing(path, tmp_path):
    header = read_local_header(path)
    file = LocalRows(header, writable=True)
    file.mark_undone(3)
    file.close()
    store, key = FeatureStore(path), header.keys[3].decode()
    assert len(store) == 41
    assert store.missing([key]) == [key]
    create_store(tmp_path / "empty.h5", MANIFEST, ["a", "b"])
    store = FeatureStore(tmp_path / "empty.h5")
    assert len(store) == 0
    assert store.missing(["a", "c"]) == ["a", "c"]


# ---- several files


def test_shards_are_read_as_one_store(tmp_path, features):
    keys = sorted(features)
    for i in range(3):
        write_store(tmp_path / f"coco-{i:05d}-of-00003.h5", MANIFEST, {key: features[key] for key in keys[i::3]})
    store = FeatureStore(tmp_path / "coco.h5")
    assert len(store.paths) == 3
    assert store.keys() == keys
    np.testing.assert_array_equal(store.get_many(keys), np.stack([features[key] for key in keys]))
    assert FeatureStore(tmp_path / "coco-00001-of-00003.h5").keys() == keys[1::3]
    (tmp_path / "coco-00001-of-00003.h5").rename(tmp_path / "moved.h5")
    with pytest.raises(InputError, match=r"1 of 3 shards are missing \(first: coco-00001-of-00003.h5\)"):
        FeatureStore(tmp_path / "coco.h5")
    (tmp_path / "moved.h5").rename(tmp_path / "coco-00001-of-00004.h5")
    with pytest.raises(InputError, match="different counts, of 00003 and of 00004"):
        FeatureStore(tmp_path / "coco.h5")
    write_store(tmp_path / "coco.h5", MANIFEST, features)
    with pytest.raises(InputError, match="both this store and shards of it exist"):
        FeatureStore(tmp_path / "coco.h5")


def test_several_stores_need_distinct_keys_and_one_manifest(path, tmp_path, features):
    write_store(tmp_path / "vg.h5", MANIFEST.model_copy(update={"tool_version": "9"}), random_features(["1", "2"]))
    store = FeatureStore([path, tmp_path / "vg.h5"])
    assert len(store) == 44
    np.testing.assert_array_equal(store.get_many(["2", "图片"])[1], features["图片"])
    write_store(tmp_path / "twice.h5", MANIFEST, random_features(["2", "1", "0"]))
    message = r"2 image keys are in more than one file \(first: 1 in .*vg.h5 and .*twice.h5"
    with pytest.raises(InputError, match=message):
        FeatureStore([path, tmp_path / "vg.h5", tmp_path / "twice.h5"])
    write_store(tmp_path / "other.h5", MANIFEST.model_copy(update={"resize": "crop"}), random_features(["5"]))
    with pytest.raises(InputError, match=r"cannot be read as one store.*resize: squash, not crop"):
        FeatureStore([path, tmp_path / "other.h5"])
    with pytest.raises(InputError) as caught:
        FeatureStore([tmp_path / "a.h5", path, tmp_path / "b.h5"])
    assert len(caught.value.problems) == 2
    with pytest.raises(InputError, match="names no file"):
        FeatureStore([])


# ---- corrupt and foreign files


def _truncated(path):
    os.truncate(path, path.stat().st_size - 200)


def _cut_to_superblock(path):
    os.truncate(path, 700)


def _text(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def _group_per_image(path):
    with h5py.File(path, "w") as file:
        file["1/features"] = np.zeros(SHAPE)


def _without_done(path):
    with h5py.File(path, "r+") as file:
        del file["done"]


def _chunked(path):
    with h5py.File(path, "r+") as file:
        data = file["features"][:]
        del file["features"]
        file.create_dataset("features", data=data, chunks=(1, *SHAPE))


def _float32(path):
    with h5py.File(path, "r+") as file:
        data = file["features"][:]
        del file["features"]
        file["features"] = data.astype("f4")


def _newer(path):
    with h5py.File(path, "r+") as file:
        file.attrs["manifest"] = MANIFEST.model_copy(update={"format_version": 2}).model_dump_json()


def _newer_fields(path):
    with h5py.File(path, "r+") as file:
        file.attrs["manifest"] = MANIFEST.model_dump_json()[:-1] + ',"frames":8}'


def _corrupt_tree(path):
    path.write_bytes(path.read_bytes().replace(b"TREE", b"LEAF", 1))


def _corrupt_object_header(path):
    with h5py.File(path) as file:
        offset = h5py.h5o.get_info(file["keys"].id).addr
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(bytes(16))


def _corrupt_encoding(path):
    offset = path.read_bytes().index(b"manifest") + 18  # the byte with the attribute's character set
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(b"\xff")


def _features_as_group(path):
    with h5py.File(path, "r+") as file:
        del file["features"]
        file.create_group("features")


def _invalid_manifest(path):
    with h5py.File(path, "r+") as file:
        file.attrs["manifest"] = "{"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncated, "truncated or corrupt.*copy it again, or delete it and run: multitask-vl extract --config"),
        (_cut_to_superblock, "truncated or corrupt"),
        (_text, r"not an HDF5 file \(43 bytes\).*multitask-vl extract"),
        (_group_per_image, "no manifest.*multitask-vl store import"),
        (_without_done, "no dataset done"),
        (_chunked, "features is .* not contiguous"),
        (_float32, "features is .* float32 contiguous"),
        (_features_as_group, "no dataset features"),
        (_corrupt_tree, "truncated or corrupt.*B-tree"),
        (_corrupt_object_header, "truncated or corrupt.*object header"),
        (_corrupt_encoding, "truncated or corrupt.*string encoding"),
        (_newer, "format 2, this version of the project reads up to 1"),
        (_newer_fields, "invalid manifest.*newer version"),
        (_invalid_manifest, "invalid manifest.*extract the features again"),
        (os.unlink, "no such feature store; create it"),
    ],
)
def test_invalid_store_file_is_rejected(path, damage, message):
    damage(path)
    with pytest.raises(InputError, match=message):
        FeatureStore(path)
    if damage is not os.unlink:
        with pytest.raises(InputError, match=message):
            StoreWriter(path, MANIFEST, ["a"]).__enter__()
        assert not path.with_name("store.h5.lock").exists(), "a rejected writer releases the lock"


def test_store_replaced_or_truncated_in_use_is_reported(path, features):
    replaced, truncated = FeatureStore(path), FeatureStore(path)
    truncated.get("图片")
    os.truncate(path, path.stat().st_size - 200)
    with pytest.raises(InputError, match="truncated while it was in use"):
        truncated.get_many(list(features))
    path.unlink()
    write_store(path, MANIFEST, features)
    with pytest.raises(InputError, match="replaced while it was in use"):
        replaced.get("图片")
