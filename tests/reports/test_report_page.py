"""Is the report page whole, safe and readable, by its markup and its colours?"""

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from multitask_vl.reports.page import write_report
from tests.reports.run_folders import hostile_page, make_run, make_world

STYLE = Path(write_report.__globals__["__file__"]).with_name("style.html").read_text()


class Elements(HTMLParser):
    """All elements of a page as (name, attributes), and its text outside of style and script."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside not in ("style", "script"):
            self.text += data

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag in names]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """The page of a run with a blind control, hostile and endless texts, a lost and a broken picture."""
    return hostile_page(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def elements(page) -> Elements:
    return Elements(page.read_text())


def test_the_page_needs_no_other_file_and_runs_no_script_but_its_own(page, elements):
    assert elements.named("link", "iframe", "object") == []
    assert elements.named("script") == [{}]
    for attributes in (attributes for _, attributes in elements.found):
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg;base64,"))
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)|@import", page.read_text())
    policy = next(a["content"] for a in elements.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    script = re.search(r"<script>(.*?)</script>", page.read_text(), re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_texts_of_the_run_are_shown_as_they_are(elements):
    # text in 24 cards: statement, prediction and reference; notes, groups and configuration besides
    assert elements.text.count('<script>alert("1")</script>') >= 3 * 24 + 3
    assert "{{ 7 * 7 }} $x^2$" in elements.text


def test_every_example_and_number_is_there(elements):
    for said in (
        "report-0",
        "report-23",
        "blind control",
        "adapter per_task",
        "349,696",
        "12.17 %",
        "x_R: encoder_pooled",
    ):
        assert said in elements.text
    assert "SPICE: not computed" in elements.text
    assert "coco_caption, BLEU-4: corpus level" in elements.text
    assert "vqa by question type (20 groups)" in elements.text
    assert "✓ right" in elements.text
    assert "✗ wrong" in elements.text


def test_lost_pictures_are_framed_and_counted(elements):
    frames = [a["aria-label"] for a in elements.named("div") if a.get("class") == "missing"]
    pictures = elements.named("img")
    assert any("scene_0000" in frame and frame.endswith("not found") for frame in frames)
    assert any("scene_0001" in frame and "unreadable" in frame for frame in frames)
    assert f"{len(frames)} of {len(frames) + len(pictures)} pictures are not shown (first: scene_000" in elements.text
    assert len(frames) + len(pictures) == 24 * 5


def test_the_page_can_be_used_without_seeing_it(elements):
    assert all(a["alt"].startswith("Picture scene_") for a in elements.named("img"))
    assert {a.get("scope") for a in elements.named("th")} == {"col", "row"}
    drawings = [a for a in elements.named("svg") if a.get("aria-hidden") != "true"]
    assert len(drawings) == 8
    ids = Counter(a["id"] for _, a in elements.found if "id" in a)
    assert [id for id, times in ids.items() if times > 1] == []
    for _, attributes in elements.found:
        for name in (attributes.get("aria-labelledby"), (attributes.get("href") or "").removeprefix("#")):
            assert not name or name in ids
    assert next(a["lang"] for a in elements.named("html")) == "en"
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert all(b <= a + 1 for a, b in zip([0, *levels], levels, strict=False))


def test_a_run_without_control_curves_or_pictures_says_so(tmp_path):
    world = make_world(tmp_path / "world", count=2)
    run = make_run(tmp_path / "run", world, tmp_path / "world", features__images=[], features__control="shuffled")
    (run / "metrics.jsonl").write_text("")
    said = Elements(write_report(run, out=tmp_path / "page.html", items=1).read_text()).text
    assert "blind control: trained and tested with the features of other pictures" in said
    assert "metrics.jsonl has no line about training." in said
    assert "No split was scored during training." in said
    assert "5 of 5 pictures are not shown" in said
    assert "features.images is empty" in said
    found = Elements(write_report(run, images=[tmp_path / "world" / "images"]).read_text())
    assert len(found.named("img")) == 10
    seeing = make_run(tmp_path / "seeing", world, tmp_path / "world")
    said = Elements(write_report(seeing, items=0).read_text()).text
    assert f"features.control=shuffled run_dir={seeing}_blind" in said
    assert "Gallery" not in said


# ---- colours


def themes() -> dict[str, dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)
    return {
        name: dict(re.findall(r"--([\w-]+): (#\w{6})", b))
        for name, b in zip(("light", "dark", "paper"), blocks, strict=True)
    }


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast of two colours, 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark", "paper"])
def test_colours_can_be_told_from_their_ground(theme):
    colours = themes()[theme]
    for ground in (colours["paper"], colours["panel"]):
        for name in ("ink", "soft", "accent", "right", "partly", "wrong"):
            assert contrast(colours[name], ground) >= 4.5, (name, ground)
        for i in range(6):
            assert contrast(colours[f"series-{i}"], ground) >= 3.0, (i, ground)
    # a cell of a confusion: two fifths of the colour at most, the text on it as everywhere
    parts = [[int(colours[name][i : i + 2], 16) for i in (1, 3, 5)] for name in ("series-0", "paper")]
    shade = "#" + "".join(f"{round(0.4 * a + 0.6 * b):02x}" for a, b in zip(*parts, strict=True))
    assert contrast(colours["ink"], shade) >= 4.5
    assert contrast(colours["paper"], colours["ink"]) >= 4.5
