"""Does extraction store exactly what the trunk says, and go on after whatever stopped it?"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision import transforms

from feature_extraction.encoder import load_encoder
from feature_extraction.extract import extract
from feature_extraction.maintenance.inspection import verify
from multitask_vl.config.schema import Config
from multitask_vl.data.store.feature_store import FeatureStore, check_manifest
from multitask_vl.data.store.format import read_layout
from multitask_vl.data.store.row_file import RowFile
from multitask_vl.data.store.writer import StoreWriter
from multitask_vl.errors import InputError
from tests.drawn_images import CELLS, DIM, SIDE, picture, tiny_config
from tests.store_fixtures import content


@pytest.fixture
def config(tmp_path) -> Config:
    return tiny_config(tmp_path)


def plain_forward(folder: Path, images: list[Image.Image], resize) -> torch.Tensor:
    """The published way: torchvision transforms and open_clip's own model, one image at a time -> [N, D, h, w]."""
    open_clip.add_model_config(folder / "tiny.json")
    visual = open_clip.create_model("tiny", pretrained=str(folder / "tiny.safetensors")).visual.eval()
    prepare = transforms.Compose(
        [
            lambda image: image.convert("RGB"),
            *resize,
            transforms.ToTensor(),
            transforms.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        ]
    )
    with torch.no_grad():
        grids = [visual.forward_intermediates(prepare(one)[None], intermediates_only=True) for one in images]
    return torch.cat([one["image_intermediates"][-1] for one in grids])


