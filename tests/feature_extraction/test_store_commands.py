"""Do the commands around stores do what they say: exit codes, short errors, inspection, import of old layouts?"""

import json
import os

import h5py
import numpy as np
import pytest
import yaml

from feature_extraction.maintenance import manage
from launch import extract_features
from multitask_vl.data.store.feature_store import FeatureStore, check_manifest
from multitask_vl.data.store.format import read_layout
from multitask_vl.data.store.row_file import RowFile
from multitask_vl.data.store.writer import write_store
from tests.drawn_images import DIM, SIDE, tiny_config
from tests.store_fixtures import MANIFEST, made


@pytest.fixture
def config(tmp_path):
    """A YAML over ten pictures and the tiny trunk."""
    made_of = json.loads(tiny_config(tmp_path).model_dump_json(include={"data_dir", "clip", "features"}))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**made_of, "visual": {"feature_dim": DIM, "pool": None}}))
    return path


def extract(config, *overrides) -> int:
    return extract_features.main(["--config", str(config), *overrides])


# ---- launch/extract_features.py


def test_a_complete_extraction_exits_0_and_says_what_it_made(config, tmp_path, capsys):
    assert extract(config) == 0
    said = capsys.readouterr()
    assert f"{tmp_path / 'features.h5'}: 10 of 10 images (10 new at " in said.out
    assert "2x2x256 float16" in said.out
    assert "10/10" in said.err, "the progress bar"
    assert "img/s" in said.err
    assert "note:" not in said.out
    assert extract(config, "visual.feature_dim=512") == 0
    said = capsys.readouterr().out
    assert "10 of 10 images (0 new)" in said
    assert "note: training on this store needs visual.feature_dim=256; the configuration says 512" in said


def test_unreadable_images_exit_1_and_are_told(config, tmp_path, capsys):
    (tmp_path / "images" / "COCO_001.png").write_text("broken")
    (tmp_path / "images" / "LICENCE").touch()
    assert extract(config) == 1
    said = capsys.readouterr().out
    assert "9 of 10 images" in said
    assert "1 images could not be read (first: " in said
    assert f"all of them: {tmp_path / 'failures.jsonl'}" in said
    assert "1 files in the image folders are no images" in said


def test_damage_turned_and_vanished_images_are_told(config, tmp_path, capsys):
    from PIL import Image

    images = tmp_path / "images"
    exif = Image.Exif()
    exif[0x112] = 6
    with Image.open(images / "COCO_000.jpg") as image:
        image.save(images / "COCO_000.jpg", exif=exif)
    assert extract(config) == 0
    assert "1 images were turned upright" in capsys.readouterr().out
    layout = read_layout(tmp_path / "features.h5")
    with (tmp_path / "features.h5").open("r+b") as file:
        file.seek(layout.features_at + 3 * layout.row_bytes)
        file.write(b"\xff\x01")
    (images / "COCO_001.png").unlink()
    assert extract(config) == 0
    said = capsys.readouterr().out
    assert "1 stored rows were damaged and have been redone (first: COCO_003)" in said
    assert "1 rows of the store have no image" in said


def test_bad_input_exits_2_without_a_traceback(config, tmp_path, capsys):
    assert extract(config, "features.images=[nowhere]") == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: features.images: ")
    assert "Traceback" not in said.err
    assert extract(config, "clip.image_size=50") == 2
    (tmp_path / "features.h5").write_text("no store")
    assert extract(config) == 2
    assert "not an HDF5 file" in capsys.readouterr().err


