"""Submission files of the four tasks: written files are valid, and every defect is reported and counted."""

import gzip
import json
import re
from pathlib import Path

import pytest

from multitask_vl.cli.main import main
from multitask_vl.config import load_config
from multitask_vl.evaluation.submission import write_submission
from multitask_vl.tasks.build import build_tasks
from tests import tiny_run

QUESTIONS = {
    "vqa": ["vqa_train_questions.json", "vqa_more_questions.json"],
    "gqa": ["gqa_train.json"],
    "nlvr2": ["nlvr2_train.jsonl"],
    "coco_caption": ["image_info.json"],
}
PREDICTION = {"vqa": "", "gqa": "left", "nlvr2": "true", "coco_caption": "a café: “red” things,\nall\tof it"}


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    """Folder with official question files of four tasks, and a valid submission of each, written by the task."""
    folder = tmp_path_factory.mktemp("official")
    tiny_run.write_dataset(folder)
    more = json.loads((folder / "vqa_train_questions.json").read_text())
    more["questions"] = [{"question_id": 4_000_000_000, "image_id": 1, "question": "what ?"}]
    (folder / "vqa_more_questions.json").write_text(json.dumps(more))
    images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in (9, 318_219, 42)]
    (folder / "image_info.json").write_text(json.dumps({"info": {}, "images": images}))
    tasks = build_tasks(load_config(tiny_run.write_config(folder)))
    ids = {
        "vqa": [*range(23), 4_000_000_000],
        "gqa": range(23),
        "nlvr2": [f"train-{i // 2}-0-{i % 2}" for i in range(23)],
        "coco_caption": (9, 318_219, 42),
    }
    for name, task in tasks.items():
        predictions = {str(id_): PREDICTION[name] for id_ in ids[name]}
        assert write_submission(task, predictions, folder / "sent" / task.submission_name) == []
        (folder / "sent" / task.submission_name).rename(folder / "sent" / name)
    return folder


def check(official: Path, task: str, submission: Path, *arguments: str) -> int:
    questions = [str(official / name) for name in QUESTIONS[task]]
    command = ["check-submission", "--task", task, "--questions", *questions, "--submission", str(submission)]
    return main([*command, *arguments])


@pytest.mark.parametrize(("task", "count"), [("vqa", 24), ("gqa", 23), ("nlvr2", 23), ("coco_caption", 3)])
def test_written_submission_is_valid(official, capsys, task, count):
    assert check(official, task, official / "sent" / task) == 0
    assert f"{count} results, one for each id of " in capsys.readouterr().out


def test_check_submission_accepts_alias_and_subset(official, tmp_path, capsys):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([{"image_id": i, "caption": "a"} for i in range(7)]))
    arguments = ["--task", "caption", "--questions", str(official / "captions_test.json"), "--submission", str(path)]
    assert main(["check-submission", *arguments, "--subset", "test"]) == 0
    assert main(["check-submission", *arguments, "--subset", "train"]) == 2
    assert "there is nothing to answer in it" in capsys.readouterr().err


def with_defects(task: str, results: list) -> dict[str, tuple[list | dict, str]]:
    """Defect -> results with it, and the expected message."""
    first, second, *rest = results
    id_field, text_field = first
    is_int = isinstance(first[id_field], int)
    kind, other = ("an integer", str(first[id_field])) if is_int else ("text", int(first[id_field]))
    expected = "as in the question file: .* has" if is_int else "must be text: .* has"
    return {
        "missing": (rest, rf"{id_field} without a result \({len(results)} are expected\): 2 in all, first at"),
        "duplicate": ([*results, first, first], f"{id_field} with a second result: 2 in all, first at"),
        "unknown": (
            [*results, {**first, id_field: type(first[id_field])(77)}],
            rf"unknown {id_field}: .*77'?\)",
        ),
        "id-type": ([{**first, id_field: other}, second, *rest], f"'{id_field}' must be {kind}.*|{expected} "),
        "null-id": ([{**first, id_field: None}, second, *rest], f"'{id_field}' must be .* has null"),
        "text-type": ([{**first, text_field: 3}, second, *rest], f"'{text_field}' must be text: .*:2 has 3"),
        "no-text": ([{id_field: first[id_field]}, second, *rest], rf"'{text_field}' \(text\) is missing"),
        "other-field": ([{id_field: first[id_field], "prediction_": "a"}, second, *rest], f"'{text_field}'"),
        "line-end": ([{**first, text_field: "a\nb"}, second, *rest], r"a control character or a line end: .*'a\\nb'"),
        "lone-surrogate": ([{**first, text_field: "\ud800"}, second, *rest], r"has '\\ud800'"),
        "not-object": ([*results, "a"], "a list of {"),
        "not-list": ({str(i): result for i, result in enumerate(results)}, "a list of {"),
        "empty": ([], rf"{id_field} without a result .*: {len(results)} in all"),
    }


