"""Stores behind a URL: rows by range requests, network faults, messages that name the fix."""

import multiprocessing
import os
import sys

import numpy as np
import pytest

from multitask_vl.cli.main import main
from multitask_vl.config.schema import FeaturesConfig
from multitask_vl.data.store import remote_rows
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import read_local_header
from multitask_vl.data.store.open import open_store
from multitask_vl.data.store.writer import write_store
from multitask_vl.errors import InputError
from tests.range_server import serve_folder
from tests.store_fixtures import MANIFEST, SHAPE, random_features

pytest.importorskip("aiohttp", reason="fsspec's http needs aiohttp: pip install -r requirements.txt")
FEATURES = random_features([f"COCO_val2014_{n:012d}" for n in range(12)] + ["图片"])


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_rows, "PAUSE_S", 0.01)
    (tmp_path / "www").mkdir()
    write_store(tmp_path / "www" / "store.h5", MANIFEST, FEATURES)
    with serve_folder(tmp_path / "www") as server:
        yield server


def test_remote_store_requests_only_the_rows_it_reads(server):
    store, local = FeatureStore(server.url("store.h5")), FeatureStore(server.folder / "store.h5")
    assert store.keys() == local.keys()
    assert store.manifest == local.manifest
    assert store.missing(["图片", "x"]) == ["x"]
    keys = [local.keys()[i] for i in (5, 0, 12, 5, 7)]
    server.requested.clear()
    np.testing.assert_array_equal(store.get_many(keys), local.get_many(keys))
    row_bytes = SHAPE[0] * SHAPE[1] * 2
    assert len(server.requested) == 4, "a repeated image is fetched once"
    assert all(last + 1 - first == row_bytes for first, last in server.requested)
    np.testing.assert_array_equal(store.get_many(local.keys()), local.get_many(local.keys()))


def _read(store, keys):
    return store.get_many(keys)


def test_open_remote_store_is_passed_to_a_forked_process(server):
    store = FeatureStore(server.url("store.h5"))
    keys = store.keys()
    store.get(keys[0])  # opens connections
    with multiprocessing.get_context("fork").Pool(1) as pool:
        features = pool.apply_async(_read, (store, keys[::2])).get(60)
    np.testing.assert_array_equal(features, np.stack([FEATURES[key] for key in keys[::2]]))
    np.testing.assert_array_equal(store.get("图片"), FEATURES["图片"])


def test_failed_and_corrupt_responses_are_requested_again(server):
    store = FeatureStore(server.url("store.h5"))
    server.failures_left, server.corruptions_left = 3, 2
    np.testing.assert_array_equal(store.get_many(store.keys()), np.stack(list(FEATURES.values())))
    server.failures_left = 10**6
    with pytest.raises(InputError, match=r"1 of 1 rows could not be read in 4 attempts \(row 0: .*503"):
        store.get(store.keys()[0])
    server.failures_left, server.corruptions_left = 0, 10**6
    with pytest.raises(InputError, match=r"do not match the store's checksum; was it replaced\?"):
        store.get(store.keys()[0])


def test_unreadable_urls_name_the_fix(server, monkeypatch):
    content = (server.folder / "store.h5").read_bytes()
    (server.folder / "text.h5").write_text("text" * 100)
    (server.folder / "cut.h5").write_bytes(content[:-500])
    (server.folder / "bad.h5").write_bytes(content.replace(b"TREE", b"LEAF", 1))
    (server.folder / "empty.h5").touch()
    for name, message in {
        "gone.h5": r"no feature store can be read there \(.*404.*curl -I http",
        "text.h5": "not an HDF5 file",
        "cut.h5": "truncated or corrupt",
        "bad.h5": "truncated or corrupt.*B-tree",
        "empty.h5": "does not support range requests",
    }.items():
        with pytest.raises(InputError, match=message):
            FeatureStore(server.url(name))
    server.ranges = False
    with pytest.raises(InputError, match=r"range requests.*Download.*curl -o store.h5 http.*features.store=store.h5"):
        FeatureStore(server.url("store.h5"))
    with pytest.raises(InputError, match=r"no feature store can be read there \(.*Connect.*curl -I"):
        FeatureStore("http://127.0.0.1:9/store.h5")
    with pytest.raises(InputError, match=r"Protocol not known.*supported are"):
        FeatureStore("nonsense://store.h5")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match="pip install s3fs"):
        FeatureStore("s3://bucket/store.h5")


def test_other_fsspec_schemes_and_lists_of_urls(server, tmp_path):
    import fsspec

    with fsspec.open("memory://bucket/store.h5", "wb") as file:
        file.write((server.folder / "store.h5").read_bytes())
    write_store(server.folder / "b.h5", MANIFEST, random_features(["b", "a"]))
    features = FeaturesConfig.model_validate({"store": ["memory://bucket/store.h5", server.url("b.h5")]})
    store = open_store(features, tmp_path)
    assert len(store) == 15
    np.testing.assert_array_equal(store.get_many(["b", "图片"])[1], FEATURES["图片"])
    with pytest.raises(InputError, match="no feature store can be read there"):
        FeatureStore("memory://bucket/other.h5")


def test_remote_store_is_copied_and_loaded_into_memory(server, tmp_path):
    features = FeaturesConfig.model_validate({"store": server.url("store.h5"), "local_copy": "near", "cache": "memory"})
    store = open_store(features, tmp_path)
    (copy,) = (tmp_path / "near").iterdir()
    assert copy.read_bytes() == (server.folder / "store.h5").read_bytes()
    assert store.paths == [copy]
    os.unlink(copy)
    np.testing.assert_array_equal(store.get("图片"), FEATURES["图片"])
    server.requested.clear()
    write_store(copy, MANIFEST, FEATURES)
    assert open_store(features, tmp_path).keys() == store.keys()
    start = read_local_header(copy).features_offset
    assert all(first < start for first, last in server.requested if first != last), "no features are requested"
    server.failures_left = 10**6
    with pytest.raises(InputError, match="503"):
        open_store(features, tmp_path)


def test_store_commands_accept_a_url(server, capsys):
    assert not main(["store", "inspect", server.url("store.h5")])
    assert "13, of which 13 done" in capsys.readouterr().out
    assert not main(["store", "verify", server.url("store.h5")])
    assert "13 of 13 rows are" in capsys.readouterr().out