def test_ctrl_c_says_that_nothing_is_lost(config, capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("feature_extraction.command.extract", interrupted)
    assert extract(config) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


# ---- inspect and verify


def test_inspect_shows_the_manifest(tmp_path, capsys):
    write_store(tmp_path / "s.h5", MANIFEST.model_copy(update={"weights_sha256": None}), made(["b", "a"]))
    assert manage.main(["inspect", str(tmp_path / "s.h5")]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if "first key" not in line)
    assert told["rows"] == "2, of which 2 done (100.0 %)"
    assert told["grid"] == "2 x 3"
    assert told["encoder"] == "RN101"
    assert told["weights_sha256"] == "not known"
    assert told["bytes"].endswith("(96 an image)")


def test_verify_lists_what_is_wrong(tmp_path, capsys):
    for at in range(2):
        write_store(tmp_path / f"s-0000{at}-of-00002.h5", MANIFEST, made([f"{n}" for n in range(at, 40, 2)]))
    store = tmp_path / "s.h5"
    assert manage.main(["verify", str(store)]) == 0
    assert "40 of 40 rows are good" in capsys.readouterr().out
    file = RowFile(read_layout(tmp_path / "s-00000-of-00002.h5"), writable=True)
    for row in range(12):
        file.forget(row)
    file._put(b"\x7b\x7b\x7b", file.layout.features_at + 13 * file.layout.row_bytes)
    file.close()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "41.jpg").touch()
    (tmp_path / "images" / "1.jpg").touch()
    assert manage.main(["verify", str(store), "--images", str(tmp_path / "images")]) == 1
    said = capsys.readouterr().out
    assert "27 of 40 rows are good" in said
    assert "1 rows are damaged (checksum):\n" in said
    assert "12 rows are not extracted yet:" in said
    assert "... and 2 more" in said
    assert "1 images have no row:\n  41\n" in said
    assert "39 rows belong to images that are not in these folders" in said
    assert "mend all of this by: python launch/extract_features.py" in said


def test_verify_of_a_truncated_store_exits_2(tmp_path, capsys):
    write_store(tmp_path / "s.h5", MANIFEST, made(["a"]))
    os.truncate(tmp_path / "s.h5", 900)
    assert manage.main(["verify", str(tmp_path / "s.h5")]) == 2
    assert "truncated or damaged" in capsys.readouterr().err


# ---- import


def per_image(folder, features, dtype="f4"):
    (folder / "data_clip_RN101_att").mkdir(parents=True)
    for key, value in features.items():
        with h5py.File(folder / "data_clip_RN101_att" / f"{key}.h5", "w") as file:
            file[f"{key}/features"] = value.astype(dtype)
    return folder


def one_file(folder, features, dtype="f4"):
    folder.mkdir()
    with h5py.File(folder / "big.h5", "w") as file:
        for key, value in features.items():
            file[f"{key}/features"] = value.astype(dtype)
            file[f"{key}/boxes"] = np.zeros((6, 4))
    return folder / "big.h5"


