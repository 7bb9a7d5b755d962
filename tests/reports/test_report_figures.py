"""Are curves, pictures and the gallery what the numbers say, and does the command write the whole page?"""

import base64
import io
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from multitask_vl.reports import __main__ as command
from multitask_vl.reports.curves import loss_panels, score_panels, smoothed, thinned
from multitask_vl.reports.gallery import choose, gallery
from multitask_vl.reports.images import LONGEST_SIDE, embed, find_pictures, picture_folders
from multitask_vl.reports.page import write_report
from multitask_vl.reports.run import Prediction, read_run
from tests.reports.run_folders import HEADLINES


def edit_json(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_yaml(path: Path, change) -> None:
    value = yaml.safe_load(path.read_text())
    change(value)
    path.write_text(yaml.safe_dump(value, sort_keys=False))


# ---- curves


def test_curves_are_short_and_follow_the_numbers():
    points = [(step, float(step % 7)) for step in range(10_000)]
    short = thinned(points, 400)
    assert len(short) == 400
    assert sum(v for _, v in short) / 400 == pytest.approx(sum(v for _, v in points) / 10_000)
    assert smoothed([(1, 0.0), (2, 3.0), (3, 0.0)]) == [(1, 1.5), (2, 1.0), (3, 1.5)]
    assert [step for step, _ in smoothed(points)] == [step for step, _ in points]


def test_panels_say_in_words_what_they_draw(place, copy):
    folder = copy("full")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 600, "split": "report", "scores": {"vqa": 99.9}}\n{"step": 601, "task": "late", "loss": 4}\n'
        )
        file.write('{"step": 600, "split": "tune", "scores": {"vqa": 12.3}}\n')
        file.write('{"step": 601, "task": "vqa", "loss": NaN}\n{"step": 601, "event": "other"}\n')
    runs = {"this <run>": read_run(folder), "blind": read_run(place / "runs" / "blind")}
    losses, scores = loss_panels(runs), score_panels(runs)
    assert [panel.title for panel in losses] == [*HEADLINES, "late"]
    assert losses[-1].summary == "this <run>: 4.00 at step 601; blind: none logged"
    assert list(scores) == ["tune"]
    vqa = scores["tune"][0]
    assert "to 12.3 at step 600; blind: " in vqa.summary
    assert "Score of vqa by step. this &lt;run&gt;:" in vqa.svg
    assert "nan" not in losses[0].summary
    assert "var(--series-0)" in vqa.svg
    assert "#0a0b" not in vqa.svg


# ---- pictures and gallery


def predictions(scores) -> list[Prediction]:
    return [
        Prediction(id=f"q{i}", images=[], text="", prediction="", references=[], score=score)
        for i, score in enumerate(scores)
    ]


def test_the_gallery_mixes_right_and_wrong_and_draws_the_same_each_time():
    rows = predictions([0.0] * 5 + [100.0] * 95)
    chosen = choose(rows, 12)
    assert [p.score for p in chosen].count(0.0) == 5
    assert len(chosen) == 12
    assert choose(list(reversed(rows)), 12) == chosen
    assert [p.score for p in choose(predictions([0.0] * 90 + [100.0] * 10), 12)].count(100.0) == 6
    assert len(choose(predictions([50.0] * 20), 12)) == 12
    assert len(choose(predictions([0.0, 100.0]), 12)) == 2
    assert choose([], 12) == []


def test_gallery_items_carry_what_a_reader_needs(place):
    run = read_run(place / "runs" / "full")
    shelves = {shelf.task: shelf for shelf in gallery(run, "report", 6, picture_folders(run))}
    assert all(len(shelf.items) == 6 and 0 < shelf.below < 6 for shelf in shelves.values())
    pair = shelves["nlvr2"].items[0]
    assert [pair.caption(i).split(", ")[1] for i in (0, 1)] == ["left of the pair", "right of the pair"]
    assert (shelves["nlvr2"].wide, shelves["vqa"].wide, shelves["vqa"].brief) == (True, False, True)
    assert {item.verdict for item in shelves["vqa"].items} <= {"right", "partly", "wrong"}
    assert {item.verdict for item in shelves["coco_caption"].items} == {None}
    assert sum(times for _, times in shelves["vqa"].items[0].references) == 10


def test_pictures_are_made_small_and_faults_are_told(tmp_path):
    Image.new("RGBA", (1000, 500), (0, 0, 0, 0)).save(tmp_path / "wide.png")
    picture = embed("wide", tmp_path / "wide.png")
    assert (picture.width, picture.height) == (LONGEST_SIDE, LONGEST_SIDE // 2)
    assert picture.uri.startswith("data:image/jpeg;base64,")
    Image.new("I;16", (4, 4), 51_400).save(tmp_path / "deep.png")
    with Image.open(io.BytesIO(base64.b64decode(embed("deep", tmp_path / "deep.png").uri.split(",")[1]))) as deep:
        assert abs(deep.getpixel((0, 0))[0] - 200) <= 2
    (tmp_path / "circle").symlink_to(tmp_path)
    assert find_pictures([tmp_path], {"deep", "gone"}) == {"deep": tmp_path / "deep.png"}
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    assert embed("broken", tmp_path / "broken.png").problem == "unreadable (UnidentifiedImageError)"
    assert embed("gone", None).problem == "not found"


def test_picture_folders_start_where_the_data_is(place, copy, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = place / "runs" / "full"
    run = read_run(folder)
    assert picture_folders(run) == [place / "world" / "images"]
    run.config["data_dir"] = "world"
    assert picture_folders(run) == [place / "world" / "images"]
    run.config["data_dir"] = "elsewhere"
    assert picture_folders(run) == [Path("elsewhere/images")]
    run.config["data_dir"] = str(place / "world")


# ---- the command


def test_the_command_writes_the_page_and_prints_the_scores(place, copy, capsys):
    folder = copy("full")
    assert command.main([str(folder), "--control", str(place / "runs" / "blind"), "--items", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"report: {folder / 'report.html'}\n")
    assert "difference" in out
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert [path.name for path in folder.glob(".*")] == []


def test_the_command_refuses_bad_input_without_a_traceback(place, copy, capsys, tmp_path):
    folder = str(copy("full"))
    for arguments, told in [
        ([folder, "--control", str(place / "runs" / "seed43")], "is not a blind control"),
        ([folder, "--items", "-1"], "--items: got -1"),
        ([folder, "--split", "test"], "no split 'test'"),
        ([folder, "--out", str(tmp_path / "no" / "page.html")], "Run: mkdir -p"),
        ([str(tmp_path / "nowhere")], "there is no such run folder"),
    ]:
        assert command.main(arguments) == 2
        assert told in capsys.readouterr().err
    assert not (Path(folder) / "report.html").exists()


def test_a_failed_write_leaves_the_old_page(copy, monkeypatch):
    folder = copy("full")
    write_report(folder, items=0)
    before = (folder / "report.html").read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(folder, items=1)
    assert (folder / "report.html").read_text() == before
    assert list(folder.glob(".report*")) == []
