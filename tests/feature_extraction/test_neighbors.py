"""Command `multitask-vl store neighbors` and its contact sheet."""

import numpy as np
import pytest
from PIL import Image

from multitask_vl.data.store.writer import write_store
from tests.drawn_images import random_image
from tests.feature_extraction.sharded_store import run_store
from tests.store_fixtures import MANIFEST, SHAPE, random_features


@pytest.fixture
def args(tmp_path):
    """Arguments for eight images, of which 2 and 5 have nearly the same features."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    features = {}
    for number in range(8):
        random_image(number).save(tmp_path / "images" / f"{number}.png")
        features[f"{number}"] = rng.standard_normal(SHAPE)
    features["5"] = features["2"] + 0.01
    write_store(tmp_path / "s.h5", MANIFEST, features)
    return ["neighbors", tmp_path / "s.h5", "--images", tmp_path / "images", "--out", tmp_path / "sheet.webp"]


def test_neighbors_are_printed_and_drawn(args, tmp_path, capsys):
    control = MANIFEST.model_copy(update={"weights_tag": "random:1"})
    write_store(tmp_path / "control.h5", control, random_features(list("01234567")))
    options = ["--control", tmp_path / "control.h5", "--keys", "2", "7", "--num-neighbors", 3]
    assert run_store(*args, *options) == 0
    output = capsys.readouterr().out
    assert "RN101, weights random:0, nearest of 8:\n  2: 5 1.000, " in output
    assert "weights random:1" in output
    with Image.open(tmp_path / "sheet.webp") as sheet:
        assert sheet.width > 7 * 96
        assert sheet.height > 2 * 96
    assert run_store(*args, "--queries", 4) == 0
    (tmp_path / "images" / "4.png").write_text("not an image")
    assert run_store(*args, "--keys", "4") == 0
    assert "1 images could not be read and are gray:\n  4: UnidentifiedImageError" in capsys.readouterr().out


def test_neighbors_rejects_bad_arguments(args, tmp_path, capsys):
    store = (tmp_path / "s.h5").read_bytes()
    not_positive, not_an_image = "is not a positive integer", "does not end like an image file"
    for option, value, message in (
        ("--queries", 0, not_positive),
        ("--queries", -1, not_positive),
        ("--num-neighbors", 0, not_positive),
        ("--out", tmp_path / "sheet", not_an_image),
        ("--out", tmp_path / "s.h5", not_an_image),
        ("--out", "sheet.psd", not_an_image),
    ):
        with pytest.raises(SystemExit):
            run_store(*args, f"{option}={value}")
        assert message in capsys.readouterr().err
    assert (tmp_path / "s.h5").read_bytes() == store
    assert run_store(*args, "--keys", "99") == 2
    write_store(tmp_path / "s2.h5", MANIFEST, random_features(["0", "x"]))
    assert run_store("neighbors", tmp_path / "s2.h5", *args[2:]) == 2
    assert "1 of 8 images have features" in capsys.readouterr().err
