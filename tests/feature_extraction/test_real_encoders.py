"""Extraction of real photographs with RN101 and with EfficientNet-Lite0's ImageNet weights."""

import numpy as np
import pytest
from safetensors.torch import load_file

from feature_extraction.extract import extract
from multitask_vl.config.schema import Config, VisionConfig
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.manifest import check_manifest
from tests.lite0_weights import MEAN, STD, WHEEL, write_weights

DATASETS = ("coco_photos", "vqa_rad", "nlvr1")


@pytest.fixture(scope="module")
def photos(shared, tmp_path_factory):
    """Folder with four images of each dataset."""
    folder = tmp_path_factory.mktemp("photos") / "images"
    for name in DATASETS:
        (folder / name).mkdir(parents=True)
        for path in sorted((shared / "data" / name / "images").iterdir())[:4]:
            (folder / name / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    """Path of EfficientNet-Lite0's ImageNet weights."""
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    if not write_weights(path):
        pytest.skip(f"the wheel {WHEEL.replace('_', '-')} is not installed")
    return path


@pytest.mark.shared
def test_imagenet_features_group_images_by_dataset(photos, lite0, tmp_path):
    vision = {"model": "timm:efficientnet_lite0", "pretrained": str(lite0), "mean": MEAN, "std": STD}
    features = {"store": "f.h5", "images": [photos], "batch_size": 8}
    config = Config.model_validate(
        {"data_dir": tmp_path, "vision": vision, "features": features, "visual": {"feature_dim": 1280}}
    )
    summary = extract(config, "cpu")
    assert (summary.images, summary.complete) == (12, True)
    store = FeatureStore(tmp_path / "f.h5")
    assert check_manifest(store.manifest, config.vision, config.visual) == []
    assert (store.manifest.grid, store.manifest.dim, store.manifest.layer) == ((7, 7), 1280, "forward_features")
    vectors = {key: store.get(key).astype("f4").mean(0) for key in store.keys()}  # noqa: SIM118 (not a mapping)
    vectors = {key: value / np.linalg.norm(value) for key, value in vectors.items()}
    for name in ("vqa_rad", "nlvr1"):  # scans and drawings
        group = {path.stem for path in (photos / name).iterdir()}
        for key in group:
            nearest = max(vectors.keys() - {key}, key=lambda other: float(vectors[key] @ vectors[other]))
            assert nearest in group, f"{key} of {name} is nearest to {nearest}"


def test_lite0_weights_are_timm_tensors(lite0):
    tensors = load_file(lite0)
    assert len(tensors) == 296
    assert tensors["conv_stem.weight"].std() > 0.1


@pytest.mark.shared
def test_rn101_extracts_photographs(photos, tmp_path):
    (tmp_path / "images").mkdir()
    selected = [sorted((photos / name).iterdir())[0] for name in DATASETS]
    for photo in selected:
        (tmp_path / "images" / photo.name).symlink_to(photo.resolve())
    config = Config.model_validate(
        {"data_dir": tmp_path, "vision": {"model": "RN101"}, "features": {"store": "f.h5", "images": ["images"]}}
    )
    assert extract(config, "cpu").complete
    store = FeatureStore(tmp_path / "f.h5")
    assert check_manifest(store.manifest, VisionConfig(), config.visual) == []
    features = store.get_many([photo.stem for photo in selected])
    assert features.shape == (3, 49, 2048)
    assert features.min() >= 0, "layer4 ends in a ReLU"
    assert np.unique(features[0], axis=0).shape == (49, 2048), "every cell is distinct"