@pytest.mark.parametrize("layout", [per_image, one_file])
@pytest.mark.parametrize("shape", [(4, 8), (2, 2, 8), (1, 4, 8), (1, 8), (2, 3, 8)])
def test_both_old_layouts_become_a_store(config, tmp_path, capsys, layout, shape):
    rng = np.random.default_rng(0)
    features = {f"COCO_val2014_{n}": rng.standard_normal(shape).astype("f2") for n in range(5)}
    source = layout(tmp_path / "old", features)
    (tmp_path / "old" / "README.txt").touch()
    assert manage.main(["import", str(source), str(tmp_path / "new.h5"), "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert "new.h5: 5 of 5 images" in said
    assert f"on the word of {config}: made by tiny with weights tiny.safetensors at {SIDE} px (squash)" in said
    assert ("left behind: boxes of 5 images" in said) == (layout is one_file)
    store = FeatureStore(tmp_path / "new.h5")
    assert store.manifest.grid == {4: (2, 2), 1: (1, 1), 6: (2, 3)}[int(np.prod(shape[:-1]))]
    for key, value in features.items():
        np.testing.assert_array_equal(store.get(key), value.reshape(-1, 8))
    clip, visual = tiny_config(tmp_path).clip, manage.load_config(config).visual
    assert check_manifest(store.manifest, clip, visual.model_copy(update={"feature_dim": 8})) == []
    assert store.manifest.activation is None, "nobody can know"


def test_what_the_configuration_says_of_imported_features_is_recorded(config, tmp_path, capsys):
    source = per_image(tmp_path / "old", {str(n): np.zeros(8, "f2") for n in range(3)})
    made = yaml.safe_load(config.read_text())
    made["clip"] |= {"layer": "pooled", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    config.write_text(yaml.safe_dump(made))
    assert manage.main(["import", str(source), str(tmp_path / "new.h5"), "--config", str(config)]) == 0
    manifest, loaded = FeatureStore(tmp_path / "new.h5").manifest, manage.load_config(config)
    assert (manifest.layer, manifest.mean, manifest.std) == ("pooled", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert (
        check_manifest(manifest, loaded.clip, loaded.visual.model_copy(update={"feature_dim": 8, "pool": None})) == []
    )


@pytest.mark.parametrize(("layer", "pool", "made"), [("pooled", None, "1x1"), ("grid", [1, 2], "1x2")])
def test_features_that_are_not_the_configured_cells_are_refused(config, tmp_path, capsys, layer, pool, made):
    source = per_image(tmp_path / "old", {"1": np.zeros((4, 8), "f2")})
    stated = yaml.safe_load(config.read_text())
    stated["clip"] |= {"layer": layer, "pool": pool}
    config.write_text(yaml.safe_dump(stated))
    assert manage.main(["import", str(source), str(tmp_path / "new.h5"), "--config", str(config)]) == 2
    assert f"are 2x2 cells; clip.layer={layer}" in (said := capsys.readouterr().err)
    assert f"make {made}; correct these two" in said
    assert not (tmp_path / "new.h5").exists()


@pytest.mark.parametrize("layout", [per_image, one_file])
def test_what_cannot_be_imported_is_listed_and_the_rest_goes_on_later(config, tmp_path, capsys, monkeypatch, layout):
    monkeypatch.setattr("feature_extraction.maintenance.import_features.BATCH", 2)
    features = {str(n): np.full((4, 8), n, "f2") for n in range(7)}
    source = layout(tmp_path / "old", {**features, "3": np.zeros((9, 8)), "5": np.zeros((4, 9))})
    broken = source / "data_clip_RN101_att" / "6.h5" if layout is per_image else source
    if layout is per_image:
        broken.write_bytes(broken.read_bytes()[:200])
        with h5py.File(source / "8.h5", "w") as file:
            file["8/features"] = "text"
    else:
        with h5py.File(broken, "r+") as file:
            del file["6/features"]
            del file["3/features"]
            file["3/features"] = h5py.Empty("f4")
            file["8/features"] = "text"
    command = ["import", str(source), str(tmp_path / "new.h5"), "--config", str(config)]
    assert manage.main(command) == 1
    said = capsys.readouterr().out
    assert "4 of 8 images" in said
    assert "4 images could not be imported:" in said
    assert "  5: features of shape (4, 9), not (4, 8)" in said
    assert "  8: 8/features is no array of numbers" in said
    assert FeatureStore(tmp_path / "new.h5").keys() == ["0", "1", "2", "4"]
    assert manage.main(command) == 1
    assert "4 of 8 images" in capsys.readouterr().out


def test_a_source_without_features_is_refused(config, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.h5").write_text("text")
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["features"] = np.zeros((3, 4))
    with h5py.File(tmp_path / "bare.h5", "w") as file:
        file["1/boxes"] = np.zeros((3, 4))
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file["1/features"] = np.zeros((5, 8))
    per_image(tmp_path / "twice" / "a", {"1": np.zeros((4, 8))})
    per_image(tmp_path / "twice" / "b", {"1": np.zeros((4, 8))})
    for source, said in {
        "gone": "neither a folder of KEY.h5 files nor an HDF5 file",
        "empty": "holds no KEY.h5 files",
        "text.h5": "cannot be read as HDF5",
        "flat.h5": "holds no groups",
        "bare.h5": "none of 1 images has features (first: no dataset 1/features)",
        "odd.h5": "features of shape (5, 8) (first image: 1) are no square grid",
        "twice": "image key 1 stands for two files",
    }.items():
        assert manage.main(["import", str(tmp_path / source), str(tmp_path / "new.h5"), "--config", str(config)]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "new.h5").exists()


def test_imported_numbers_beyond_float16_are_refused(config, tmp_path, capsys):
    source = one_file(tmp_path / "old", {"1": np.full((4, 8), 1e5)})
    assert manage.main(["import", str(source), str(tmp_path / "new.h5"), "--config", str(config)]) == 2
    assert "do not fit float16 (first: 1)" in capsys.readouterr().err
