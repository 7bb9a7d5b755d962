"""Is a store that another encoder made noticed, and is the remedy named?"""

import hashlib

import pytest

from multitask_vl.config.schema import ClipConfig, VisualConfig
from multitask_vl.data.store.feature_store import check_manifest
from tests.store_fixtures import MANIFEST

# ---- manifest against configuration

FITS = {"clip": ClipConfig(), "visual": VisualConfig(feature_dim=8, pool=(2, 2))}


def test_a_store_made_as_configured_has_no_problems():
    assert check_manifest(MANIFEST, **FITS) == []
    assert check_manifest(MANIFEST, FITS["clip"], VisualConfig(feature_dim=8, pool=None)) == []


@pytest.mark.parametrize(
    ("clip", "visual", "said"),
    [
        ({"model": "RN50"}, {}, "clip.model: the features were made with RN101, the configuration says RN50; extract"),
        ({"model": "some/where/tiny.json"}, {}, "the configuration says tiny;"),
        (
            {"weights_seed": 1},
            {},
            "clip.pretrained: the features were made with random:0, the configuration says random:1",
        ),
        ({"pretrained": "openai"}, {}, "the configuration says openai"),
        ({"pretrained": "gone/model.safetensors"}, {}, "the configuration says model.safetensors"),
        ({"image_size": 448}, {}, "clip.image_size: the features were made with 224, the configuration says 448"),
        ({"resize": "crop"}, {}, "clip.resize"),
        ({}, {"feature_dim": 2048}, "set visual.feature_dim=8"),
        ({}, {"pool": (2, 4)}, "visual.pool: 2x4 cells cannot be pooled from a grid of 2x3; set visual.pool=null"),
    ],
)
def test_each_disagreement_is_named_with_its_remedy(clip, visual, said):
    problems = check_manifest(MANIFEST, FITS["clip"].model_copy(update=clip), FITS["visual"].model_copy(update=visual))
    assert len(problems) == 1
    assert said in problems[0]


def test_a_weights_file_is_compared_by_content_wherever_it_lies(tmp_path):
    (tmp_path / "moved.pt").write_bytes(b"weights")
    digest = "9d52b49a8e1b7cfe2c2c6b2d0a8d7a5ea8d9c6a5"
    manifest = MANIFEST.model_copy(update={"weights_tag": "model.pt", "weights_sha256": digest})
    clip = ClipConfig(pretrained=str(tmp_path / "moved.pt"))
    (problem,) = check_manifest(manifest, clip, FITS["visual"])
    assert f"model.pt (sha256 {digest[:12]})" in problem
    right = manifest.model_copy(update={"weights_sha256": hashlib.sha256(b"weights").hexdigest()})
    assert check_manifest(right, clip, FITS["visual"]) == []
    unknown = manifest.model_copy(update={"weights_sha256": None, "weights_tag": "moved.pt"})
    assert check_manifest(unknown, clip, FITS["visual"]) == []


def test_all_disagreements_come_at_once():
    clip = ClipConfig(model="RN50", image_size=448, resize="crop", pretrained="openai")
    assert len(check_manifest(MANIFEST, clip, VisualConfig(pool=(7, 7)))) == 6
