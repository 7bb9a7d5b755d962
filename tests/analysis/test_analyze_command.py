"""Does `launch/analyze.py` leave its numbers and figures beside a run, and refuse what it cannot look into?"""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from multitask_vl.reports.analysis_section import inside, norm_panels, read_analysis
from multitask_vl.reports.heatmaps import SIDE, overlay
from tests import tiny_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny run of six steps with pictures, after its analysis."""
    base = tmp_path_factory.mktemp("tiny")
    tiny_run.write_files(base)
    (base / "images").mkdir()
    for number in range(tiny_run.IMAGES):
        Image.new("RGB", (40, 20), (10 * number, 80, 120)).save(base / "images" / f"{number:012d}.png")
    training = {"steps": 6, "checkpoint_every": None}
    config = tiny_run.write_config(base, training=training, features={"store": "features.h5", "images": ["images"]})
    assert not tiny_run.launch("train_multitask", "--config", str(config))
    assert not tiny_run.launch("analyse", str(base / "run"), "--examples", "2", "--compared", "5")
    return base


def test_the_report_shows_what_was_measured(folder, browser):
    found = read_analysis(folder / "run")
    assert found.split == "report"
    assert {norm.part for norm in found.norms} == {"W_down", "W_up"}
    mixture = json.loads((folder / "run" / "record.json").read_text())["mixture"]
    assert len({task for task, one in mixture.items() if one["steps"]}) > 1
    assert all((norm.change > 0) == (mixture[norm.task]["steps"] > 0) for norm in found.norms)
    tasks = ["vqa", "gqa", "nlvr2", "coco_caption"]
    assert [one.task for one in found.attention] == [task for task in tasks for _ in range(2)]
    assert (found.x_r.tasks, found.x_r.examples, found.x_r.routed) == (tasks, [5] * 4, True)
    rows = [json.loads(line) for line in (folder / "run/predictions/vqa/report.jsonl").read_text().splitlines()]
    said = {row["id"]: row["prediction"] for row in rows}
    assert all(one.prediction == said[one.id] for one in found.attention if one.task == "vqa")
    with browser.open(folder / "run" / "report.html", width=390) as opened:
        assert opened.page.get_by_role("heading", name="Looking inside").count() == 1
        assert opened.page.locator(".look").count() == 8
        assert opened.broken_pictures() == []
        assert opened.past_the_edge() == []
        assert opened.problems == []


def test_an_adapter_without_its_run_gets_a_page_of_its_own(folder, tmp_path, browser):
    adapter, config = str(folder / "run" / "adapter"), str(folder / "run" / "resolved.yaml")
    ids = [row["id"] for row in map(json.loads, (folder / "run/predictions/gqa/report.jsonl").read_text().splitlines())]
    words = ["--adapter", adapter, "--config", config, "--out", str(tmp_path), "--examples", "0"]
    assert not tiny_run.launch("analyse", *words, "--ids", f"gqa:{ids[3]}", "--compared", "2")
    assert [(one.task, one.id) for one in read_analysis(tmp_path).attention] == [("gqa", ids[3])]
    with browser.open(tmp_path / "analysis.html") as opened:
        assert opened.page.locator(".look").count() == 1
        assert opened.problems == []


def test_a_blind_control_is_shown_with_the_pictures_that_it_was_given(folder, tmp_path):
    adapter, config = str(folder / "run" / "adapter"), str(folder / "run" / "resolved.yaml")
    words = ["--adapter", adapter, "--config", config, "--out", str(tmp_path), "--examples", "2", "--compared", "3"]
    blind = ["features.control=shuffled", "training.mixed_precision=bf16"]
    assert not tiny_run.launch("analyse", *words, "--set", *blind)
    seeing, found = read_analysis(folder / "run"), read_analysis(tmp_path)
    assert [one.id for one in found.attention] == [one.id for one in seeing.attention]
    assert all(
        a != b
        for one, other in zip(found.attention, seeing.attention, strict=True)
        for a, b in zip(one.images, other.images, strict=True)
    )
    assert (
        "A blind control: the pictures are those that the model was given" in (tmp_path / "analysis.html").read_text()
    )
    assert seeing.notes == []


def test_what_cannot_be_looked_into_is_refused(folder, tmp_path, capsys):
    run = str(folder / "run")
    for words, told in [
        ((str(tmp_path / "none"),), "resolved.yaml: there is no such file"),
        (("--adapter", run), "add --config YAML"),
        ((run, "--examples", "-1"), "--examples must be 0 or more"),
        ((run, "--split", "test"), "test"),
        ((run, "--ids", "gqa:nobody", "vqa", "other:1"), "--ids: gqa has no example 'nobody' in split report"),
    ]:
        assert tiny_run.launch("analyse", *words) == 2
        err = capsys.readouterr().err
        assert told in err
        assert "Traceback" not in err
    assert "--ids: 'vqa' is not TASK:ID of one of vqa, gqa, nlvr2, coco_caption" in err
    spoilt = shutil.copytree(folder / "run", tmp_path / "spoilt")
    (spoilt / "analysis.json").write_text('{"split": 3}')
    with pytest.raises(Exception, match=r"analysis.json: .*Run: python launch/analyze.py"):
        read_analysis(spoilt)
    assert read_analysis(tmp_path / "nothing") is None


def test_lost_pictures_are_told_and_drawn_on_grey(folder, tmp_path):
    found = inside(read_analysis(folder / "run"), [tmp_path], "squash")
    assert "their maps are drawn on grey" in found.notes[0]
    assert all(picture.uri for one in found.looked for picture in one.pictures)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert overlay("bad", tmp_path / "bad.png", "squash").problem.startswith("unreadable")


def test_a_map_warms_the_part_of_the_picture_that_was_looked_at(tmp_path):
    halves = np.zeros((40, 80, 3), dtype=np.uint8)
    halves[:, 60:] = 255
    Image.fromarray(halves).save(tmp_path / "wide.png")
    pixels = {}
    for resize, cells in [("squash", [1.0, 0, 0, 0]), ("crop", [1.0, 0, 0, 0]), ("squash", None), ("crop", None)]:
        pixels[resize, cells is None] = overlay("wide", tmp_path / "wide.png", resize, cells, (2, 2))
    decoded = {key: _decode(one.uri) for key, one in pixels.items()}
    plain = decoded["squash", True]
    assert plain.shape == (SIDE, SIDE, 3)
    assert plain[:, -10:].mean() > 240
    assert decoded["crop", True][:, -10:].mean() < 20
    warm = decoded["squash", False]
    assert warm[: SIDE // 4, : SIDE // 4].mean() > 2 * warm[-SIDE // 4 :, : SIDE // 4].mean()


def test_norms_of_several_runs_are_lines_of_one_chart(folder):
    norms = read_analysis(folder / "run").norms
    panels = norm_panels({"a": norms, "b": [one for one in norms if one.stack == "encoder"]})
    assert [panel.title for panel in panels] == [
        f"{part}, {stack}" for stack in ("encoder", "decoder") for part in ("W_down", "W_up")
    ]
    first = [one.change for one in norms if (one.stack, one.layer, one.part) == ("encoder", 0, "W_down")]
    assert f"a: {sum(first) / len(first):.2f}" in panels[0].summary
    assert "b: " in panels[0].summary
    assert "b: " not in panels[2].summary


def _decode(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"), dtype=np.float32)
