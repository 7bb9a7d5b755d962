"""Tests of the pipeline and the predict command: answers equal the run's, and problems are reported."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from multitask_vl.config import load_config
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.manifest import encoder_identity, encoder_mismatch
from multitask_vl.demo.answers import AnswerRenderer
from multitask_vl.demo.uploads import Limits
from multitask_vl.errors import InputError
from multitask_vl.inference import Pipeline, Request
from multitask_vl.inference.requests import read_requests
from multitask_vl.methods.artifact.adapter_io import save_adapter
from tests import tiny_run
from tests.drawn_images import DIM, SIDE, TINY, random_image, tiny_weights
from tests.tiny_artifacts import artifact_config, assert_input_error, build_from_config, write_tokenizer
from tests.tiny_models import perturb

TASKS = ("vqa", "gqa", "nlvr2", "coco_caption")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images, their features, and an evaluated adapter in ``run/``."""
    folder = tmp_path_factory.mktemp("run")
    tiny_run.write_dataset(folder)
    keys = [f"{image:012d}" for image in range(tiny_run.IMAGES)]
    pairs = {f"{split}-{n}-0" for split, size in tiny_run.SIZES.items() for n in range((size + 1) // 2)}
    (folder / "images").mkdir()
    for seed, key in enumerate([*keys, *(f"{pair}-img{side}" for pair in sorted(pairs) for side in (0, 1))]):
        random_image(seed).save(folder / "images" / f"{key}.png")
    (folder / "features.h5").unlink()
    (folder / "tiny.json").write_text(json.dumps(TINY))
    save_file(tiny_weights(), folder / "tiny.safetensors")
    values = tiny_run.base_config(folder)
    path = tiny_run.write_config(
        folder,
        vision={"model": f"{folder}/tiny.json", "pretrained": f"{folder}/tiny.safetensors", "image_size": SIDE},
        visual={"feature_dim": DIM, "pool": None},
        features={"images": ["images"]},
        # with the usual init_std the model would give the same answer for every image
        backbone={"config": values["backbone"]["config"] | {"init_std": 0.5}},
        # features differ by rounding with the batch an image is in, which could change a long caption of this model
        tasks={"coco_caption": values["tasks"]["coco_caption"] | {"decoding": {"max_length": 8}}},
    )
    assert tiny_run.launch("extract", "--config", str(path)) == 0
    config, adapter = load_config(path), folder / "run/adapter"
    trained_on = encoder_identity(FeatureStore(folder / "features.h5").manifest)
    save_adapter(perturb(build_from_config(config)), adapter, config, {"features": trained_on})
    arguments = ("--config", str(path), "--adapter", str(adapter), "--out", str(folder / "run"))
    assert tiny_run.launch("evaluate", *arguments) == 0
    return folder


@pytest.fixture(scope="module")
def pipeline(folder) -> Pipeline:
    return Pipeline.from_pretrained(folder / "run", store=folder / "features.h5")


def read_predictions(folder: Path, task: str) -> list[dict]:
    """Predictions of the run for its test split."""
    return [json.loads(line) for line in (folder / f"run/predictions/{task}/test.jsonl").read_text().splitlines()]


def predict(folder: Path, *arguments: str) -> int:
    return tiny_run.launch("predict", "--adapter", str(folder / "run"), *arguments)


@pytest.mark.parametrize("task", TASKS)
def test_pipeline_answers_equal_the_runs_predictions(folder, pipeline, task):
    rows = read_predictions(folder, task)
    requests = [
        Request(tuple(folder / f"images/{key}.png" for key in row["images"]), task, row["text"]) for row in rows
    ]
    expected = [row["prediction"] for row in rows]
    assert [answer.text for answer in pipeline.predict(requests, batch_size=3)] == expected
    assert len(set(expected)) > 1 or task in ("nlvr2", "coco_caption"), "one answer for everything shows nothing"
    paths = [str(path) for request in requests for path in request.images]
    stored = FeatureStore(folder / "features.h5").get_many([key for row in rows for key in row["images"]])
    computed = pipeline.featurizer.get_many(paths)
    np.testing.assert_allclose(computed.astype(float), stored.astype(float), rtol=5e-3, atol=5e-3)
    first = requests[0]
    assert pipeline(first.images, task, first.text) == expected[0]
    assert pipeline.warnings == [
        "the backbone's frozen weights are random (backbone.pretrained is null), so answers are not meaningful"
    ]


def test_pipeline_warns_about_another_vision_encoder(folder, tmp_path):
    save_file({name: value + 0.01 for name, value in tiny_weights().items()}, tmp_path / "other.safetensors")
    warnings = Pipeline.from_pretrained(folder / "run", vision_weights=str(tmp_path / "other.safetensors")).warnings
    (warning,) = (warning for warning in warnings if "features" in warning)
    assert "made by tiny (other.safetensors, sha256 " in warning
    assert "trained on features of tiny (tiny.safetensors, sha256 " in warning
    assert encoder_mismatch(FeatureStore(folder / "features.h5").manifest, {}) == [], "an adapter of an older version"


def test_predict_command_answers_images_and_request_files(folder, capsys):
    rows = {task: read_predictions(folder, task) for task in ("vqa", "nlvr2", "coco_caption")}
    paths = {task: [f"{folder}/images/{key}.png" for key in rows[task][0]["images"]] for task in rows}
    question = ("--task", "vqa", "--text", rows["vqa"][0]["text"])
    capsys.readouterr()
    assert predict(folder, "--image", *paths["vqa"], *question) == 0
    out, err = capsys.readouterr()
    assert out == rows["vqa"][0]["prediction"] + "\n"
    assert "warning: the backbone's frozen weights are random" in err
    assert predict(folder, "--image", *paths["coco_caption"], "--task", "coco_caption", "--json") == 0
    line = json.loads(capsys.readouterr().out)
    assert line["answer"] == rows["coco_caption"][0]["prediction"]
    assert "random" in line["warnings"][0]
    left, right = paths["nlvr2"]
    pair = ("--image", left, "--image", right)
    statement = ("--task", "nlvr2", "--text", rows["nlvr2"][0]["text"])
    assert predict(folder, *pair, *pair, *statement) == 0
    assert capsys.readouterr().out.split() == [rows["nlvr2"][0]["prediction"]] * 2
    lines = [
        {"image": f"images/{rows['vqa'][1]['images'][0]}.png", "text": rows["vqa"][1]["text"]},
        {"images": [f"images/{key}.png" for key in rows["nlvr2"][0]["images"]], "task": "nlvr2", "text": statement[3]},
        {"image": paths["coco_caption"][0], "task": "coco_caption"},
    ]
    (folder / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert predict(folder, "--requests", str(folder / "requests.jsonl"), "--task", "vqa") == 0
    expected = [rows["vqa"][1], rows["nlvr2"][0], rows["coco_caption"][0]]
    assert capsys.readouterr().out.splitlines() == [row["prediction"] for row in expected]


def test_requests_that_do_not_fit_are_all_reported(folder, pipeline):
    image = folder / "images/000000000000.png"
    requests = [
        Request((image,), "nlvr2", "a thing .", "a"),
        Request((image, image), "vqa", "what ?", "b"),
        Request((image,), "vqa", " ", "c"),
        Request((image,), "coco_caption", "what ?", "d"),
        Request((image,), "vqq", "what ?", "e"),
        Request((folder / "absent.png",), "vqa", "what ?", "f"),
        Request((folder / os.fsdecode(b"\xff.png"),), "vqa", "what ?", "g"),
        Request((folder / "\ud83d.png",), "vqa", "what ?", "h"),
        Request((image,), "vqa", "what \ud83d ?", "i"),
    ]
    assert_input_error(
        lambda: pipeline.predict(requests),
        "a: nlvr2 takes 2 images, got 1",
        "b: vqa takes 1 image, got 2",
        "c: vqa needs a text",
        "d: coco_caption takes no text",
        "e: the adapter has no task 'vqq'; did you mean",
        "f: there is no file",
        "g: there is no file",
        r"\udcff.png' is not valid UTF-8; rename the file or its folder",
        "h: there is no file",
        r"\ud83d.png' is not valid UTF-8; rename the file or its folder",
        r"i: the text 'what \ud83d ?' is not valid UTF-8",
    )
    assert pipeline((image,), "nlvr2", "a thing .", num_images=1) in ("true", "false")
    assert_input_error(lambda: pipeline([image] * 3, "vqa", "what ?", num_images=3), "visual.max_images is 2")


def test_text_over_the_token_limit(folder, pipeline):
    image, long = folder / "images/000000000000.png", "what color is the thing ? " * 8
    assert_input_error(lambda: pipeline(image, "vqa", long), "tasks.vqa.max_input_tokens", "shorten it")
    task = pipeline.tasks["vqa"]
    before, task.config = task.config, task.config.model_copy(update={"overflow": "truncate"})
    try:
        with pytest.warns(UserWarning, match="it was truncated, as in training"):
            pipeline(image, "vqa", long)
    finally:
        task.config = before


def test_files_that_are_not_images_are_described(folder, pipeline, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "zip.png", "w") as archive:
        archive.writestr("a.txt", "a")
    (tmp_path / "drawing.svg").write_text('<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>')
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><HTML><body>403</body></html>")
    (tmp_path / "empty.png").touch()
    content = (folder / "images/000000000000.png").read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "noise.png").write_bytes(bytes(range(256)))
    Image.new("1", (900, 900)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    reasons = {
        "zip.png": "it is a zip archive; unpack it",
        "drawing.svg": "it is an SVG",
        "page.jpg": "it is a web page",
        "empty.png": "it is empty",
        "half.png": "truncated",
        "noise.png": "cannot identify image file",
        "bomb.png": "810000 pixels",
    }
    with pytest.raises(InputError) as caught:
        list(pipeline.predict([Request((tmp_path / name,), "vqa", "what ?") for name in reasons]))
    for (name, reason), problem in zip(reasons.items(), caught.value.problems, strict=True):
        assert problem.startswith(f"{tmp_path / name}: cannot be read as an image: ")
        assert reason in problem


def test_malformed_request_files_are_reported(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text(
        '{"image": "a.png", "text": "?", "tsak": "vqa"}\n{"image": 3}\n{"images": []}\n{"image": "a", "text": 1}\n'
    )
    assert_input_error(
        lambda: read_requests(path, "vqa"), "unknown field", "requests.jsonl:1 (tsak)", "2 in all", "'text' must be"
    )
    assert_input_error(lambda: read_requests(path), "no 'task' is given", "--task")
    path.write_text("")
    assert_input_error(lambda: read_requests(path), "contains no requests")


def test_missing_model_files_name_the_option(folder, tmp_path, capsys):
    image = ("--image", str(folder / "images/000000000000.png"), "--task", "vqa", "--text", "what ?")
    moved = (folder / "tiny.safetensors").rename(folder / "moved.safetensors")
    try:
        assert predict(folder, *image) == 2
        assert "Set its path on this machine: --vision-weights FILE" in capsys.readouterr().err
        assert predict(folder, *image, "--vision-weights", str(moved)) == 0
        weights = tiny_weights()
        weights["visual.conv1.weight"] += 1
        save_file(weights, tmp_path / "other.safetensors")
        other = ("--vision-weights", str(tmp_path / "other.safetensors"), "--store", str(folder / "features.h5"))
        assert predict(folder, *image, *other) == 2
        assert "weights_sha256 is" in capsys.readouterr().err
    finally:
        moved.rename(folder / "tiny.safetensors")
    assert predict(folder, *image, "--backbone", str(tmp_path / "absent")) == 2
    assert "--backbone PATH" in capsys.readouterr().err
    assert predict(folder, *image, "--vision-model", "RN5O") == 2
    assert "--vision-model FILE" in capsys.readouterr().err
    assert predict(folder, *image, "--device", "cuda:77") == 2
    assert "--device: cuda:77 is not available" in capsys.readouterr().err
    assert predict(folder, *image[:2]) == 2
    assert "--task: the adapter has 4 tasks; choose one of vqa, gqa" in capsys.readouterr().err


def test_vision_encoder_with_another_dimension(tmp_path):
    config = artifact_config(write_tokenizer(tmp_path / "tokenizer"))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    vision = config.vision.model_copy(update={"model": str(tmp_path / "tiny.json"), "image_size": SIDE})
    config = config.model_copy(update={"vision": vision})
    save_adapter(build_from_config(config), tmp_path / "adapter", config)
    assert_input_error(
        lambda: Pipeline.from_pretrained(tmp_path / "adapter"), "of dimension 256", "of dimension 8", "--vision-model"
    )


@pytest.mark.shared
def test_photo_with_real_model_widths(shared, tmp_path, capsys, monkeypatch):
    """CLIP RN101 and BART-base (two layers) with random weights answer about a photo and warn about the weights."""
    overrides = [
        f"backbone.tokenizer={shared / 'data/bart_tokenizer'}",
        "backbone.config={encoder_layers: 1, decoder_layers: 1}",
    ]
    config = load_config(tiny_run.ROOT / "configs/examples/real_photos.yaml", overrides)
    save_adapter(build_from_config(config), tmp_path, config)
    photo = shared / "data/coco_photos/images/000000000071.jpg"
    pipeline = Pipeline.from_pretrained(tmp_path)
    monkeypatch.setattr("multitask_vl.cli.predict.pipeline_from_args", lambda *_: pipeline)
    arguments = ("--adapter", str(tmp_path), "--image", str(photo), "--task", "vqa", "--text", "what is in the image?")
    assert tiny_run.launch("predict", *arguments, "--json") == 0
    line = json.loads(capsys.readouterr().out)
    assert isinstance(line["answer"], str)
    assert [warning.split(" are random")[0] for warning in line["warnings"]] == [
        "the backbone's frozen weights", "the vision encoder's weights",
    ]  # fmt: skip
    html = AnswerRenderer({"photo": pipeline}, Limits()).render("vqa", [str(photo)], "what is it?")
    assert "on a 6 x 6 grid, averaged over\n        1 layers, 12 heads" in html
    assert html.count("weights are random") == 2
