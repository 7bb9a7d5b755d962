"""Extraction: features equal to a plain forward pass, manifest, resuming, and unreadable images."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision import transforms

from feature_extraction.encoder import load_encoder
from feature_extraction.extract import extract
from multitask_vl.config.schema import Config
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import read_local_header
from multitask_vl.data.store.local_rows import LocalRows
from multitask_vl.data.store.manifest import check_manifest
from multitask_vl.data.store.writer import StoreWriter
from multitask_vl.errors import InputError
from tests.drawn_images import CELLS, DIM, SIDE, random_image, tiny_config
from tests.store_fixtures import store_bytes


@pytest.fixture
def config(tmp_path) -> Config:
    return tiny_config(tmp_path, num_workers=0)


def plain_forward(folder: Path, images: list[Image.Image], resize) -> torch.Tensor:
    """Return the published features: torchvision transforms and open_clip's model, one image at a time [N, D, h, w]."""
    open_clip.add_model_config(folder / "tiny.json")
    visual = open_clip.create_model("tiny", pretrained=str(folder / "tiny.safetensors")).visual.eval()
    transform = transforms.Compose(
        [
            lambda image: image.convert("RGB"),
            *resize,
            transforms.ToTensor(),
            transforms.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        ]
    )
    with torch.no_grad():
        outputs = [visual.forward_intermediates(transform(image)[None], intermediates_only=True) for image in images]
    return torch.cat([output["image_intermediates"][-1] for output in outputs])


