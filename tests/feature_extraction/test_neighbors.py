"""Does a contact sheet show each picture's nearest neighbours, and is what cannot be shown told?"""

import numpy as np
import pytest
from PIL import Image

from multitask_vl.data.store.writer import write_store
from tests.data.test_store_exchange import run
from tests.drawn_images import picture
from tests.store_fixtures import MANIFEST, SHAPE, made


def test_neighbours_are_found_and_shown(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    features = {}
    for number in range(8):
        picture(number).save(tmp_path / "images" / f"{number}.png")
        features[f"{number}"] = rng.standard_normal(SHAPE)
    features["5"] = features["2"] + 0.01
    write_store(tmp_path / "s.h5", MANIFEST, features)
    write_store(
        tmp_path / "control.h5", MANIFEST.model_copy(update={"weights_tag": "random:1"}), made(list("01234567"))
    )
    words = ["neighbours", tmp_path / "s.h5", "--images", tmp_path / "images", "--out", tmp_path / "sheet.webp"]
    assert run(*words, "--control", tmp_path / "control.h5", "--keys", "2", "7", "--neighbours", 3) == 0
    said = capsys.readouterr().out
    assert "RN101, weights random:0, nearest of 8:\n  2: 5 1.000, " in said
    assert "weights random:1" in said
    with Image.open(tmp_path / "sheet.webp") as sheet:
        assert sheet.width > 7 * 96
        assert sheet.height > 2 * 96
    assert run(*words, "--queries", 4) == 0
    (tmp_path / "images" / "4.png").write_text("no picture")
    assert run(*words, "--keys", "4") == 0
    assert "1 pictures could not be read and are grey:\n  4: UnidentifiedImageError" in capsys.readouterr().out
    store = (tmp_path / "s.h5").read_bytes()
    small, unnamed = "is no number from 1 on", "has no ending of a picture"
    for option, value, said in (
        ("--queries", 0, small), ("--queries", -1, small), ("--neighbours", 0, small),
        ("--out", tmp_path / "sheet", unnamed), ("--out", tmp_path / "s.h5", unnamed), ("--out", "sheet.psd", unnamed),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            run(*words, f"{option}={value}")
        assert said in capsys.readouterr().err
    assert (tmp_path / "s.h5").read_bytes() == store
    assert run(*words, "--keys", "99") == 2
    write_store(tmp_path / "s2.h5", MANIFEST, made(["0", "x"]))
    assert run("neighbours", tmp_path / "s2.h5", *words[2:]) == 2
    assert "1 of 8 pictures have features" in capsys.readouterr().err
