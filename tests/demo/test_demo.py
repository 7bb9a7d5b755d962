"""Tests of the demo page: answers, attention maps, messages, browser behavior and the command."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import signal
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from multitask_vl.demo.answers import AnswerRenderer
from multitask_vl.demo.overlay import draw_attention
from multitask_vl.demo.uploads import Limits
from multitask_vl.inference import Pipeline
from multitask_vl.inference.attention import answer_attention
from tests import tiny_run
from tests.chromium import Browser
from tests.demo_server import MISSING, serving, write_adapter
from tests.tiny_models import perturb, tiny_batch, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_adapter(folder)
    return folder


@pytest.fixture(scope="module")
def renderer(folder) -> AnswerRenderer:
    """Two adapters side by side; the name of one contains markup."""
    pipeline = Pipeline.from_pretrained(folder / "run")
    return AnswerRenderer({"one": pipeline, "<b>two</b>": pipeline}, Limits())


@pytest.fixture(scope="module")
def server(renderer, tmp_path_factory):
    with serving(renderer, tmp_path_factory.mktemp("uploads")) as client:
        yield client


@pytest.mark.parametrize("family", ["bart", "t5"])
@pytest.mark.parametrize("images", [1, 2])
def test_answer_attention_equals_transformers(family, images):
    """The weights are those that transformers returns, and the model is unchanged afterwards."""
    model = perturb(tiny_model("adapter", {"function": "mul"}, family=family))
    batch = tiny_batch("nlvr2" if images == 2 else "vqa", images, rows=1)
    mask = torch.tensor([False, True, True, False])
    before = model(batch)
    found = answer_attention(model, batch, batch.labels[:1], mask)
    assert torch.equal(model(batch), before)
    model.lm.set_attn_implementation("eager")
    with torch.inference_mode(), model.context.task_scope(batch.task):
        encoded = model.encode(batch)
        out = model.lm(
            encoder_outputs=(encoded.hidden_states,),
            attention_mask=encoded.token_types,
            labels=batch.labels,
            output_attentions=True,
        )
    weights = torch.stack(out.cross_attentions)[:, 0]
    expected = weights[:, :, mask].mean((0, 1, 2))
    assert (found.num_layers, found.num_heads) == weights.shape[:2]
    assert found.weights.shape == (images, 36)
    np.testing.assert_allclose(found.weights.ravel(), expected[-36 * images :].numpy(), rtol=1e-4)
    assert found.image_share == pytest.approx(1 - float(expected[: -36 * images].sum()), abs=1e-5)
    assert answer_attention(model, batch, batch.labels[:1], mask & False).image_share > 0


def test_overlay_is_bright_where_attention_is_high():
    weights = np.zeros((2, 2))
    weights[1, 0] = 1.0
    gray = Image.new("RGB", (80, 40), (120, 120, 120))
    brightness = np.asarray(draw_attention(gray, weights, (0, 1))).sum(-1)
    assert brightness[35, 5] > brightness[5, 5] + 150
    assert brightness[35, 5] > brightness[35, 75] + 150
    cropped = np.asarray(draw_attention(gray, weights, (0, 1), crop=True))
    # nothing is drawn outside the square that the vision encoder sees
    assert (cropped[:, :20] == 120).all()
    assert cropped[35, 25].sum() > cropped[5, 25].sum() + 150
    assert (np.asarray(draw_attention(gray, weights * 0 + 1, (1, 1))) < 120).all()


@pytest.mark.parametrize("task", ["vqa", "gqa", "nlvr2", "coco_caption"])
def test_page_shows_the_pipelines_answers(folder, renderer, task):
    num_images, has_text = renderer.tasks[task]
    paths = [str(folder / f"{name}.png") for name in ("left", "right")][:num_images]
    text = "is the thing red ?" * has_text
    html = renderer.render(task, paths, text)
    expected = renderer.pipelines["one"](paths, task, text)
    shown = [unescape(answer) for answer in re.findall(r'mvl-text">(.*?)</p>', html)]
    assert shown == [expected or "<em>(empty answer)</em>"] * 2
    assert re.findall("<h3>(.*?)</h3>", html) == ["one", "&lt;b&gt;two&lt;/b&gt;"]
    overlays = re.findall(r'src="data:image/jpeg;base64,(.*?)"', html)
    assert len(overlays) == 2 * num_images
    for data in overlays:
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (80, 48)
    assert "Cross-attention of the decoder on a 2 x 2 grid" in html
    assert "weights are random" in html
    assert str(folder) not in html


def test_page_reports_problems_of_a_question(folder, renderer):
    left = str(folder / "left.png")
    assert "nlvr2 takes 2 images, got 1" in renderer.render("nlvr2", [left, None], "a thing .")
    assert "vqa takes 1 image, got 0" in renderer.render("vqa", [None], "what ?")
    assert "vqa needs a text" in renderer.render("vqa", [left], "  ")
    assert "no adapter has a task &#39;&lt;i&gt;&#39;" in renderer.render("<i>", [left], "what ?")
    long = renderer.render("vqa", [left], "what color is the thing ? " * 8)
    assert "vqa reads at most 20" in long
    assert "shorten it" in long
    absent = str(folder / "absent.png")
    assert "absent.png: rejected: the upload has expired" in renderer.render("vqa", [absent], "what ?")
    assert "upload it again" in renderer.render_preview(absent)
    assert renderer.render_preview(None) == ""
    assert "data:image/jpeg" in renderer.render_preview(left)


def test_adapter_without_the_task_lists_its_tasks(folder, renderer):
    pipeline = Pipeline.from_pretrained(folder / "run")
    del pipeline.tasks["vqa"]
    both = AnswerRenderer({"all": renderer.pipelines["one"], "part": pipeline}, Limits())
    html = both.render("vqa", [str(folder / "left.png")], "what ?")
    assert "this adapter has no task vqa; its tasks: gqa, nlvr2, coco_caption" in html
    assert html.count("mvl-text") == 1
    assert list(both.tasks) == ["gqa", "nlvr2", "coco_caption", "vqa"]


@pytest.mark.parametrize("width", [1280, 390])
def test_page_works_in_a_browser(browser: Browser, server, folder, width):
    """Upload, ask and read the answer; on the wide page also switch tasks. No requests to other hosts."""
    with browser.open(server.base, width) as opened:
        page = opened.page
        page.get_by_role("button", name="Ask").wait_for()
        assert "weights are random" in page.locator("#mvl-warnings").inner_text()
        page.locator("input[type=file]").first.set_input_files(folder / "left.png")
        page.locator(".mvl-preview img").wait_for()
        page.get_by_label("Question or statement").fill("is the thing red ?")
        page.get_by_role("button", name="Ask").click()
        page.locator(".mvl-answer").first.wait_for()
        assert page.locator(".mvl-maps img").count() == 2
        tops = [answer.bounding_box()["y"] for answer in page.locator(".mvl-answer").all()]
        assert (tops[0] == tops[1]) == (width == 1280), "side by side on a wide page"
        if width == 1280:
            page.get_by_label("Task").click()
            page.get_by_role("option", name="nlvr2").click()
            page.get_by_text("Image 2 of 2").wait_for()
            page.get_by_role("button", name="Ask").click()
            page.get_by_text("nlvr2 takes 2 images, got 1").wait_for()
            page.get_by_label("Task").click()
            page.get_by_role("option", name="coco_caption").click()
            page.get_by_label("Question or statement").wait_for(state="hidden")
            page.get_by_role("button", name="Ask").click()
            page.locator(".mvl-answer").first.wait_for()
        assert opened.broken_images() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # the page itself closes its stream of answers
        assert [problem for problem in opened.problems if "/queue/data" not in problem] == []
        assert [url for url in opened.requested_urls if not url.startswith((server.base, "data:"))] == []


@contextmanager
def no_running_loop() -> Iterator[None]:
    """Hide the event loop that playwright's browser keeps running in this thread."""
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)