SQUASH = [transforms.Resize((SIDE, SIDE), transforms.InterpolationMode.BICUBIC)]
CROP = [transforms.Resize(SIDE, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(SIDE)]


@pytest.mark.parametrize(("resize", "transform"), [("squash", SQUASH), ("crop", CROP)])
def test_features_equal_plain_forward_pass(config, tmp_path, resize, transform):
    config = config.model_copy(update={"vision": config.vision.model_copy(update={"resize": resize})})
    summary = extract(config, "cpu")
    assert summary.complete
    assert (summary.images, summary.extracted, summary.skipped) == (10, 10, 0)
    store = FeatureStore(tmp_path / "features.h5")
    keys = store.keys()
    assert keys == [f"COCO_{n:03d}" for n in range(10)]
    visual = config.visual.model_copy(update={"feature_dim": DIM, "pool": None})
    assert check_manifest(store.manifest, config.vision, visual) == []
    files = [next((tmp_path / "images").rglob(f"{key}.*")) for key in keys]
    expected = plain_forward(tmp_path, [Image.open(file) for file in files], transform)
    assert expected.shape == (10, DIM, 2, 2)
    assert expected.std() > 0.01, "constant features would agree with anything"
    features = store.get_many(keys)
    assert features.shape == (10, CELLS, DIM)
    row_major = expected.permute(0, 2, 3, 1).reshape(10, CELLS, DIM)
    np.testing.assert_allclose(features, row_major.numpy(), rtol=1e-3, atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 0.01


def test_fp32_encoder_is_exact_to_rounding(config, tmp_path):
    encoder = load_encoder(config.vision, device="cpu")
    images = [random_image(n).resize((SIDE, SIDE)) for n in range(3)]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    with torch.inference_mode():
        features = encoder.model(pixels).flatten(1, 2)
    expected = plain_forward(tmp_path, images, [])
    torch.testing.assert_close(features, expected.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_features_are_similar(config, precision):
    pixels = torch.stack([torch.from_numpy(np.array(random_image(n, SIDE, SIDE))).permute(2, 0, 1) for n in range(3)])
    exact = load_encoder(config.vision, device="cpu")(pixels)
    encoder = load_encoder(config.vision, precision, device="cpu")
    rounded = encoder(pixels)
    assert encoder.manifest.precision == precision
    assert (rounded != exact).any()
    cosine = torch.nn.functional.cosine_similarity(torch.tensor(exact).float(), torch.tensor(rounded).float(), dim=-1)
    assert cosine.min() > 0.999


def test_manifest_records_how_features_are_made(config, tmp_path):
    manifest = load_encoder(config.vision, device="cpu").manifest
    assert manifest.model_dump(exclude={"tool_version"}) == {
        "format_version": 1,
        "encoder": "tiny",
        "weights_tag": "tiny.safetensors",
        "weights_sha256": hashlib.sha256((tmp_path / "tiny.safetensors").read_bytes()).hexdigest(),
        "activation": "relu",
        "image_size": 64,
        "resize": "squash",
        "interpolation": "bicubic",
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "layer": "layer4",
        "pool": None,
        "grid": (2, 2),
        "dim": DIM,
        "dtype": "float16",
        "precision": "fp32",
        "pixels": "upright, transparency on white, 16 bit scaled, first frame",
    }


def test_worker_processes_change_nothing(config, tmp_path):
    parallel = tiny_config(tmp_path / "parallel", num_workers=2)
    extract(config, "cpu")
    extract(parallel, "cpu")
    assert store_bytes(tmp_path / "features.h5") == store_bytes(tmp_path / "parallel" / "features.h5")


# ---- resuming and growing


def test_second_run_skips_done_images(config, tmp_path, monkeypatch):
    extract(config, "cpu")
    before = (tmp_path / "features.h5").read_bytes()
    monkeypatch.setattr("feature_extraction.images.decode.load_square", None)  # decoding would fail
    again = extract(config, "cpu")
    assert (again.images, again.skipped, again.extracted, again.corrupt_rows) == (10, 10, 0, [])
    assert again.complete
    assert (tmp_path / "features.h5").read_bytes() == before


def test_new_images_extend_the_store(config, tmp_path):
    extract(config, "cpu")
    summary = extract(tiny_config(tmp_path, count=13, num_workers=0), "cpu")
    assert (summary.images, summary.skipped, summary.extracted, summary.complete) == (13, 10, 3, True)
    extract(tiny_config(tmp_path / "new", count=13, num_workers=0), "cpu")
    grown, new = FeatureStore(tmp_path / "features.h5"), FeatureStore(tmp_path / "new" / "features.h5")
    assert grown.keys() == new.keys()
    np.testing.assert_allclose(grown.get_many(grown.keys()), new.get_many(new.keys()), rtol=1e-3, atol=1e-5)


def test_rows_of_removed_images_are_kept(config, tmp_path):
    extract(config, "cpu")
    rows = LocalRows(read_local_header(tmp_path / "features.h5"), writable=True)
    rows.mark_undone(2)
    rows.close()
    (tmp_path / "images" / "COCO_001.png").unlink()
    summary = extract(config, "cpu")
    assert (summary.images, summary.extracted, summary.extra_rows, summary.complete) == (9, 1, 1, True)
    assert len(FeatureStore(tmp_path / "features.h5")) == 10


def test_store_in_use_or_of_another_encoder_is_rejected(config, tmp_path):
    manifest = extract(config, "cpu").manifest
    with StoreWriter(tmp_path / "features.h5", manifest, []), pytest.raises(InputError, match="is being written by"):
        extract(config, "cpu")
    changes = {"pretrained": None, "weights_seed": 3, "resize": "crop"}
    other = config.model_copy(update={"vision": config.vision.model_copy(update=changes)})
    message = r"weights_tag: tiny.safetensors, not random:3; .*resize: squash, not crop.*features\.store=OTHER"
    with pytest.raises(InputError, match=message):
        extract(other, "cpu")


def test_features_beyond_float16_are_an_error(config, tmp_path, monkeypatch):
    def load_with_large_bias(*args):
        encoder = load_encoder(*args)
        encoder.model.encoder.visual.layer4[-1].conv3.bias.data += 1e5
        return encoder

    monkeypatch.setattr("feature_extraction.extract.load_encoder", load_with_large_bias)
    with pytest.raises(InputError, match=r"4 of 4 images do not fit float16 \(first: COCO_000\)"):
        extract(config, "cpu")
    assert len(FeatureStore(tmp_path / "features.h5")) == 0


def test_several_stores_cannot_be_filled(config):
    features = config.features.model_copy(update={"store": [config.run_dir] * 2})
    with pytest.raises(InputError, match="extraction writes one local store, but the configuration has 2 stores"):
        extract(config.model_copy(update={"features": features}), "cpu")


# ---- unreadable images


def test_unreadable_images_are_listed_and_others_extracted(config, tmp_path):
    images = tmp_path / "images"
    (images / "COCO_004.jpg").write_bytes((images / "COCO_004.jpg").read_bytes()[:400])
    (images / "text.png").write_text("not an image")
    (images / "empty.jpg").touch()
    for n in range(4):  # a complete batch
        (images / f"zz{n}.gif").write_bytes(b"GIF89a")
    (tmp_path / "failures.jsonl").write_text('{"store": "other.h5", "key": "k", "path": "p", "reason": "r"}\n')
    summary = extract(config, "cpu")
    assert not summary.complete
    assert (summary.images, summary.extracted, len(summary.failures)) == (16, 9, 7)
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert lines[0]["store"] == "other.h5", "failures of another store are kept"
    failures = {line["key"]: line for line in lines[1:]}
    assert sorted(failures) == ["COCO_004", "empty", "text", "zz0", "zz1", "zz2", "zz3"]
    assert failures["COCO_004"]["path"] == str(images / "COCO_004.jpg")
    assert "runcated" in failures["COCO_004"]["reason"]
    assert failures["text"]["reason"] == "UnidentifiedImageError: cannot identify image file"
    store = FeatureStore(tmp_path / "features.h5")
    assert len(store) == 9
    assert store.missing(["COCO_004", "COCO_005"]) == ["COCO_004"]

    for key in sorted(failures):
        next(images.glob(f"{key}.*")).unlink()
    random_image(4, 68).save(images / "COCO_004.jpg")
    fixed = extract(config, "cpu")
    assert (fixed.images, fixed.extracted, fixed.complete) == (10, 1, True)
    lines = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["store"] for line in lines] == ["other.h5"]


def test_failures_in_folders_that_are_not_utf8_are_listed(config, tmp_path):
    folder = tmp_path / "images" / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "text\u2028.png").write_text("not an image")
    for _ in range(2):
        assert len(extract(config, "cpu").failures) == 1
        (line,) = (tmp_path / "failures.jsonl").read_text().split("\n")[:-1]
        assert json.loads(line)["path"] == f"{tmp_path}/images/caf\\xe9/text\u2028.png"


def test_unreadable_image_does_not_change_its_batch(config, tmp_path):
    broken = tiny_config(tmp_path / "broken", num_workers=0)
    (tmp_path / "broken" / "images" / "COCO_001.png").write_text("broken")
    extract(config, "cpu")
    extract(broken, "cpu")
    first, second = FeatureStore(tmp_path / "features.h5"), FeatureStore(tmp_path / "broken" / "features.h5")
    assert first.missing(second.keys()) == []
    np.testing.assert_array_equal(first.get_many(second.keys()), second.get_many(second.keys()))
    assert not (tmp_path / "failures.jsonl").exists()


def test_foreign_failures_file_is_not_overwritten(config, tmp_path):
    (tmp_path / "failures.jsonl").write_text("my notes\n")
    with pytest.raises(InputError, match="not written by extraction"):
        extract(config, "cpu")
    assert (tmp_path / "failures.jsonl").read_text() == "my notes\n"
