"""Does the feature store keep what it was given, and tell what it was not given?"""

import json
import multiprocessing
import os
import pickle
import zlib

import h5py
import numpy as np
import pytest

from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import create, read_layout
from multitask_vl.data.store.row_file import RowFile
from multitask_vl.data.store.writer import StoreWriter, write_store
from multitask_vl.errors import InputError
from tests.store_fixtures import MANIFEST, SHAPE, made


@pytest.fixture
def features():
    return made([f"COCO_val2014_{n:012d}" for n in range(40)] + ["straße", "图片"])


@pytest.fixture
def path(tmp_path, features):
    write_store(tmp_path / "store.h5", MANIFEST, features)
    return tmp_path / "store.h5"


# ---- reading


def test_reads_in_any_order_what_was_written(path, features):
    store = FeatureStore(path)
    keys = [list(features)[at] for at in np.random.default_rng(1).integers(0, len(features), 300)]
    got = store.get_many(keys)
    assert got.shape == (300, *SHAPE)
    assert got.dtype == np.float16
    for key, one in zip(keys, got, strict=True):
        np.testing.assert_array_equal(one, features[key])
        np.testing.assert_array_equal(store.get(key), features[key])
    assert store.get_many([]).shape == (0, *SHAPE)


def test_knows_its_keys(path, features):
    store = FeatureStore(str(path))
    assert store.keys() == sorted(features)
    assert len(store) == 42
    assert "straße" in store
    assert "strasse" not in store
    assert 42 not in store
    longer = max(features, key=lambda key: len(key.encode())) + "0"
    assert longer not in store, "a key longer than any stored one must not be found by its beginning"
    assert store.missing(["b", "straße", "a", "b"]) == ["b", "a"]
    assert store.manifest == MANIFEST


def test_missing_keys_are_counted_named_and_told_how_to_mend(path):
    with pytest.raises(InputError, match=r"2 of 3 image keys have no features in store.h5 \(first: x\).*manage verify"):
        FeatureStore(path).get_many(["x", "图片", "y", "x"])


def test_plain_h5py_reads_the_file_too(path, features):
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


def test_the_same_content_gives_the_same_bytes(path, tmp_path, features):
    write_store(tmp_path / "again.h5", MANIFEST, dict(reversed(features.items())))
    assert (tmp_path / "again.h5").read_bytes() == path.read_bytes()


def _read_here(store, keys):
    return store.get_many(keys)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_an_open_store_goes_to_other_processes(path, features, start):
    store, keys = FeatureStore(path), list(features)
    store.get(keys[0])  # the file is open now
    with multiprocessing.get_context(start).Pool(2) as pool:
        parts = [pool.apply_async(_read_here, (store, keys[at::4])) for at in range(4)]
        for at, part in enumerate(parts):
            np.testing.assert_array_equal(part.get(60), np.stack([features[key] for key in keys[at::4]]))
    np.testing.assert_array_equal(store.get(keys[1]), features[keys[1]])


def test_a_pickle_carries_no_open_file(path, features):
    store = FeatureStore(path)
    store.get("图片")
    copy = pickle.loads(pickle.dumps(store))
    assert store._open
    assert not copy._open
    np.testing.assert_array_equal(copy.get("图片"), features["图片"])


def test_a_forked_child_reads_through_the_inherited_file_without_moving_the_parents(path, features):
    store, keys = FeatureStore(path), list(features)
    store.get(keys[0])
    child = os.fork()
    if child == 0:
        right = all((store.get(key) == features[key]).all() for key in keys * 20)
        os._exit(0 if right else 1)
    assert all((store.get(key) == features[key]).all() for key in reversed(keys * 20))
    assert os.waitpid(child, 0)[1] == 0


def test_rows_not_done_are_absent(path):
    layout = read_layout(path)
    file = RowFile(layout, writable=True)
    file.forget(3)
    file.close()
    store, key = FeatureStore(path), layout.keys[3].decode()
    assert len(store) == 41
    assert store.missing([key]) == [key]


def test_an_empty_store_misses_everything(tmp_path):
    create(tmp_path / "store.h5", MANIFEST, ["a", "b"])
    store = FeatureStore(tmp_path / "store.h5")
    assert len(store) == 0
    assert store.missing(["a", "c"]) == ["a", "c"]


# ---- several files