def test_demo_serves_until_sigterm_and_cleans_up(folder, tmp_path, capsys, monkeypatch):
    """The command listens on this machine only, and deletes its upload folder after SIGTERM."""
    pytest.importorskip("gradio", reason=MISSING)
    from multitask_vl.demo import page

    listening, fetched = threading.Event(), {}

    def listen(host: str, port: int):
        socket = page_listen(host, port)
        fetched["address"] = socket.getsockname()
        listening.set()
        return socket

    def fetch_then_stop() -> None:
        assert listening.wait(60)
        host, port = fetched["address"]
        fetched["page"] = urllib.request.urlopen(f"http://{host}:{port}/", timeout=60).read()
        fetched["folders"] = list(tmp_path.glob("multitask-vl-demo-*"))
        # the server has answered, so its handler is installed
        os.kill(os.getpid(), signal.SIGTERM)

    page_listen = page.listen
    monkeypatch.setattr(page, "listen", listen)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    previous = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=fetch_then_stop)
    thread.start()
    try:
        with no_running_loop():
            assert tiny_run.launch("demo", "--adapter", f"mine={folder / 'run'}", "--port", "0") in (0, None)
    finally:
        signal.signal(signal.SIGTERM, previous)
        thread.join(60)
    out, err = capsys.readouterr()
    assert "mine: the backbone's frozen weights are random" in err
    assert out.startswith(f"http://127.0.0.1:{fetched['address'][1]}/")
    assert b"gradio" in fetched["page"]
    assert len(fetched["folders"]) == 1
    assert list(tmp_path.glob("multitask-vl-demo-*")) == []


def test_demo_command_reports_errors(folder, capsys, monkeypatch):
    adapter = str(folder / "run")
    assert tiny_run.launch("demo", "--adapter", adapter, "--adapter", adapter) == 2
    assert "--adapter first=DIR --adapter second=DIR" in capsys.readouterr().err
    assert tiny_run.launch("demo", "--adapter", adapter, "--max-megapixels", "0") == 2
    assert "--max-megapixels: got 0.0" in capsys.readouterr().err
    assert tiny_run.launch("demo", "--adapter", str(folder)) == 2
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert tiny_run.launch("demo", "--adapter", adapter) == 2
    assert "the demo needs gradio: pip install" in capsys.readouterr().err
    monkeypatch.undo()
    pytest.importorskip("gradio", reason=MISSING)
    assert tiny_run.launch("demo", "--adapter", adapter, "--host", "203.0.113.1", "--port", "7") == 2
    assert "--host 203.0.113.1 --port 7: " in capsys.readouterr().err
    assert "GRADIO_TEMP_DIR" not in os.environ
