"""Is a store behind a URL the same store: rows by ranges of bytes, faults of the network, errors that can be mended?"""

import multiprocessing
import os
import sys

import numpy as np
import pytest

from feature_extraction.maintenance import manage
from multitask_vl.config.schema import FeaturesConfig
from multitask_vl.data.store import remote_rows
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import read_layout
from multitask_vl.data.store.open import open_store
from multitask_vl.data.store.writer import write_store
from multitask_vl.errors import InputError
from tests.range_server import serving
from tests.store_fixtures import MANIFEST, SHAPE, made

pytest.importorskip("aiohttp", reason="fsspec's http needs aiohttp: pip install -r requirements.txt")
FEATURES = made([f"COCO_val2014_{n:012d}" for n in range(40)] + ["图片"])


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_rows, "PAUSE_S", 0.01)
    (tmp_path / "www").mkdir()
    write_store(tmp_path / "www" / "store.h5", MANIFEST, FEATURES)
    with serving(tmp_path / "www") as server:
        yield server


def test_reads_what_a_local_reader_reads_and_only_the_rows_that_are_asked_for(server):
    store, local = FeatureStore(server.url("store.h5")), FeatureStore(server.folder / "store.h5")
    assert store.keys() == local.keys()
    assert store.manifest == local.manifest
    assert store.missing(["图片", "x"]) == ["x"]
    keys = [local.keys()[at] for at in (5, 0, 40, 5, 17)]
    server.asked.clear()
    np.testing.assert_array_equal(store.get_many(keys), local.get_many(keys))
    row_bytes = SHAPE[0] * SHAPE[1] * 2
    assert len(server.asked) == 4, "a repeated image is fetched once"
    assert all(last + 1 - first == row_bytes for first, last in server.asked)
    np.testing.assert_array_equal(store.get_many(local.keys()), local.get_many(local.keys()))


def _read(store, keys):
    return store.get_many(keys)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_an_open_remote_store_goes_to_other_processes(server, start):
    store = FeatureStore(server.url("store.h5"))
    keys = store.keys()
    store.get(keys[0])  # connections are open now
    with multiprocessing.get_context(start).Pool(2) as pool:
        parts = [pool.apply_async(_read, (store, keys[at::2])) for at in range(2)]
        for at, part in enumerate(parts):
            np.testing.assert_array_equal(part.get(60), np.stack([FEATURES[key] for key in keys[at::2]]))
    np.testing.assert_array_equal(store.get("图片"), FEATURES["图片"])


def test_what_fails_or_comes_wrong_is_asked_for_again(server):
    store = FeatureStore(server.url("store.h5"))
    server.failing, server.flipped = 3, 2
    np.testing.assert_array_equal(store.get_many(store.keys()), np.stack(list(FEATURES.values())))
    server.failing = 10**6
    with pytest.raises(InputError, match=r"1 of 1 rows could not be read in 4 attempts \(row 0: .*503"):
        store.get(store.keys()[0])
    server.failing, server.flipped = 0, 10**6
    with pytest.raises(InputError, match=r"another checksum than the store recorded; was it replaced\?"):
        store.get(store.keys()[0])


def test_what_cannot_be_read_says_how_to_mend_it(server, monkeypatch):
    (server.folder / "text.h5").write_text("text" * 100)
    (server.folder / "cut.h5").write_bytes((server.folder / "store.h5").read_bytes()[:-500])
    (server.folder / "bad.h5").write_bytes((server.folder / "store.h5").read_bytes().replace(b"TREE", b"LEAF", 1))
    (server.folder / "empty.h5").touch()
    for name, said in {
        "gone.h5": r"no feature store can be read there \(.*404.*curl -I http",
        "text.h5": "not an HDF5 file",
        "cut.h5": "truncated or damaged",
        "bad.h5": "truncated or damaged.*B-tree",
        "empty.h5": "does not give ranges of bytes",
    }.items():
        with pytest.raises(InputError, match=said):
            FeatureStore(server.url(name))
    server.ranges = False
    with pytest.raises(InputError, match=r"ranges of bytes.*Download.*curl -o store.h5 http.*features.store=store.h5"):
        FeatureStore(server.url("store.h5"))
    with pytest.raises(InputError, match=r"no feature store can be read there \(.*Connect.*curl -I"):
        FeatureStore("http://127.0.0.1:9/store.h5")
    with pytest.raises(InputError, match=r"Protocol not known.*known are"):
        FeatureStore("nonsense://store.h5")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match="pip install s3fs"):
        FeatureStore("s3://bucket/store.h5")


def test_other_schemes_of_fsspec_and_lists_of_shards(server, tmp_path):
    import fsspec

    with fsspec.open("memory://bucket/store.h5", "wb") as file:
        file.write((server.folder / "store.h5").read_bytes())
    write_store(server.folder / "b.h5", MANIFEST, made(["b", "a"]))
    features = FeaturesConfig.model_validate({"store": ["memory://bucket/store.h5", server.url("b.h5")]})
    store = open_store(features, tmp_path)
    assert len(store) == 43
    np.testing.assert_array_equal(store.get_many(["b", "图片"])[1], FEATURES["图片"])
    with pytest.raises(InputError, match="no feature store can be read there"):
        FeatureStore("memory://bucket/other.h5")


def test_a_remote_store_is_copied_and_held_in_memory(server, tmp_path):
    features = FeaturesConfig.model_validate({"store": server.url("store.h5"), "local_copy": "near", "read": "ram"})
    store = open_store(features, tmp_path)
    (copy,) = (tmp_path / "near").iterdir()
    assert copy.read_bytes() == (server.folder / "store.h5").read_bytes()
    assert store.paths == [copy]
    os.unlink(copy)
    np.testing.assert_array_equal(store.get("图片"), FEATURES["图片"])
    server.asked.clear()
    write_store(copy, MANIFEST, FEATURES)
    assert open_store(features, tmp_path).keys() == store.keys()
    features_at = read_layout(copy).features_at
    assert all(first < features_at for first, last in server.asked if first != last), "no feature is asked for"
    server.failing = 10**6
    with pytest.raises(InputError, match="503"):
        open_store(features, tmp_path)


def test_the_commands_take_a_url(server, capsys):
    assert manage.main(["inspect", server.url("store.h5")]) == 0
    assert "41, of which 41 done" in capsys.readouterr().out
    assert manage.main(["verify", server.url("store.h5")]) == 0
    assert "41 of 41 rows are good" in capsys.readouterr().out
