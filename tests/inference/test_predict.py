"""Does a saved adapter answer about picture files as its run did, and say clearly what it cannot answer?"""

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
from multitask_vl.data.store.manifest import other_trunk, trunk_of
from multitask_vl.demo.answers import Answers
from multitask_vl.demo.uploads import Limits
from multitask_vl.errors import InputError
from multitask_vl.inference import Pipeline, Request
from multitask_vl.inference.requests import read_requests
from multitask_vl.methods.artifact.adapter_io import save_adapter
from tests import tiny_run
from tests.drawn_images import DIM, SIDE, TINY, picture, tiny_weights
from tests.tiny_artifacts import built, refused, whole_config, write_words
from tests.tiny_models import shaken


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where an adapter for real pictures, features by its own trunk, has been evaluated; ``run/`` is its folder."""
    folder = tmp_path_factory.mktemp("run")
    tiny_run.write_files(folder)
    keys = [f"{image:012d}" for image in range(tiny_run.IMAGES)]
    pairs = {f"{split}-{n}-0" for split, size in tiny_run.SIZES.items() for n in range((size + 1) // 2)}
    (folder / "images").mkdir()
    for seed, key in enumerate([*keys, *(f"{pair}-img{side}" for pair in sorted(pairs) for side in (0, 1))]):
        picture(seed).save(folder / "images" / f"{key}.png")
    (folder / "features.h5").unlink()
    (folder / "tiny.json").write_text(json.dumps(TINY))
    save_file(tiny_weights(), folder / "tiny.safetensors")
    clip = {"model": f"{folder}/tiny.json", "pretrained": f"{folder}/tiny.safetensors", "image_size": SIDE}
    visual, features = {"feature_dim": DIM, "pool": None}, {"images": ["images"]}
    # weights of the usual spread, or a few steps of training, would say the same of every picture
    values = tiny_run.values(folder)
    backbone = {"config": values["backbone"]["config"] | {"init_std": 0.5}}
    # features of a picture differ by a rounding with the batch it is in, which long texts of such a model would blow up
    tasks = {"coco_caption": values["tasks"]["coco_caption"] | {"decoding": {"max_length": 8}}}
    sections = {"clip": clip, "visual": visual, "features": features, "backbone": backbone, "tasks": tasks}
    path = tiny_run.write_config(folder, **sections)
    assert tiny_run.launch("extract_features", "--config", str(path)) == 0
    config = load_config(path)
    adapter = folder / "run/adapter"
    trained_on = trunk_of(FeatureStore(folder / "features.h5").manifest)
    save_adapter(shaken(built(config)), adapter, config, {"features": trained_on})
    words = ("--config", str(path), "--adapter", str(adapter), "--out", str(folder / "run"))
    assert tiny_run.launch("evaluate", *words) == 0
    return folder


@pytest.fixture(scope="module")
def pipeline(folder) -> Pipeline:
    return Pipeline.from_pretrained(folder / "run", store=folder / "features.h5")


def predicted(folder: Path, task: str) -> list[dict]:
    """Rows that the run wrote of its report split."""
    return [json.loads(line) for line in (folder / f"run/predictions/{task}/report.jsonl").read_text().splitlines()]


def asked(folder: Path, *words: str) -> int:
    return tiny_run.launch("predict", "--adapter", str(folder / "run"), *words)


@pytest.mark.parametrize("task", ["vqa", "gqa", "nlvr2", "coco_caption"])
def test_files_get_the_answers_that_the_run_gave(folder, pipeline, task):
    rows = predicted(folder, task)
    requests = [
        Request(tuple(folder / f"images/{key}.png" for key in row["images"]), task, row["text"]) for row in rows
    ]
    expected = [row["prediction"] for row in rows]
    assert [answer.text for answer in pipeline.answers(requests, batch_size=3)] == expected
    assert len(set(expected)) > 1 or task in ("nlvr2", "coco_caption"), "the same of everything shows nothing"
    paths, keys = [str(path) for one in requests for path in one.images], [key for row in rows for key in row["images"]]
    stored = FeatureStore(folder / "features.h5").get_many(keys)
    np.testing.assert_allclose(
        pipeline.pictures.get_many(paths).astype(float), stored.astype(float), rtol=5e-3, atol=5e-3
    )
    one = requests[0]
    assert pipeline(one.images, task, one.text) == expected[0]
    assert pipeline.remarks == [
        "the backbone's frozen weights are random (backbone.pretrained is null), so answers mean little"
    ]


def test_another_trunk_than_that_of_training_is_remarked(folder, tmp_path):
    save_file({name: value + 0.01 for name, value in tiny_weights().items()}, tmp_path / "other.safetensors")
    remarks = Pipeline.from_pretrained(folder / "run", clip=str(tmp_path / "other.safetensors")).remarks
    (remark,) = (one for one in remarks if "features" in one)
    assert "made by tiny (other.safetensors, sha256 " in remark
    assert "trained on those of tiny (tiny.safetensors, sha256 " in remark
    assert other_trunk(FeatureStore(folder / "features.h5").manifest, {}) == [], "an adapter of an older version"


def test_the_command_answers_one_several_and_a_file(folder, capsys):
    rows = {task: predicted(folder, task) for task in ("vqa", "nlvr2", "coco_caption")}
    paths = {task: [f"{folder}/images/{key}.png" for key in rows[task][0]["images"]] for task in rows}
    question = ("--task", "vqa", "--text", rows["vqa"][0]["text"])
    capsys.readouterr()
    assert asked(folder, "--image", *paths["vqa"], *question) == 0
    out, err = capsys.readouterr()
    assert out == rows["vqa"][0]["prediction"] + "\n"
    assert "note: the backbone's frozen weights are random" in err
    assert asked(folder, "--image", *paths["coco_caption"], "--task", "coco_caption", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["answer"] == rows["coco_caption"][0]["prediction"]
    assert "random" in said["remarks"][0]
    left, right = paths["nlvr2"]
    both = ("--image", left, "--image", right)
    statement = ("--task", "nlvr2", "--text", rows["nlvr2"][0]["text"])
    assert asked(folder, *both, *both, *statement) == 0
    assert capsys.readouterr().out.split() == [rows["nlvr2"][0]["prediction"]] * 2
    lines = [
        {"image": f"images/{rows['vqa'][1]['images'][0]}.png", "text": rows["vqa"][1]["text"]},
        {"images": [f"images/{key}.png" for key in rows["nlvr2"][0]["images"]], "task": "nlvr2", "text": statement[3]},
        {"image": paths["coco_caption"][0], "task": "coco_caption"},
    ]
    (folder / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert asked(folder, "--requests", str(folder / "asked.jsonl"), "--task", "vqa") == 0
    expected = [rows["vqa"][1], rows["nlvr2"][0], rows["coco_caption"][0]]
    assert capsys.readouterr().out.splitlines() == [row["prediction"] for row in expected]


def test_what_does_not_fit_the_task_is_told_at_once(folder, pipeline):
    one = folder / "images/000000000000.png"
    requests = [
        Request((one,), "nlvr2", "a thing .", "a"),
        Request((one, one), "vqa", "what ?", "b"),
        Request((one,), "vqa", " ", "c"),
        Request((one,), "coco_caption", "what ?", "d"),
        Request((one,), "vqq", "what ?", "e"),
        Request((folder / "absent.png",), "vqa", "what ?", "f"),
        Request((folder / os.fsdecode(b"\xff.png"),), "vqa", "what ?", "g"),
        Request((folder / "\ud83d.png",), "vqa", "what ?", "h"),
        Request((one,), "vqa", "what \ud83d ?", "i"),
    ]
    refused(
        lambda: pipeline.answers(requests),
        "a: nlvr2 takes 2 pictures, got 1",
        "b: vqa takes 1 picture, got 2",
        "c: vqa needs a text",
        "d: coco_caption reads no text",
        "e: the adapter has no task 'vqq'; did you mean",
        "f: there is no file",
        "g: there is no file",
        r"\udcff.png' is not UTF-8; rename the file or its folder",
        "h: there is no file",
        r"\ud83d.png' is not UTF-8; rename the file or its folder",
        r"i: the text 'what \ud83d ?' is not UTF-8",
    )
    assert pipeline((one,), "nlvr2", "a thing .", pictures=1) in ("true", "false")
    refused(lambda: pipeline([one] * 3, "vqa", "what ?", pictures=3), "visual.max_images is 2")


def test_a_text_over_the_task_s_limit(folder, pipeline):
    one, long = folder / "images/000000000000.png", "what color is the thing ? " * 8
    refused(lambda: pipeline(one, "vqa", long), "tasks.vqa.max_input_tokens", "shorten it")
    task = pipeline.tasks["vqa"]
    before, task.config = task.config, task.config.model_copy(update={"too_long": "truncate"})
    try:
        with pytest.warns(UserWarning, match="it was cut, as in training"):
            pipeline(one, "vqa", long)
    finally:
        task.config = before


def test_files_that_are_no_pictures(folder, pipeline, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "zip.png", "w") as archive:
        archive.writestr("a.txt", "a")
    (tmp_path / "drawing.svg").write_text('<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>')
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><HTML><body>403</body></html>")
    (tmp_path / "empty.png").touch()
    whole = (folder / "images/000000000000.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.png").write_bytes(bytes(range(256)))
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000_000)
    names = {
        "zip.png": "it is a zip archive; unpack it",
        "drawing.svg": "it is an SVG",
        "page.jpg": "it is a web page",
        "empty.png": "it is empty",
        "cut.png": "truncated",
        "noise.png": "cannot identify image file",
        "bomb.png": "81000000 pixels",
    }
    problems = []
    with pytest.raises(InputError) as caught:
        list(pipeline.answers([Request((tmp_path / name,), "vqa", "what ?") for name in names]))
    problems = caught.value.problems
    assert len(problems) == len(names)
    for (name, why), problem in zip(names.items(), problems, strict=True):
        assert problem.startswith(f"{tmp_path / name}: cannot be read as a picture: ")
        assert why in problem


def test_request_files_that_are_malformed(tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text(
        '{"image": "a.png", "text": "?", "tsak": "vqa"}\n{"image": 3}\n{"images": []}\n{"image": "a", "text": 1}\n'
    )
    refused(
        lambda: read_requests(path, "vqa"), "unknown field", "asked.jsonl:1 (tsak)", "2 in all", "'text' must be text"
    )
    refused(lambda: read_requests(path), "no 'task' is given", "--task")
    path.write_text("")
    refused(lambda: read_requests(path), "holds no request")


def test_what_is_not_on_this_machine_is_named_with_the_way_to_say_where(folder, tmp_path, capsys):
    image = ("--image", str(folder / "images/000000000000.png"), "--task", "vqa", "--text", "what ?")
    moved = (folder / "tiny.safetensors").rename(folder / "moved.safetensors")
    try:
        assert asked(folder, *image) == 2
        assert "Say where it lies on this machine: --clip FILE" in capsys.readouterr().err
        assert asked(folder, *image, "--clip", str(moved)) == 0
        weights = tiny_weights()
        weights["visual.conv1.weight"] += 1
        save_file(weights, tmp_path / "other.safetensors")
        other = ("--clip", str(tmp_path / "other.safetensors"), "--store", str(folder / "features.h5"))
        assert asked(folder, *image, *other) == 2
        assert "weights_sha256 is" in capsys.readouterr().err
    finally:
        moved.rename(folder / "tiny.safetensors")
    assert asked(folder, *image, "--backbone", str(tmp_path / "absent")) == 2
    assert "--backbone PATH" in capsys.readouterr().err
    assert asked(folder, *image, "--clip-model", "RN5O") == 2
    assert "--clip-model FILE" in capsys.readouterr().err
    assert asked(folder, *image, "--device", "cuda:77") == 2
    assert "--device: cuda:77 is not here" in capsys.readouterr().err
    assert asked(folder, *image[:2]) == 2
    assert "--task: the adapter has 4, say which: vqa, gqa" in capsys.readouterr().err


def test_an_adapter_of_features_that_no_trunk_here_makes(tmp_path):
    config = whole_config(write_words(tmp_path / "words"))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    clip = config.clip.model_copy(update={"model": str(tmp_path / "tiny.json"), "image_size": SIDE})
    config = config.model_copy(update={"clip": clip})
    save_adapter(built(config), tmp_path / "adapter", config)
    refused(lambda: Pipeline.from_pretrained(tmp_path / "adapter"), "256 channels, the adapter reads 8", "--clip-model")


@pytest.mark.slow
@pytest.mark.shared
def test_a_photograph_through_models_of_the_real_sizes(shared, tmp_path, capsys):
    """RN101 and BART-base with random weights, which the output says."""
    overrides = [f"backbone.tokenizer={shared / 'data/bart_tokenizer'}"]
    config = load_config(tiny_run.ROOT / "configs/examples/real_photos.yaml", overrides)
    save_adapter(built(config), tmp_path, config)
    photo = shared / "data/coco_photos/images/000000000071.jpg"
    words = ("--adapter", str(tmp_path), "--image", str(photo), "--task", "vqa", "--text", "what is in the picture?")
    assert tiny_run.launch("predict", *words, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert isinstance(said["answer"], str)
    assert [remark.split(" are random")[0] for remark in said["remarks"]] == [
        "the backbone's frozen weights", "the trunk's weights",
    ]  # fmt: skip
    html = Answers({"photo": Pipeline.from_pretrained(tmp_path)}, Limits())("vqa", [str(photo)], "what is it?")
    assert "cross-attention on 6 x 6 cells, mean over\n        6 layers, 12 heads" in html
    assert html.count("weights are random") == 2
