"""Command `multitask-vl extract`: exit codes, summary and error messages."""

import json

import pytest
import yaml
from PIL import Image

from multitask_vl.cli.main import main
from multitask_vl.data.store.feature_store import FeatureStore
from tests.drawn_images import DIM, tiny_config
from tests.feature_extraction import image_files
from tests.feature_extraction.image_files import PIXEL_FORMATS
from tests.store_fixtures import corrupt_row

ROTATED = Image.Exif()
ROTATED[0x112] = 6


@pytest.fixture
def config(tmp_path):
    """YAML file for five images and the tiny encoder."""
    settings = json.loads(tiny_config(tmp_path, 5).model_dump_json(include={"data_dir", "vision", "features"}))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**settings, "visual": {"feature_dim": DIM, "pool": None}}))
    return path


def extract(config, *overrides) -> int:
    return main(["extract", "--config", str(config), *overrides])


def test_complete_extraction_exits_0_with_a_summary(config, tmp_path, capsys):
    assert extract(config) == 0
    output = capsys.readouterr()
    assert f"{tmp_path / 'features.h5'}: 5 of 5 images (5 new at " in output.out
    assert "2x2x256 float16" in output.out
    assert "5/5" in output.err, "the progress bar"
    assert "img/s" in output.err
    assert "warning:" not in output.err
    assert extract(config, "visual.feature_dim=512") == 0
    output = capsys.readouterr()
    assert "5 of 5 images (0 new)" in output.out
    assert "warning: training on this store needs visual.feature_dim=256; the configuration has 512" in output.err


def test_summary_reports_corrupt_rotated_and_removed_images(config, tmp_path, capsys):
    images = tmp_path / "images"
    with Image.open(images / "COCO_000.jpg") as image:
        image.save(images / "COCO_000.jpg", exif=ROTATED)
    assert extract(config) == 0
    assert "1 images were rotated by their EXIF orientation" in capsys.readouterr().out
    corrupt_row(tmp_path / "features.h5", 3)
    (images / "COCO_001.png").unlink()
    assert extract(config) == 0
    output = capsys.readouterr().out
    assert "1 stored rows were corrupt and were extracted again (first: COCO_003)" in output
    assert "1 rows of the store have no image" in output


def test_unreadable_images_exit_1_and_are_reported(config, tmp_path, capsys):
    """A folder with every pixel format and every kind of unreadable file."""
    names = ("truncated", "float_pixels", "decompression_bomb", "empty", "corrupt_png")
    for name in names:
        getattr(image_files, name)(tmp_path / "images" / f"{name}.png")
    for write in PIXEL_FORMATS:
        write(tmp_path / "images" / f"valid_{write.__name__}.png")
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "green")]
    frames[0].save(tmp_path / "images" / "animated.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "images" / "rotated.jpg", exif=ROTATED)
    (tmp_path / "images" / "LICENSE").touch()
    assert extract(config) == 1
    output = capsys.readouterr().out
    valid = 7 + len(PIXEL_FORMATS)
    assert f"{valid} of {valid + 5} images" in output
    assert "5 images could not be read (first: " in output
    assert f"all of them: {tmp_path / 'failures.jsonl'}" in output
    assert "1 images were rotated" in output
    assert "1 files in the image folders are not images" in output
    failures = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [failure["key"] for failure in failures] == sorted(names)
    assert all(failure["reason"] for failure in failures)
    assert len(FeatureStore(tmp_path / "features.h5")) == valid


def test_bad_input_exits_2_without_traceback(config, tmp_path, capsys):
    assert extract(config, "features.images=[nowhere]") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: features.images: ")
    assert "Traceback" not in errors
    assert extract(config, "vision.image_size=50") == 2
    (tmp_path / "features.h5").write_text("not a store")
    assert extract(config) == 2
    assert "not an HDF5 file" in capsys.readouterr().err


def test_ctrl_c_exits_130_and_mentions_resuming(config, capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("feature_extraction.extract.extract", interrupted)
    assert extract(config) == 130
    assert "the same command resumes" in capsys.readouterr().err
