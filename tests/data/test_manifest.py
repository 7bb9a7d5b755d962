"""Manifest of a feature store against a configuration."""

import hashlib

import pytest

from multitask_vl.config.schema import VisionConfig, VisualConfig
from multitask_vl.data.store.manifest import check_manifest
from tests.store_fixtures import MANIFEST

VISION, VISUAL = VisionConfig(), VisualConfig(feature_dim=8, pool=(2, 2))


def test_manifest_matches_its_configuration():
    assert check_manifest(MANIFEST, VISION, VISUAL) == []
    assert check_manifest(MANIFEST, VISION, VisualConfig(feature_dim=8, pool=None)) == []


@pytest.mark.parametrize(
    ("vision", "visual", "message"),
    [
        ({"model": "RN50"}, {}, "vision.model: the features were made with RN101, the configuration has RN50; extract"),
        ({"model": "some/where/tiny.json"}, {}, "the configuration has tiny;"),
        ({"weights_seed": 1}, {}, "vision.pretrained: the features were made with random:0, the configuration has ran"),
        ({"pretrained": "openai"}, {}, "the configuration has openai"),
        ({"pretrained": "gone/model.safetensors"}, {}, "the configuration has model.safetensors"),
        ({"image_size": 448}, {}, "vision.image_size: the features were made with 224, the configuration has 448"),
        ({"resize": "crop"}, {}, "vision.resize"),
        ({}, {"feature_dim": 2048}, "set visual.feature_dim=8"),
        ({}, {"pool": (2, 4)}, "visual.pool: 2x4 cells cannot be pooled from a grid of 2x3; set visual.pool=null"),
    ],
)  # fmt: skip
def test_manifest_mismatch_names_key_and_fix(vision, visual, message):
    (problem,) = check_manifest(MANIFEST, VISION.model_copy(update=vision), VISUAL.model_copy(update=visual))
    assert message in problem


def test_manifest_compares_weights_file_by_content(tmp_path):
    (tmp_path / "moved.pt").write_bytes(b"weights")
    digest = "9d52b49a8e1b7cfe2c2c6b2d0a8d7a5ea8d9c6a5"
    manifest = MANIFEST.model_copy(update={"weights_tag": "model.pt", "weights_sha256": digest})
    vision = VisionConfig(pretrained=str(tmp_path / "moved.pt"))
    (problem,) = check_manifest(manifest, vision, VISUAL)
    assert f"model.pt (sha256 {digest[:12]})" in problem
    same = manifest.model_copy(update={"weights_sha256": hashlib.sha256(b"weights").hexdigest()})
    assert check_manifest(same, vision, VISUAL) == []
    unknown = manifest.model_copy(update={"weights_sha256": None, "weights_tag": "moved.pt"})
    assert check_manifest(unknown, vision, VISUAL) == []


def test_manifest_mismatches_are_reported_together():
    vision = VisionConfig(model="RN50", image_size=448, resize="crop", pretrained="openai")
    assert len(check_manifest(MANIFEST, vision, VisualConfig(pool=(7, 7)))) == 6