SQUASH = [transforms.Resize((SIDE, SIDE), transforms.InterpolationMode.BICUBIC)]
CROP = [transforms.Resize(SIDE, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(SIDE)]


@pytest.mark.parametrize(("resize", "how"), [("squash", SQUASH), ("crop", CROP)])
def test_features_equal_a_plain_forward_of_the_trunk(config, tmp_path, resize, how):
    config = config.model_copy(update={"clip": config.clip.model_copy(update={"resize": resize})})
    summary = extract(config, "cpu")
    assert summary.complete
    assert (summary.images, summary.extracted, summary.skipped) == (10, 10, 0)
    store = FeatureStore(tmp_path / "features.h5")
    assert store.keys() == [f"COCO_{n:03d}" for n in range(10)]
    assert (
        check_manifest(store.manifest, config.clip, config.visual.model_copy(update={"feature_dim": DIM, "pool": None}))
        == []
    )
    keys = store.keys()
    files = [next((tmp_path / "images").rglob(f"{key}.*")) for key in keys]
    wanted = plain_forward(tmp_path, [Image.open(file) for file in files], how)
    assert wanted.shape == (10, DIM, 2, 2)
    assert wanted.std() > 0.01, "a trunk that says nothing would agree with anything"
    got = store.get_many(keys)
    assert got.shape == (10, CELLS, DIM)
    rows_by_columns = wanted.permute(0, 2, 3, 1).reshape(10, CELLS, DIM)
    np.testing.assert_allclose(got, rows_by_columns.numpy(), rtol=1e-3, atol=1e-5)
    assert np.abs(got[0] - got[1]).max() > 0.01


def test_the_trunk_in_float32_is_exact_to_rounding(config, tmp_path):
    encoder = load_encoder(config.clip, device="cpu")
    images = [picture(n).resize((SIDE, SIDE)) for n in range(3)]
    pixels = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in images])
    with torch.inference_mode():
        got = encoder.trunk(pixels).flatten(1, 2)
    wanted = plain_forward(tmp_path, images, [])
    torch.testing.assert_close(got, wanted.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_point_the_same_way(config, precision):
    pixels = torch.stack([torch.from_numpy(np.array(picture(n, SIDE, SIDE))).permute(2, 0, 1) for n in range(3)])
    exact = load_encoder(config.clip, device="cpu")(pixels)
    encoder = load_encoder(config.clip, precision, device="cpu")
    rough = encoder(pixels)
    assert encoder.manifest.precision == precision
    assert (rough != exact).any()
    cosine = torch.nn.functional.cosine_similarity(torch.tensor(exact).float(), torch.tensor(rough).float(), dim=-1)
    assert cosine.min() > 0.999


def test_the_manifest_says_how_the_features_were_made(config, tmp_path):
    manifest = extract(config, "cpu").manifest
    told = manifest.model_dump(exclude={"tool_version"})
    assert told == {
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


def test_worker_processes_change_nothing(tmp_path):
    alone = tiny_config(tmp_path / "a")
    helped = tiny_config(tmp_path / "b", workers=2)
    extract(alone, "cpu")
    extract(helped, "cpu")
    assert content(tmp_path / "a" / "features.h5") == content(tmp_path / "b" / "features.h5")


def test_a_second_run_skips_what_is_done(config, tmp_path, monkeypatch):
    extract(config, "cpu")
    before = (tmp_path / "features.h5").read_bytes()
    monkeypatch.setattr("feature_extraction.images.decode.read_square", None)  # nothing may be decoded
    again = extract(config, "cpu")
    assert (again.images, again.skipped, again.extracted, again.damaged) == (10, 10, 0, [])
    assert again.complete
    assert (tmp_path / "features.h5").read_bytes() == before


# ---- interruptions and damage


def test_a_run_killed_inside_a_write_and_run_again_gives_the_same_bytes(tmp_path):
    whole = tiny_config(tmp_path / "whole")
    extract(whole, "cpu")
    cut = tiny_config(tmp_path / "cut", workers=1)
    (tmp_path / "cut.json").write_text(cut.model_dump_json())
    script = """
        import os, signal, sys
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        from feature_extraction.extract import extract
        from multitask_vl.config.schema import Config
        pwrite, left = os.pwrite, int(sys.argv[2])
        def killing(descriptor, data, at):
            global left
            left -= 1
            if left == 0:
                pwrite(descriptor, bytes(data)[: max(1, len(data) // 2)], at)
                os.kill(os.getpid(), signal.SIGKILL)
            return pwrite(descriptor, data, at)
        os.pwrite = killing
        extract(Config.model_validate_json(Path(sys.argv[1]).read_text()), "cpu")
    """
    # A row is three writes: the 19th tears the features of the seventh image, in the middle of the second batch.
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "cut.json"), "19"]
    killed = subprocess.run(command, cwd=os.getcwd(), capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    part = FeatureStore(tmp_path / "cut" / "features.h5")
    assert len(part) == 6
    summary = extract(cut, "cpu")
    assert (summary.skipped, summary.extracted) == (6, 4)
    assert content(tmp_path / "cut" / "features.h5") == content(tmp_path / "whole" / "features.h5")
    assert not (tmp_path / "cut" / "features.h5.lock").exists()


def test_a_flipped_byte_is_found_by_verify_and_mended_by_running_again(config, tmp_path):
    extract(config, "cpu")
    store = tmp_path / "features.h5"
    before, layout = store.read_bytes(), read_layout(store)
    damaged = bytearray(before)
    damaged[layout.features_at + 5 * layout.row_bytes + 99] ^= 0x10
    store.write_bytes(damaged)
    assert verify(store).damaged == ["COCO_005"]
    summary = extract(config, "cpu")
    assert summary.damaged == ["COCO_005"]
    assert (summary.skipped, summary.extracted, summary.complete) == (9, 1, True)
    assert store.read_bytes() == before
    assert verify(store, [tmp_path / "images"]).sound


def test_new_images_extend_the_store(config, tmp_path):
    extract(config, "cpu")
    more = tiny_config(tmp_path, count=13)
    summary = extract(more, "cpu")
    assert (summary.images, summary.skipped, summary.extracted, summary.complete) == (13, 10, 3, True)
    fresh = tiny_config(tmp_path / "fresh", count=13)
    extract(fresh, "cpu")
    grown, made = FeatureStore(tmp_path / "features.h5"), FeatureStore(tmp_path / "fresh" / "features.h5")
    assert grown.keys() == made.keys()
    np.testing.assert_allclose(grown.get_many(grown.keys()), made.get_many(made.keys()), rtol=1e-3, atol=1e-5)


def test_images_that_went_away_stay_in_the_store(config, tmp_path):
    extract(config, "cpu")
    layout = read_layout(tmp_path / "features.h5")
    file = RowFile(layout, writable=True)
    file.forget(2)
    file.close()
    (tmp_path / "images" / "COCO_001.png").unlink()
    summary = extract(config, "cpu")
    assert (summary.images, summary.extracted, summary.beyond, summary.complete) == (9, 1, 1, True)
    assert len(FeatureStore(tmp_path / "features.h5")) == 10


def test_another_encoder_is_refused(config):
    extract(config, "cpu")
    other = config.model_copy(
        update={"clip": config.clip.model_copy(update={"pretrained": None, "weights_seed": 3, "resize": "crop"})}
    )
    with pytest.raises(
        InputError,
        match=r"weights_tag: tiny.safetensors, not random:3; .*resize: squash, not crop.*features\.store=OTHER",
    ):
        extract(other, "cpu")


def test_a_store_in_use_is_refused(config, tmp_path):
    manifest = extract(config, "cpu").manifest
    with StoreWriter(tmp_path / "features.h5", manifest, []), pytest.raises(InputError, match="is being written by"):
        extract(config, "cpu")


def test_features_too_large_for_the_store_are_an_error(config, tmp_path, monkeypatch):
    load = load_encoder

    def loud(*args):
        encoder = load(*args)
        encoder.trunk.trunk.visual.layer4[-1].conv3.bias.data += 1e5
        return encoder

    monkeypatch.setattr("feature_extraction.extract.load_encoder", loud)
    with pytest.raises(InputError, match=r"4 of 4 images do not fit float16 \(first: COCO_000\)"):
        extract(config, "cpu")
    assert len(FeatureStore(tmp_path / "features.h5")) == 0


# ---- unreadable images


def test_unreadable_images_are_listed_and_the_rest_is_extracted(config, tmp_path):
    images = tmp_path / "images"
    (images / "COCO_004.jpg").write_bytes((images / "COCO_004.jpg").read_bytes()[:400])
    (images / "text.png").write_text("not an image")
    (images / "empty.jpg").touch()
    for n in range(4):  # a whole batch of them
        (images / f"zz{n}.gif").write_bytes(b"GIF89a")
    (tmp_path / "failures.jsonl").write_text('{"store": "other.h5", "key": "k", "path": "p", "reason": "r"}\n')
    summary = extract(config, "cpu")
    assert not summary.complete
    assert (summary.images, summary.extracted, len(summary.failures)) == (16, 9, 7)
    listed = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert listed[0]["store"] == "other.h5", "the failures of another store beside it stay"
    mine = {row["key"]: row for row in listed[1:]}
    assert sorted(mine) == ["COCO_004", "empty", "text", "zz0", "zz1", "zz2", "zz3"]
    assert mine["COCO_004"]["path"] == str(images / "COCO_004.jpg")
    assert "runcated" in mine["COCO_004"]["reason"]
    assert mine["text"]["reason"] == "UnidentifiedImageError: cannot identify image file"
    store = FeatureStore(tmp_path / "features.h5")
    assert len(store) == 9
    assert store.missing(["COCO_004", "COCO_005"]) == ["COCO_004"]

    for key in sorted(mine):
        next(images.glob(f"{key}.*")).unlink()
    picture(4, 68).save(images / "COCO_004.jpg")
    mended = extract(config, "cpu")
    assert (mended.images, mended.extracted, mended.complete) == (10, 1, True)
    assert [json.loads(line)["store"] for line in (tmp_path / "failures.jsonl").read_text().splitlines()] == [
        "other.h5"
    ]


def test_a_folder_whose_name_is_no_text_can_be_listed(config, tmp_path):
    folder = tmp_path / "images" / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "text\u2028.png").write_text("not an image")
    for _ in range(2):
        assert len(extract(config, "cpu").failures) == 1
        (row,) = (tmp_path / "failures.jsonl").read_text().split("\n")[:-1]
        assert json.loads(row)["path"] == f"{tmp_path}/images/caf\\xe9/text\u2028.png"


def test_an_unreadable_neighbour_does_not_change_an_image(tmp_path):
    sound, broken = tiny_config(tmp_path / "a"), tiny_config(tmp_path / "b")
    (tmp_path / "b" / "images" / "COCO_001.png").write_text("broken")
    extract(sound, "cpu")
    extract(broken, "cpu")
    one, other = FeatureStore(tmp_path / "a" / "features.h5"), FeatureStore(tmp_path / "b" / "features.h5")
    assert one.missing(other.keys()) == []
    np.testing.assert_array_equal(one.get_many(other.keys()), other.get_many(other.keys()))
    assert not (tmp_path / "a" / "failures.jsonl").exists()


def test_a_foreign_list_of_failures_is_not_overwritten(config, tmp_path):
    (tmp_path / "failures.jsonl").write_text("my notes\n")
    with pytest.raises(InputError, match="not written by extraction"):
        extract(config, "cpu")
    assert (tmp_path / "failures.jsonl").read_text() == "my notes\n"


def test_a_list_of_stores_cannot_be_filled(config):
    several = config.model_copy(update={"features": config.features.model_copy(update={"store": [config.run_dir] * 2})})
    with pytest.raises(InputError, match="fills one store on a disk, the configuration names 2"):
        extract(several, "cpu")
