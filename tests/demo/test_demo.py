"""Does the demo answer as the command does, show where the model looked, and keep its page whole in a real browser?"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from multitask_vl.config import load_config
from multitask_vl.demo.answers import Answers
from multitask_vl.demo.overlay import draw
from multitask_vl.demo.uploads import Limits
from multitask_vl.inference import Pipeline
from multitask_vl.inference.attention import attention
from multitask_vl.methods.artifact.adapter_io import save_adapter
from tests import tiny_run
from tests.chromium import Browser
from tests.demo_server import MISSING, serving
from tests.drawn_images import DIM, SIDE, TINY, picture, tiny_weights
from tests.tiny_artifacts import built
from tests.tiny_models import shaken, tiny_batch, tiny_model


def write_adapter(folder: Path, **sections) -> Path:
    """An adapter whose trunk and tokenizer lie in ``folder``; returns its own folder."""
    tiny_run.write_files(folder)
    (folder / "tiny.json").write_text(json.dumps(TINY))
    save_file(tiny_weights(), folder / "tiny.safetensors")
    clip = {"model": f"{folder}/tiny.json", "pretrained": f"{folder}/tiny.safetensors", "image_size": SIDE}
    backbone = {"config": tiny_run.values(folder)["backbone"]["config"] | {"init_std": 0.5}}
    sections = {"clip": clip, "visual": {"feature_dim": DIM, "pool": None}, "backbone": backbone} | sections
    config = load_config(tiny_run.write_config(folder, **sections))
    save_adapter(shaken(built(config)), folder / "run/adapter", config)
    for name in ("left", "right"):
        picture(len(name)).save(folder / f"{name}.png")
    return folder / "run/adapter"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_adapter(folder)
    return folder


@pytest.fixture(scope="module")
def answers(folder) -> Answers:
    """Two adapters side by side, one of them with a name that is markup."""
    pipeline = Pipeline.from_pretrained(folder / "run")
    return Answers({"one": pipeline, "<b>two</b>": pipeline}, Limits())


@pytest.fixture(scope="module")
def server(answers, tmp_path_factory):
    with serving(answers, tmp_path_factory.mktemp("uploads")) as server:
        yield server


@pytest.mark.parametrize("family", ["bart", "t5"])
@pytest.mark.parametrize("images", [1, 2])
def test_attention_is_the_library_s(family, images):
    """Against the weights that the library itself gives, and the model is as before afterwards."""
    model = shaken(tiny_model("adapter", {"function": "mul"}, family=family))
    batch = tiny_batch("nlvr2" if images == 2 else "vqa", images, rows=1)
    words = torch.tensor([False, True, True, False])
    before = model(batch)
    found = attention(model, batch, batch.labels[:1], words)
    assert torch.equal(model(batch), before)
    model.lm.set_attn_implementation("eager")
    with torch.inference_mode(), model.context.of(batch.task):
        encoded = model.encode(batch)
        out = model.lm(
            encoder_outputs=(encoded.states,), attention_mask=encoded.kinds, labels=batch.labels, output_attentions=True
        )
    expected = torch.stack(out.cross_attentions)[:, 0][:, :, words].mean((0, 1, 2))
    assert (found.layers, found.heads) == torch.stack(out.cross_attentions)[:, 0].shape[:2]
    assert found.cells.shape == (images, 36)
    np.testing.assert_allclose(found.cells.ravel(), expected[-36 * images :].numpy(), rtol=1e-4)
    assert found.on_pictures == pytest.approx(1 - float(expected[: -36 * images].sum()), abs=1e-5)
    assert attention(model, batch, batch.labels[:1], words & False).on_pictures > 0


def test_a_map_is_bright_where_attention_is():
    cells = np.zeros((2, 2))
    cells[1, 0] = 1.0
    grey = Image.new("RGB", (80, 40), (120, 120, 120))
    seen = np.asarray(draw(grey, cells, (0, 1))).sum(-1)
    assert seen[35, 5] > seen[5, 5] + 150
    assert seen[35, 5] > seen[35, 75] + 150
    cropped = np.asarray(draw(grey, cells, (0, 1), crop=True))
    # outside of the square that the trunk saw nothing is drawn
    assert (cropped[:, :20] == 120).all()
    assert cropped[35, 25].sum() > cropped[5, 25].sum() + 150
    assert (np.asarray(draw(grey, cells * 0 + 1, (1, 1))) < 120).all()


@pytest.mark.parametrize("task", ["vqa", "gqa", "nlvr2", "coco_caption"])
def test_every_adapter_answers_as_the_command_does(folder, answers, task):
    wanted, reads_text = answers.tasks[task]
    paths = [str(folder / f"{name}.png") for name in ("left", "right")][:wanted]
    text = "is the thing red ?" * reads_text
    html = answers(task, paths, text)
    expected = answers.pipelines["one"](paths, task, text)
    said = [unescape(one) for one in re.findall(r'mvl-text">(.*?)</p>', html)]
    assert said == [expected or "<em>(it wrote nothing)</em>"] * 2
    assert re.findall("<h3>(.*?)</h3>", html) == ["one", "&lt;b&gt;two&lt;/b&gt;"]
    drawn = re.findall(r'src="data:image/jpeg;base64,(.*?)"', html)
    assert len(drawn) == 2 * wanted
    for one in drawn:
        assert Image.open(io.BytesIO(base64.b64decode(one))).size == (80, 48)
    assert "cross-attention on 2 x 2 cells" in html
    assert "weights are random" in html
    assert str(folder) not in html


def test_what_is_wrong_with_a_question_is_said(folder, answers):
    left = str(folder / "left.png")
    assert "nlvr2 takes 2 pictures; 1 given" in answers("nlvr2", [left, None], "a thing .")
    assert "vqa takes 1 picture; none given" in answers("vqa", [None], "what ?")
    assert "vqa needs a text" in answers("vqa", [left], "  ")
    assert "no adapter here has a task &#39;&lt;i&gt;&#39;" in answers("<i>", [left], "what ?")
    long = answers("vqa", [left], "what color is the thing ? " * 8)
    assert "vqa reads 20" in long
    assert "shorten it" in long
    gone = str(folder / "gone.png")
    assert "gone.png: not taken: it is not there any more; upload it again" in answers("vqa", [gone], "what ?")
    assert "upload it again" in answers.preview(gone)
    assert answers.preview(None) == ""
    assert "data:image/jpeg" in answers.preview(left)


def test_an_adapter_without_the_task_says_so(folder, answers, tmp_path):
    pipeline = Pipeline.from_pretrained(folder / "run")
    del pipeline.tasks["vqa"]
    both = Answers({"whole": answers.pipelines["one"], "part": pipeline}, Limits())
    html = both("vqa", [str(folder / "left.png")], "what ?")
    assert "has no task vqa; it has gqa, nlvr2, coco_caption" in html
    assert html.count("mvl-text") == 1
    assert list(both.tasks) == ["gqa", "nlvr2", "coco_caption", "vqa"]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(browser: Browser, server, folder, width):
    """Asked by hand: task, picture, question, and what comes back; nothing from elsewhere, nothing missing."""
    with browser.open(server.base, width) as opened:
        page = opened.page
        page.get_by_role("button", name="Ask").wait_for()
        assert "weights are random" in page.locator("#mvl-random").inner_text()
        page.locator("input[type=file]").first.set_input_files(folder / "left.png")
        page.locator(".mvl-preview img").wait_for()
        page.get_by_label("Question or statement").fill("is the thing red ?")
        page.get_by_role("button", name="Ask").click()
        page.locator(".mvl-answer").first.wait_for()
        assert page.locator(".mvl-maps img").count() == 2
        tops = [one.bounding_box()["y"] for one in page.locator(".mvl-answer").all()]
        assert (tops[0] == tops[1]) == (width == 1280), "side by side where there is room"
        page.get_by_label("Task").click()
        page.get_by_role("option", name="nlvr2").click()
        page.get_by_text("Picture 2 of 2").wait_for()
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("nlvr2 takes 2 pictures; 1 given").wait_for()
        page.get_by_label("Task").click()
        page.get_by_role("option", name="coco_caption").click()
        page.get_by_label("Question or statement").wait_for(state="hidden")
        page.get_by_role("button", name="Ask").click()
        page.locator(".mvl-answer").first.wait_for()
        assert opened.broken_pictures() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # the page ends its stream of answers itself when it has them
        assert [one for one in opened.problems if "/queue/data" not in one] == []
        assert [one for one in opened.asked if not one.startswith((server.base, "data:"))] == []


@pytest.mark.slow
def test_the_program_serves_this_machine_alone_and_leaves_nothing(folder, tmp_path):
    pytest.importorskip("gradio", reason=MISSING)
    words = ["launch/demo.py", "--adapter", f"mine={folder / 'run'}", "--port", "0"]
    env = tiny_run.environment(TMPDIR=str(tmp_path), PYTHONUNBUFFERED="1", PYTHONPATH=str(tiny_run.ROOT))
    with subprocess.Popen(
        [sys.executable, *words], cwd=tiny_run.ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            assert "mine: the backbone's frozen weights are random" in running.stdout.readline()
            address = running.stdout.readline().split()[0]
            assert address.startswith("http://127.0.0.1:")
            assert b"gradio" in urllib.request.urlopen(address).read()
            assert len(list(tmp_path.glob("multitask-vl-demo-*"))) == 1
        finally:
            running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0, running.stderr.read()
    assert list(tmp_path.glob("multitask-vl-demo-*")) == []


def test_the_program_says_what_it_cannot_do(folder, capsys, monkeypatch):
    adapter = str(folder / "run")
    assert tiny_run.launch("demo", "--adapter", adapter, "--adapter", adapter) == 2
    assert "--adapter first=DIR --adapter second=DIR" in capsys.readouterr().err
    assert tiny_run.launch("demo", "--adapter", adapter, "--max-megapixels", "0") == 2
    assert "--max-megapixels: got 0.0" in capsys.readouterr().err
    assert tiny_run.launch("demo", "--adapter", str(folder)) == 2
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert tiny_run.launch("demo", "--adapter", adapter) == 2
    assert "the page needs gradio: pip install" in capsys.readouterr().err
    monkeypatch.undo()
    pytest.importorskip("gradio", reason=MISSING)
    assert tiny_run.launch("demo", "--adapter", adapter, "--host", "203.0.113.1", "--port", "7") == 2
    assert "--host 203.0.113.1 --port 7: " in capsys.readouterr().err
    assert "GRADIO_TEMP_DIR" not in os.environ
