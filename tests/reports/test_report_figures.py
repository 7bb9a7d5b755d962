"""Tests of learning curves, images and galleries, and of the report command."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from multitask_vl.cli.main import main
from multitask_vl.errors import InputError
from multitask_vl.reports.curves import downsample, loss_panels, score_panels, smooth
from multitask_vl.reports.gallery import choose, gallery
from multitask_vl.reports.html import write_page
from multitask_vl.reports.images import MAX_SIDE, embed_image, find_images, image_folders
from multitask_vl.reports.run import Prediction, read_run
from tests.reports.run_folders import PRIMARY_METRICS

# ---- curves


def test_downsample_and_smooth_keep_means_and_steps():
    points = [(step, float(step % 7)) for step in range(10_000)]
    short = downsample(points, 400)
    assert len(short) == 400
    assert sum(v for _, v in short) / 400 == pytest.approx(sum(v for _, v in points) / 10_000)
    assert smooth([(1, 0.0), (2, 3.0), (3, 0.0)]) == [(1, 1.5), (2, 1.0), (3, 1.5)]
    assert [step for step, _ in smooth(points)] == [step for step, _ in points]


def test_panel_summaries_describe_curves(base, copy_run):
    folder = copy_run("full")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 600, "split": "test", "scores": {"vqa": 99.9}}\n{"step": 601, "task": "late", "loss": 4}\n'
        )
        file.write('{"step": 600, "split": "val", "scores": {"vqa": 12.3}}\n')
        file.write('{"step": 601, "task": "vqa", "loss": NaN}\n{"step": 601, "event": "other"}\n')
    runs = {"this <run>": read_run(folder), "control": read_run(base / "runs" / "shuffled")}
    losses, scores = loss_panels(runs), score_panels(runs)
    assert [panel.title for panel in losses] == [*PRIMARY_METRICS, "late"]
    assert losses[-1].summary == "this <run>: 4.00 at step 601; control: none logged"
    assert list(scores) == ["val"]
    vqa = scores["val"][0]
    assert "to 12.3 at step 600; control: " in vqa.summary
    assert "Score of vqa by step. this &lt;run&gt;:" in vqa.svg
    assert "nan" not in losses[0].summary
    assert "var(--series-0)" in vqa.svg
    assert "#0a0b" not in vqa.svg


# ---- images and galleries


def predictions(scores) -> list[Prediction]:
    return [
        Prediction(id=f"q{i}", images=[], text="", prediction="", references=[], score=score)
        for i, score in enumerate(scores)
    ]


def test_choose_balances_scores_and_is_deterministic():
    rows = predictions([0.0] * 5 + [100.0] * 95)
    chosen = choose(rows, 12)
    assert [p.score for p in chosen].count(0.0) == 5
    assert len(chosen) == 12
    assert choose(list(reversed(rows)), 12) == chosen
    assert [p.score for p in choose(predictions([0.0] * 90 + [100.0] * 10), 12)].count(100.0) == 6
    assert len(choose(predictions([50.0] * 20), 12)) == 12
    assert len(choose(predictions([0.0, 100.0]), 12)) == 2
    assert choose([], 12) == []


def test_gallery_items_have_verdicts_and_references(base):
    run = read_run(base / "runs" / "full")
    groups = {group.task: group for group in gallery(run, "test", 6, image_folders(run))}
    assert all(len(group.items) == 6 and 0 < group.below < 6 for group in groups.values())
    pair = groups["nlvr2"].items[0]
    assert [pair.alt_text(i).split(", ")[1] for i in (0, 1)] == ["left of the pair", "right of the pair"]
    assert (groups["nlvr2"].has_pairs, groups["vqa"].has_pairs, groups["vqa"].fits_narrow_cards) == (True, False, True)
    assert {item.verdict for item in groups["vqa"].items} <= {"right", "partly", "wrong"}
    assert {item.verdict for item in groups["coco_caption"].items} == {None}
    assert sum(count for _, count in groups["vqa"].items[0].references) == 10


def test_embed_image_resizes_and_reports_problems(tmp_path):
    Image.new("RGBA", (1000, 500), (0, 0, 0, 0)).save(tmp_path / "wide.png")
    image = embed_image("wide", tmp_path / "wide.png")
    assert (image.width, image.height) == (MAX_SIDE, MAX_SIDE // 2)
    assert image.uri.startswith("data:image/jpeg;base64,")
    Image.new("I;16", (4, 4), 51_400).save(tmp_path / "deep.png")
    with Image.open(io.BytesIO(base64.b64decode(embed_image("deep", tmp_path / "deep.png").uri.split(",")[1]))) as deep:
        assert abs(deep.getpixel((0, 0))[0] - 200) <= 2
    (tmp_path / "circle").symlink_to(tmp_path)
    assert find_images([tmp_path], {"deep", "missing"}) == {"deep": tmp_path / "deep.png"}
    (tmp_path / "broken.png").write_bytes(b"not an image")
    assert embed_image("broken", tmp_path / "broken.png").problem == "unreadable (UnidentifiedImageError)"
    assert embed_image("missing", None).problem == "not found"


def test_image_folders_are_found_above_run(base, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = read_run(base / "runs" / "full")
    assert image_folders(run) == [base / "world" / "images"]
    run.config["data_dir"] = "world"
    assert image_folders(run) == [base / "world" / "images"]
    run.config["data_dir"] = "elsewhere"
    assert image_folders(run) == [Path("elsewhere/images")]


# ---- the command


def test_report_command_writes_page_and_prints_scores(base, copy_run, capsys):
    folder = copy_run("full")
    assert main(["report", str(folder), "--control", str(base / "runs" / "shuffled"), "--items", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"report: {folder / 'report.html'}\n")
    assert "difference" in out
    page = (folder / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<p>95 % interval" not in page
    assert [path.name for path in folder.glob(".*")] == []


def test_report_command_rejects_bad_input(base, copy_run, capsys, tmp_path):
    folder = str(copy_run("full"))
    for arguments, message in [
        ([folder, "--control", str(base / "runs" / "seed43")], "is not a shuffled-image control"),
        ([folder, "--items", "-1"], "--items: got -1"),
        ([folder, "--split", "dev"], "no split 'dev'"),
        ([str(tmp_path / "missing")], "run folder not found"),
    ]:
        assert main(["report", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (Path(folder) / "report.html").exists()


def test_write_page_keeps_old_page_on_failure(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="Run: mkdir -p"):
        write_page(tmp_path / "missing" / "page.html", "new")
    page = write_page(tmp_path / "page.html", "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_page(page, "new")
    assert page.read_text() == "old"
    assert list(tmp_path.iterdir()) == [page]
