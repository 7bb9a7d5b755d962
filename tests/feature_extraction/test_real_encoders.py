"""Do real photographs and real weights go through: RN101 at its size, EfficientNet-Lite0 with ImageNet weights?"""

import numpy as np
import pytest
from safetensors.torch import load_file

from feature_extraction.extract import extract
from multitask_vl.config.schema import ClipConfig, Config
from multitask_vl.data.store.feature_store import FeatureStore, check_manifest
from tests.lite0_weights import MEAN, STD, WHEEL, write_weights

SETS = ("coco_photos", "vqa_rad", "nlvr1")


@pytest.fixture(scope="module")
def photos(shared, tmp_path_factory):
    """Four pictures of each set."""
    folder = tmp_path_factory.mktemp("photos") / "images"
    for name in SETS:
        (folder / name).mkdir(parents=True)
        for path in sorted((shared / "data" / name / "images").iterdir())[:4]:
            (folder / name / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    if not write_weights(path):
        pytest.skip(f"the wheel {WHEEL.replace('_', '-')} is not installed")
    return path


@pytest.mark.shared
def test_photographs_drawings_and_scans_through_a_trunk_with_real_weights(photos, lite0, tmp_path):
    clip = {"model": "timm:efficientnet_lite0", "pretrained": str(lite0), "mean": MEAN, "std": STD}
    features = {"store": "f.h5", "images": [photos], "batch_size": 8}
    config = Config.model_validate(
        {"data_dir": tmp_path, "clip": clip, "features": features, "visual": {"feature_dim": 1280}}
    )
    summary = extract(config, "cpu")
    assert (summary.images, summary.complete) == (12, True)
    store = FeatureStore(tmp_path / "f.h5")
    assert check_manifest(store.manifest, config.clip, config.visual) == []
    assert (store.manifest.grid, store.manifest.dim, store.manifest.layer) == ((7, 7), 1280, "forward_features")
    vectors = {key: store.get(key).astype("f4").mean(0) for key in store.keys()}  # noqa: SIM118 (not a mapping)
    vectors = {key: value / np.linalg.norm(value) for key, value in vectors.items()}
    for name in ("vqa_rad", "nlvr1"):  # what scans and drawings have in common, these weights see
        own = {path.stem for path in (photos / name).iterdir()}
        for key in own:
            nearest = max(vectors.keys() - {key}, key=lambda other: float(vectors[key] @ vectors[other]))
            assert nearest in own, f"{key} of {name} is nearest to {nearest}"


def test_the_weights_of_the_wheel_are_timm_s_tensors(lite0):
    tensors = load_file(lite0)
    assert len(tensors) == 296
    assert tensors["conv_stem.weight"].std() > 0.1


@pytest.mark.shared
def test_real_photographs_through_rn101(photos, tmp_path):
    (tmp_path / "images").mkdir()
    chosen = [sorted((photos / name).iterdir())[0] for name in SETS]
    for photo in chosen:
        (tmp_path / "images" / photo.name).symlink_to(photo.resolve())
    config = Config.model_validate(
        {"data_dir": tmp_path, "clip": {"model": "RN101"}, "features": {"store": "f.h5", "images": ["images"]}}
    )
    assert extract(config, "cpu").complete
    store = FeatureStore(tmp_path / "f.h5")
    assert check_manifest(store.manifest, ClipConfig(), config.visual) == []
    got = store.get_many([photo.stem for photo in chosen])
    assert got.shape == (3, 49, 2048)
    assert got.min() >= 0, "layer4 ends in a ReLU"
    assert np.unique(got[0], axis=0).shape == (49, 2048), "every cell says something of its own"
