"""Tests of the report page: self-contained, escaped, accessible, with readable colors."""

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from multitask_vl.reports.html import TEMPLATES_DIR
from multitask_vl.reports.page import write_report
from tests.reports.run_folders import make_run, make_scenes

STYLE = (TEMPLATES_DIR / "style.html").read_text()


class Elements(HTMLParser):
    """All elements of a page as (name, attributes), and its text outside of style and script."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.current = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.current = tag

    def handle_data(self, data):
        if self.current not in ("style", "script"):
            self.text += data

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in names]


@pytest.fixture(scope="module")
def page(hostile_report) -> str:
    return hostile_report.read_text()


@pytest.fixture(scope="module")
def elements(page) -> Elements:
    return Elements(page)


def test_page_is_self_contained(page, elements):
    assert elements.named("link", "iframe", "object") == []
    assert elements.named("script") == [{}]
    for _, attributes in elements.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg;base64,"))
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)|@import", page)
    policy = next(a["content"] for a in elements.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_page_escapes_texts_of_run(elements):
    # 24 cards with question, prediction and reference; a note, a group and a configuration comment
    assert elements.text.count('<script>alert("1")</script>') >= 3 * 24 + 3
    assert "{{ 7 * 7 }} $x^2$" in elements.text


def test_page_has_all_examples_and_numbers(elements):
    for text in (
        "test-0",
        "test-23",
        "shuffled-image control",
        "adapter per_task",
        "349,696",
        "12.17 %",
        "x_R: encoder",
        "SPICE: not computed",
        "coco_caption, BLEU-4: corpus level",
        "vqa by question type (20 groups)",
        "✓ right",
        "✗ wrong",
    ):
        assert text in elements.text


def test_page_frames_and_counts_missing_images(elements):
    frames = [a["aria-label"] for a in elements.named("div") if a.get("class") == "missing"]
    images = elements.named("img")
    assert any("scene_0000" in frame and frame.endswith("not found") for frame in frames)
    assert any("scene_0001" in frame and "unreadable" in frame for frame in frames)
    assert f"{len(frames)} of {len(frames) + len(images)} images are not shown (first: scene_000" in elements.text
    assert len(frames) + len(images) == 24 * 5


def test_page_is_accessible(elements):
    assert all(a["alt"].startswith("Image scene_") for a in elements.named("img"))
    assert {a.get("scope") for a in elements.named("th")} == {"col", "row"}
    charts = [a for a in elements.named("svg") if a.get("aria-hidden") != "true"]
    assert len(charts) == 8
    ids = Counter(a["id"] for _, a in elements.elements if "id" in a)
    assert [id_ for id_, count in ids.items() if count > 1] == []
    for _, attributes in elements.elements:
        for name in (attributes.get("aria-labelledby"), (attributes.get("href") or "").removeprefix("#")):
            assert not name or name in ids
    assert next(a["lang"] for a in elements.named("html")) == "en"
    levels = [int(tag[1]) for tag, _ in elements.elements if re.fullmatch("h[1-6]", tag)]
    assert all(b <= a + 1 for a, b in zip([0, *levels], levels, strict=False))


def test_page_reports_missing_parts(tmp_path):
    scenes = make_scenes(tmp_path / "world", count=2)
    run = make_run(tmp_path / "run", scenes, tmp_path / "world", features__images=[], features__shuffle_images=True)
    (run / "metrics.jsonl").write_text("")
    text = Elements(write_report(run, out=tmp_path / "page.html", items=1).read_text()).text
    assert "shuffled-image control: trained and tested with the features of other images" in text
    assert "metrics.jsonl has no training line." in text
    assert "No split was scored during training." in text
    assert "5 of 5 images are not shown" in text
    assert "features.images is empty" in text
    parsed = Elements(write_report(run, images=[tmp_path / "world" / "images"]).read_text())
    assert len(parsed.named("img")) == 10
    run = make_run(tmp_path / "unshuffled", scenes, tmp_path / "world")
    (run / "metrics.jsonl").write_text("")
    text = Elements(write_report(run, items=0).read_text()).text
    assert f"features.shuffle_images=true run_dir={run}_shuffled" in text
    assert "Gallery" not in text


# ---- colors


def themes() -> dict[str, dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)
    return {
        name: dict(re.findall(r"--([\w-]+): (#\w{6})", b))
        for name, b in zip(("light", "dark", "print"), blocks, strict=True)
    }


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two colors, 1 to 21."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_theme_colors_have_enough_contrast(theme):
    colors = themes()[theme]
    for background in (colors["paper"], colors["panel"]):
        for name in ("ink", "soft", "accent", "right", "partly", "wrong"):
            assert contrast(colors[name], background) >= 4.5, (name, background)
        for i in range(6):
            assert contrast(colors[f"series-{i}"], background) >= 3.0, (i, background)
    # Cells of confusion tables are shaded with at most 40 % of the color.
    parts = [[int(colors[name][i : i + 2], 16) for i in (1, 3, 5)] for name in ("series-0", "paper")]
    shade = "#" + "".join(f"{round(0.4 * a + 0.6 * b):02x}" for a, b in zip(*parts, strict=True))
    assert contrast(colors["ink"], shade) >= 4.5
    assert contrast(colors["paper"], colors["ink"]) >= 4.5
