"""Commands `multitask-vl store` export and import."""

import os
import shutil

import h5py
import numpy as np
import pytest
import yaml

from feature_extraction.maintenance import export
from multitask_vl.config import load_config
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import create_store
from multitask_vl.data.store.manifest import check_manifest
from multitask_vl.data.store.writer import write_store
from tests.feature_extraction.sharded_store import FEATURES, KEYS, break_first_shard, run_store
from tests.store_fixtures import MANIFEST, random_features


@pytest.fixture
def config(tmp_path):
    """YAML file that describes how imported features were made."""
    path = tmp_path / "config.yaml"
    vision = {"model": "RN101", "weights_seed": 0, "image_size": 224}
    path.write_text(yaml.safe_dump({"vision": vision, "visual": {"feature_dim": 8, "pool": None}}))
    return path


def change_vision(config, **changes) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["vision"] |= changes
    config.write_text(yaml.safe_dump(settings))


# ---- export


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("layout", ["per-image", "groups"])
def test_export_and_import_round_trip(tmp_path, config, capsys, layout, dtype):
    features = {key: np.vstack([row, row])[:9] for key, row in FEATURES.items()}  # 9 cells: a square grid
    write_store(tmp_path / "s.h5", MANIFEST.model_copy(update={"grid": (3, 3)}), features)
    target = tmp_path / ("old.h5" if layout == "groups" else "data_clip_RN101_att")
    assert run_store("export", tmp_path / "s.h5", target, "--layout", layout, "--dtype", dtype) == 0
    assert "30 of 30 images (30 written)" in capsys.readouterr().out
    path = target if layout == "groups" else target / "007.h5"
    with h5py.File(path) as file:
        stored = file["007/features"]
        assert (stored.shape, stored.dtype) == ((9, 8), np.dtype(dtype))
        read = np.zeros((9, 8), np.float32)  # as VL-Adapter's loader does
        stored.read_direct(read)
        np.testing.assert_array_equal(read, features["007"].astype(np.float32))
    assert run_store("import", target, tmp_path / "back.h5", "--config", config) == 0
    store = FeatureStore(tmp_path / "back.h5")
    np.testing.assert_array_equal(store.get_many(KEYS), np.stack([features[key] for key in KEYS]))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_numpy_export_has_the_rows_of_the_store(shards, tmp_path, capsys, dtype):
    target = tmp_path / "new" / "nano"
    assert run_store("export", shards, target, "--layout", "numpy", "--dtype", dtype) == 0
    assert "30 of 30 images (30 written)" in capsys.readouterr().out
    assert sorted(os.listdir(target)) == ["features.npy", "keys.txt"]
    array = np.load(target / "features.npy", mmap_mode="r")
    assert (array.shape, array.dtype) == ((30, 6, 8), np.dtype(dtype))
    keys = (target / "keys.txt").read_text().splitlines()
    assert sorted(keys) == KEYS
    np.testing.assert_array_equal(array, FeatureStore(shards).get_many(keys))