DEFECTS = sorted(with_defects("", [{"question_id": 1, "answer": "a"}, {"question_id": 2, "answer": "a"}]))


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("task", ["vqa", "gqa", "coco_caption"])
def test_check_submission_reports_defect_of_results(official, tmp_path, capsys, task, defect):
    results, message = with_defects(task, json.loads((official / "sent" / task).read_text()))[defect]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(results, indent=0))
    assert check(official, task, path) == 2
    err = capsys.readouterr().err
    assert re.search(message, err)
    assert str(path) in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: text.index("\n") + 1], r"identifier without a result \(23 are expected\): 22 in all"),
        (lambda text: text + text.splitlines()[2], "identifier with a second result: .*:24 .'train-1-0-0'"),
        (lambda text: text + "other-1-0-0,True\n", "unknown identifier: .*:24 .'other-1-0-0'"),
        (lambda text: text.replace("True", "true", 2), "identifier,True or identifier,False: 2 in all, first at .*:1"),
        (lambda text: text.replace(",True", ", True", 1), "identifier,True or identifier,False: .* has "),
        (lambda text: text.replace(",True", ",1", 1), "identifier,True or identifier,False"),
        (lambda text: text.replace(",True", "", 1), "identifier,True or identifier,False"),
        (lambda text: text.replace("\n", "\n\n", 1), r"identifier,True or identifier,False: .*:2 has ''"),
        (lambda text: "identifier,prediction\n" + text, "identifier,True or identifier,False: .*:1 has 'identifier,pr"),
        (lambda text: "", "identifier without a result .*: 23 in all"),
        (lambda text: "\ufeff" + text, "without a byte order mark"),
    ],
    ids=[
        "missing",
        "duplicate",
        "unknown",
        "case",
        "space",
        "number",
        "no-label",
        "blank-line",
        "header",
        "empty",
        "bom",
    ],
)
def test_check_submission_reports_defect_of_nlvr2(official, tmp_path, capsys, change, message):
    path = tmp_path / "r.csv"
    path.write_text(change((official / "sent" / "nlvr2").read_text()))
    assert check(official, "nlvr2", path) == 2
    assert re.search(message, capsys.readouterr().err)


def test_check_submission_reports_all_kinds_of_defects(official, tmp_path, capsys):
    first, second, *rest = json.loads((official / "sent" / "vqa").read_text())
    path = tmp_path / "r.json"
    path.write_text(json.dumps([{**first, "question_id": "0"}, first, {**second, "answer": None}, *rest[1:]]))
    assert check(official, "vqa", path) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    for part in ("must be an integer", "with a second result", "'answer' must be text", "question_id without"):
        assert sum(part in line for line in lines) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"question_id": 0, "ans', "malformed JSON"),
        (b'[{"question_id": NaN, "answer": ""}]', "NaN is not JSON"),
        (b'[{"question_id": 0, "answer": "\xff"}]', "not UTF-8 text"),
        (b"\xef\xbb\xbf[]", "without a byte order mark"),
        (gzip.compress(b"[]"), "plain UTF-8 text without gzip"),
    ],
    ids=["truncated", "nan", "latin1", "bom", "gzip"],
)
def test_check_submission_rejects_malformed_json(official, tmp_path, capsys, content, message):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    assert check(official, "vqa", path) == 2
    assert message in capsys.readouterr().err


def test_check_submission_rejects_question_files(official, capsys):
    def check_with(questions: list[str], submission: str) -> str:
        command = ["check-submission", "--task", "vqa", "--questions", *questions, "--submission", submission]
        assert main(command) == 2
        return capsys.readouterr().err

    sent = str(official / "sent" / "vqa")
    assert "duplicate question_id: 23 in all" in check_with([str(official / "vqa_train_questions.json")] * 2, sent)
    assert "there is no item under 'questions'" in check_with([str(official / "gqa_train.json")], sent)
    assert check_with(["absent"], "gone").count("file not found") == 2
