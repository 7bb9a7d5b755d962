"""Tests of `multitask-vl analyze`: numbers and figures of a tiny run, and rejected input."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from multitask_vl.errors import InputError
from multitask_vl.reports.analysis_section import analysis_section, norm_panels, read_analysis
from multitask_vl.reports.heatmaps import SIDE, attention_overlay
from tests import tiny_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with images and the analyzed `run` of six steps. Read-only."""
    base = tmp_path_factory.mktemp("tiny")
    tiny_run.write_dataset(base)
    (base / "images").mkdir()
    for number in range(tiny_run.IMAGES):
        Image.new("RGB", (40, 20), (10 * number, 80, 120)).save(base / "images" / f"{number:012d}.png")
    training = {"max_steps": 6, "checkpoint_steps": None}
    config = tiny_run.write_config(base, training=training, features={"store": "features.h5", "images": ["images"]})
    assert not tiny_run.launch("train", "--config", str(config))
    assert not tiny_run.launch("analyze", str(base / "run"), "--examples", "2", "--num-routing-examples", "5")
    return base


def test_report_shows_analysis(folder, browser):
    analysis = read_analysis(folder / "run")
    assert analysis.split == "test"
    assert {norm.part for norm in analysis.norms} == {"W_down", "W_up"}
    mixture = json.loads((folder / "run" / "record.json").read_text())["mixture"]
    assert len({task for task, one in mixture.items() if one["steps"]}) > 1
    assert all((norm.change > 0) == (mixture[norm.task]["steps"] > 0) for norm in analysis.norms)
    tasks = ["vqa", "gqa", "nlvr2", "coco_caption"]
    assert [record.task for record in analysis.attention] == [task for task in tasks for _ in range(2)]
    assert (analysis.x_r.tasks, analysis.x_r.examples, analysis.x_r.routed) == (tasks, [5] * 4, True)
    rows = [json.loads(line) for line in (folder / "run/predictions/vqa/test.jsonl").read_text().splitlines()]
    predictions = {row["id"]: row["prediction"] for row in rows}
    assert all(one.prediction == predictions[one.id] for one in analysis.attention if one.task == "vqa")
    with browser.open(folder / "run" / "report.html", width=390) as opened:
        assert opened.page.get_by_role("heading", name="Analysis", exact=True).count() == 1
        assert opened.page.locator(".attention-example").count() == 8
        assert opened.broken_images() == []
        assert opened.overflowing_elements() == []
        assert opened.problems == []


def test_adapter_is_analyzed_as_shuffled_control(folder, tmp_path, browser):
    """With --adapter, the analysis gets its own page; a control shows the images that the model got."""
    adapter, config = str(folder / "run" / "adapter"), str(folder / "run" / "resolved.yaml")
    ids = [row["id"] for row in map(json.loads, (folder / "run/predictions/gqa/test.jsonl").read_text().splitlines())]
    run_analysis = read_analysis(folder / "run")
    shown = {record.id for record in run_analysis.attention if record.task == "gqa"}
    requested = next(id_ for id_ in ids if id_ not in shown)
    options = ["--adapter", adapter, "--config", config, "--out", str(tmp_path), "--examples", "2"]
    options += ["--ids", f"gqa:{requested}", "--num-routing-examples", "2"]
    overrides = ["features.shuffle_images=true", "training.mixed_precision=bf16"]
    assert not tiny_run.launch("analyze", *options, *overrides)
    analysis = read_analysis(tmp_path)
    records = [record for record in analysis.attention if record.id != requested or record.task != "gqa"]
    assert len(analysis.attention) == len(records) + 1
    assert [record.id for record in records] == [record.id for record in run_analysis.attention]
    assert all(
        a != b
        for one, other in zip(records, run_analysis.attention, strict=True)
        for a, b in zip(one.images, other.images, strict=True)
    )
    assert "Shuffled-image control: the images shown are those that the model got" in (
        (tmp_path / "analysis.html").read_text()
    )
    assert run_analysis.notes == []
    with browser.open(tmp_path / "analysis.html") as opened:
        assert opened.page.locator(".attention-example").count() == 9
        assert opened.problems == []


def test_analyze_rejects_bad_input(folder, tmp_path, capsys):
    run = str(folder / "run")
    for arguments, message in [
        ((str(tmp_path / "missing"),), "resolved.yaml: no such file"),
        (("--adapter", run), "add --config YAML"),
        ((run, "--examples", "-1"), "--examples must be 0 or more"),
        ((run, "--split", "dev"), "dev"),
        ((run, "--adapter", run), "either a run folder or --adapter"),
        ((run, "--ids", "gqa:missing", "vqa", "other:1"), "--ids: gqa has no example 'missing' in split test"),
    ]:
        assert tiny_run.launch("analyze", *arguments) == 2
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err
    assert "--ids: 'vqa' is not TASK:ID with one of the tasks vqa, gqa, nlvr2, coco_caption" in err


def test_read_analysis_rejects_malformed_file(tmp_path):
    assert read_analysis(tmp_path) is None
    (tmp_path / "analysis.json").write_text('{"split": 3}')
    with pytest.raises(InputError, match=r"analysis.json: .*Run: multitask-vl analyze"):
        read_analysis(tmp_path)


def test_missing_images_are_noted_and_gray(folder, tmp_path):
    analysis = read_analysis(folder / "run")
    analysis = analysis.model_copy(update={"attention": analysis.attention[:2], "x_r": None})
    section = analysis_section(analysis, [tmp_path], "squash")
    assert "their maps are drawn on gray" in section.notes[0]
    assert all(image.uri for example in section.examples for image in example.images)
    (tmp_path / "bad.png").write_bytes(b"not an image")
    assert attention_overlay("bad", tmp_path / "bad.png", "squash").problem.startswith("unreadable")


def test_attention_overlay_highlights_attended_token(tmp_path):
    halves = np.zeros((40, 80, 3), dtype=np.uint8)
    halves[:, 60:] = 255
    path = tmp_path / "wide.png"
    Image.fromarray(halves).save(path)
    squashed = _decode(attention_overlay("wide", path, "squash").uri)
    assert squashed.shape == (SIDE, SIDE, 3)
    assert squashed[:, -10:].mean() > 240
    assert _decode(attention_overlay("wide", path, "crop").uri)[:, -10:].mean() < 20
    heat = _decode(attention_overlay("wide", path, "squash", [1.0, 0, 0, 0], (2, 2)).uri)
    assert heat[: SIDE // 4, : SIDE // 4].mean() > 2 * heat[-SIDE // 4 :, : SIDE // 4].mean()


def test_norm_panels_have_one_line_per_run(folder):
    norms = read_analysis(folder / "run").norms
    panels = norm_panels({"a": norms, "b": [norm for norm in norms if norm.stack == "encoder"]})
    assert [panel.title for panel in panels] == [
        f"{part}, {stack}" for stack in ("encoder", "decoder") for part in ("W_down", "W_up")
    ]
    first = [norm.change for norm in norms if (norm.stack, norm.layer, norm.part) == ("encoder", 0, "W_down")]
    assert f"a: {sum(first) / len(first):.2f}" in panels[0].summary
    assert "b: " in panels[0].summary
    assert "b: " not in panels[2].summary


def _decode(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"), dtype=np.float32)