def test_numpy_export_skips_missing_and_corrupt_rows(shards, tmp_path, capsys, monkeypatch):
    break_first_shard(tmp_path)
    args = ["export", shards, tmp_path / "nano", "--layout", "numpy"]
    assert run_store(*args) == 1
    output = capsys.readouterr().out
    assert "28 of 30 images (28 written)" in output
    assert "1 rows are corrupt (checksum) and were skipped:\n  006" in output
    assert "1 rows are not extracted yet:\n  003" in output
    array = np.load(tmp_path / "nano" / "features.npy")
    keys = (tmp_path / "nano" / "keys.txt").read_text().splitlines()
    assert sorted(keys) == [key for key in KEYS if key not in ("003", "006")]
    np.testing.assert_array_equal(array, np.stack([FEATURES[key] for key in keys]))
    with (tmp_path / "nano" / "features.npy").open("rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
    assert run_store(*args) == 2
    assert "features.npy: exists already; name another target" in capsys.readouterr().err
    create_store(tmp_path / "undone.h5", MANIFEST, ["a"])
    assert run_store("export", tmp_path / "undone.h5", tmp_path / "empty", "--layout", "numpy") == 1
    assert np.load(tmp_path / "empty" / "features.npy").shape == (0, 6, 8)
    write_store(tmp_path / "odd.h5", MANIFEST, random_features(["a\nb"]))
    assert run_store("export", tmp_path / "odd.h5", tmp_path / "odd", "--layout", "numpy") == 2
    assert "1 image keys cannot be used in the layout numpy (first: 'a\\nb')" in capsys.readouterr().err

    def failing(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.os, "posix_fallocate", failing)
    with pytest.raises(OSError, match="No space"):
        export.export_store(shards, tmp_path / "full", "numpy")
    assert list((tmp_path / "full").iterdir()) == [], "nothing is left of an export that failed"


def test_export_resumes_and_replaces_truncated_files(shards, tmp_path, capsys):
    target = tmp_path / "old"
    assert run_store("export", shards, target) == 0
    (target / "004.h5").unlink()
    (target / "005.h5").write_bytes((target / "005.h5").read_bytes()[:300])
    capsys.readouterr()
    assert run_store("export", shards, target) == 0
    assert "30 of 30 images (2 written, 28 existed)" in capsys.readouterr().out
    assert sorted(path.name for path in target.iterdir()) == [f"{key}.h5" for key in KEYS]
    for key in ("004", "005"):
        with h5py.File(target / f"{key}.h5") as file:
            np.testing.assert_array_equal(file[f"{key}/features"][()], FEATURES[key])


def test_export_reports_missing_and_corrupt_rows(shards, tmp_path, capsys, monkeypatch):
    break_first_shard(tmp_path)
    assert run_store("export", shards, tmp_path / "old.h5", "--layout", "groups") == 1
    output = capsys.readouterr().out
    assert "28 of 30 images" in output
    assert "1 rows are corrupt (checksum) and were skipped:\n  006" in output
    assert "1 rows are not extracted yet:\n  003" in output
    write_store(tmp_path / "odd.h5", MANIFEST, random_features(["a/b"]))
    (tmp_path / "file").touch()
    for args, message in (
        ((shards, tmp_path / "old.h5", "--layout", "groups"), "exists already; name another target"),
        ((tmp_path / "odd.h5", tmp_path / "x"), "1 image keys cannot be used in the layout per-image (first: 'a/b')"),
        ((shards, tmp_path / "file"), "is a file; the layout per-image writes a folder"),
        ((shards, tmp_path / "file", "--layout", "numpy"), "is a file; the layout numpy writes a folder"),
    ):
        assert run_store("export", *args) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 10))
    for layout in ("per-image", "numpy"):
        assert run_store("export", shards, tmp_path / "new", "--layout", layout) == 2
        assert "GB are free; make room" in capsys.readouterr().err
    assert list((tmp_path / "new").iterdir()) == []


# ---- import


def write_per_image(folder, features, dtype="f4"):
    """Write one HDF5 file per image, as VL-Adapter does."""
    (folder / "data_clip_RN101_att").mkdir(parents=True)
    for key, value in features.items():
        with h5py.File(folder / "data_clip_RN101_att" / f"{key}.h5", "w") as file:
            file[f"{key}/features"] = value.astype(dtype)
    return folder


def write_groups(folder, features, dtype="f4"):
    """Write one HDF5 file with a group per image."""
    folder.mkdir()
    with h5py.File(folder / "big.h5", "w") as file:
        for key, value in features.items():
            file[f"{key}/features"] = value.astype(dtype)
            file[f"{key}/boxes"] = np.zeros((6, 4))
    return folder / "big.h5"


@pytest.mark.parametrize("write", [write_per_image, write_groups])
@pytest.mark.parametrize("shape", [(4, 8), (2, 2, 8), (1, 4, 8), (1, 8), (2, 3, 8)])
def test_import_reads_both_layouts(config, tmp_path, capsys, write, shape):
    rng = np.random.default_rng(0)
    features = {f"COCO_val2014_{n}": rng.standard_normal(shape).astype("f2") for n in range(5)}
    source = write(tmp_path / "old", features)
    (tmp_path / "old" / "README.txt").touch()
    assert run_store("import", source, tmp_path / "new.h5", "--config", config) == 0
    output = capsys.readouterr().out
    assert "new.h5: 5 of 5 images" in output
    assert f"as configured in {config}, not verified: RN101 with weights random:0 at 224 px (squash)" in output
    assert ("not imported: boxes of 5 images" in output) == (write is write_groups)
    store = FeatureStore(tmp_path / "new.h5")
    assert store.manifest.grid == {4: (2, 2), 1: (1, 1), 6: (2, 3)}[int(np.prod(shape[:-1]))]
    for key, value in features.items():
        np.testing.assert_array_equal(store.get(key), value.reshape(-1, 8))
    loaded = load_config(config)
    assert check_manifest(store.manifest, loaded.vision, loaded.visual) == []
    assert store.manifest.activation is None, "unknown"