def test_shards_read_as_one(tmp_path, features):
    keys = sorted(features)
    for at in range(3):
        write_store(tmp_path / f"coco-{at:05d}-of-00003.h5", MANIFEST, {key: features[key] for key in keys[at::3]})
    store = FeatureStore(tmp_path / "coco.h5")
    assert len(store.paths) == 3
    assert store.keys() == keys
    np.testing.assert_array_equal(store.get_many(keys), np.stack([features[key] for key in keys]))
    assert FeatureStore(tmp_path / "coco-00001-of-00003.h5").keys() == keys[1::3]
    (tmp_path / "coco-00001-of-00003.h5").rename(tmp_path / "elsewhere.h5")
    with pytest.raises(InputError, match=r"1 of 3 shards are missing \(first: coco-00001-of-00003.h5\)"):
        FeatureStore(tmp_path / "coco.h5")
    (tmp_path / "elsewhere.h5").rename(tmp_path / "coco-00001-of-00004.h5")
    with pytest.raises(InputError, match="several splits, of 00003 and of 00004"):
        FeatureStore(tmp_path / "coco.h5")
    write_store(tmp_path / "coco.h5", MANIFEST, features)
    with pytest.raises(InputError, match="beside shards of the same name"):
        FeatureStore(tmp_path / "coco.h5")


def test_a_list_of_stores_reads_as_one_unless_keys_repeat_or_features_differ(path, tmp_path, features):
    write_store(tmp_path / "vg.h5", MANIFEST.model_copy(update={"tool_version": "9"}), made(["1", "2"]))
    store = FeatureStore([path, tmp_path / "vg.h5"])
    assert len(store) == 44
    np.testing.assert_array_equal(store.get_many(["2", "图片"])[1], features["图片"])
    write_store(tmp_path / "twice.h5", MANIFEST, made(["2", "1", "0"]))
    with pytest.raises(
        InputError, match=r"2 image keys stand in more than one file \(first: 1 in .*vg.h5 and .*twice.h5"
    ):
        FeatureStore([path, tmp_path / "vg.h5", tmp_path / "twice.h5"])
    write_store(tmp_path / "other.h5", MANIFEST.model_copy(update={"resize": "crop"}), made(["5"]))
    with pytest.raises(InputError, match=r"cannot be read as one.*resize: squash, not crop"):
        FeatureStore([path, tmp_path / "other.h5"])
    with pytest.raises(InputError) as caught:
        FeatureStore([tmp_path / "a.h5", path, tmp_path / "b.h5"])
    assert len(caught.value.problems) == 2
    with pytest.raises(InputError, match="names no file"):
        FeatureStore([])


# ---- files that are no store


def _truncated(path):
    os.truncate(path, path.stat().st_size - 200)


def _cut_to_header(path):
    os.truncate(path, 700)


def _text(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def _groups(path):
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


def _without_tree(path):
    path.write_bytes(path.read_bytes().replace(b"TREE", b"LEAF", 1))


def _without_header(path):
    with h5py.File(path) as file:
        at = h5py.h5o.get_info(file["keys"].id).addr
    with path.open("rb+") as file:
        file.seek(at)
        file.write(bytes(16))


def _without_encoding(path):
    at = path.read_bytes().index(b"manifest") + 18  # where the attribute says which characters its text has
    with path.open("rb+") as file:
        file.seek(at)
        file.write(b"\xff")


def _group(path):
    with h5py.File(path, "r+") as file:
        del file["features"]
        file.create_group("features")


def _no_manifest_json(path):
    with h5py.File(path, "r+") as file:
        file.attrs["manifest"] = "{"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_truncated, "truncated or damaged.*copy it again, or delete it and run: python launch/extract_features.py"),
        (_cut_to_header, "truncated or damaged"),
        (_text, r"not an HDF5 file \(43 bytes\).*extract_features.py"),
        (_groups, "no manifest.*python -m feature_extraction.maintenance.manage import"),
        (_without_done, "no dataset done"),
        (_chunked, "features is .* not contiguous"),
        (_float32, "features is .* float32 contiguous"),
        (_group, "no dataset features"),
        (_without_tree, "truncated or damaged.*B-tree"),
        (_without_header, "truncated or damaged.*object header"),
        (_without_encoding, "truncated or damaged.*string encoding"),
        (_newer, "format 2, this version of the project reads up to 1"),
        (_newer_fields, "manifest not understood.*newer version"),
        (_no_manifest_json, "manifest not understood.*extract the features again"),
        (os.unlink, "no such feature store; make it"),
    ],
)
def test_a_file_that_is_no_sound_store_is_refused(path, damage, said):
    damage(path)
    with pytest.raises(InputError, match=said):
        FeatureStore(path)
    if damage is not os.unlink:
        with pytest.raises(InputError, match=said):
            StoreWriter(path, MANIFEST, ["a"]).__enter__()
        assert not path.with_name("store.h5.lock").exists(), "a refused writer lets go of the lock"


def test_a_store_replaced_or_cut_while_in_use_is_noticed(path, features):
    replaced, cut = FeatureStore(path), FeatureStore(path)
    cut.get("图片")
    os.truncate(path, path.stat().st_size - 200)
    with pytest.raises(InputError, match="truncated while it was in use"):
        cut.get_many(list(features))
    path.unlink()
    write_store(path, MANIFEST, features)
    with pytest.raises(InputError, match="replaced while it was in use"):
        replaced.get("图片")