def test_import_records_the_configuration(config, tmp_path):
    source = write_per_image(tmp_path / "old", {str(n): np.zeros(8, "f2") for n in range(3)})
    change_vision(config, output="pooled", mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    assert run_store("import", source, tmp_path / "new.h5", "--config", config) == 0
    manifest, loaded = FeatureStore(tmp_path / "new.h5").manifest, load_config(config)
    assert (manifest.layer, manifest.mean, manifest.std) == ("pooled", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert check_manifest(manifest, loaded.vision, loaded.visual) == []


@pytest.mark.parametrize(("output", "pool", "expected"), [("pooled", None, "1x1"), ("grid", [1, 2], "1x2")])
def test_import_rejects_another_grid_than_configured(config, tmp_path, capsys, output, pool, expected):
    source = write_per_image(tmp_path / "old", {"1": np.zeros((4, 8), "f2")})
    change_vision(config, output=output, pool=pool)
    assert run_store("import", source, tmp_path / "new.h5", "--config", config) == 2
    message = capsys.readouterr().err
    assert f"are 2x2 cells, but vision.output={output}" in message
    assert f"mean {expected}; correct these two" in message
    assert not (tmp_path / "new.h5").exists()


@pytest.mark.parametrize("write", [write_per_image, write_groups])
def test_import_lists_failures_and_resumes(config, tmp_path, capsys, monkeypatch, write):
    monkeypatch.setattr("feature_extraction.maintenance.import_features.BATCH", 2)
    features = {str(n): np.full((4, 8), n, "f2") for n in range(7)}
    source = write(tmp_path / "old", {**features, "3": np.zeros((9, 8)), "5": np.zeros((4, 9))})
    if write is write_per_image:
        broken = source / "data_clip_RN101_att" / "6.h5"
        broken.write_bytes(broken.read_bytes()[:200])
        with h5py.File(source / "8.h5", "w") as file:
            file["8/features"] = "text"
    else:
        with h5py.File(source, "r+") as file:
            del file["6/features"]
            del file["3/features"]
            file["3/features"] = h5py.Empty("f4")
            file["8/features"] = "text"
    args = ["import", source, tmp_path / "new.h5", "--config", config]
    assert run_store(*args) == 1
    output = capsys.readouterr().out
    assert "4 of 8 images" in output
    assert "4 images could not be imported:" in output
    assert "  5: features of shape (4, 9), not (4, 8)" in output
    assert "  8: 8/features is not an array of numbers" in output
    assert FeatureStore(tmp_path / "new.h5").keys() == ["0", "1", "2", "4"]
    assert run_store(*args) == 1
    assert "4 of 8 images" in capsys.readouterr().out


def test_import_rejects_unusable_sources(config, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.h5").write_text("text")
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["features"] = np.zeros((3, 4))
    with h5py.File(tmp_path / "bare.h5", "w") as file:
        file["1/boxes"] = np.zeros((3, 4))
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file["1/features"] = np.zeros((5, 8))
    with h5py.File(tmp_path / "large.h5", "w") as file:
        file["1/features"] = np.full((4, 8), 1e5)
    write_per_image(tmp_path / "twice" / "a", {"1": np.zeros((4, 8))})
    write_per_image(tmp_path / "twice" / "b", {"1": np.zeros((4, 8))})
    for source, message in {
        "gone": "neither a folder of KEY.h5 files nor an HDF5 file",
        "empty": "has no KEY.h5 files",
        "text.h5": "cannot be read as HDF5",
        "flat.h5": "has no groups",
        "bare.h5": "none of 1 images has features (first: no dataset 1/features)",
        "odd.h5": "features of shape (5, 8) (first image: 1) are not a square grid",
        "twice": "image key 1 names two files",
        "large.h5": "do not fit float16 (first: 1)",
    }.items():
        assert not (tmp_path / "new.h5").exists()
        assert run_store("import", tmp_path / source, tmp_path / "new.h5", "--config", config) == 2
        assert message in capsys.readouterr().err
