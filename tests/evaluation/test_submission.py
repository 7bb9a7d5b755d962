"""Are the four official submissions checked: what a run writes is valid, and every defect is caught and counted?"""

import gzip
import json
from pathlib import Path

import pytest

from multitask_vl.config import load_config
from multitask_vl.evaluation.submission import main, write_submission
from multitask_vl.tasks.build import build_tasks
from tests import tiny_run

QUESTIONS = {
    "vqa": ["vqa_train_questions.json", "vqa_more_questions.json"],
    "gqa": ["gqa_train.json"],
    "nlvr2": ["nlvr2_train.jsonl"],
    "coco_caption": ["image_info.json"],
}
SAID = {"vqa": "", "gqa": "left", "nlvr2": "true", "coco_caption": "a café: “red” things,\nall\tof it"}


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    """Official question files of four tasks, and a valid submission of each by the task's own writer."""
    folder = tmp_path_factory.mktemp("official")
    tiny_run.write_files(folder)
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
        said = {str(id_): SAID[name] for id_ in ids[name]}
        assert write_submission(task, said, folder / "sent" / task.submission_name) == []
        (folder / "sent" / task.submission_name).rename(folder / "sent" / name)
    return folder


def check(official: Path, task: str, submission: Path, *words: str) -> int:
    questions = [str(official / name) for name in QUESTIONS[task]]
    return main(["--task", task, "--questions", *questions, "--submission", str(submission), *words])


@pytest.mark.parametrize(("task", "count"), [("vqa", 24), ("gqa", 23), ("nlvr2", 23), ("coco_caption", 3)])
def test_what_a_task_writes_is_valid(official, capsys, task, count):
    assert check(official, task, official / "sent" / task) == 0
    assert f"{count} results, one for each id of " in capsys.readouterr().out


def test_the_short_name_and_karpathy_s_splits(official, tmp_path, capsys):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([{"image_id": i, "caption": "a"} for i in range(7)]))
    words = ["--task", "caption", "--questions", str(official / "captions_report.json"), "--submission", str(path)]
    assert main([*words, "--subset", "report"]) == 0
    assert main([*words, "--subset", "train"]) == 2
    assert "there is nothing in it that asks for an answer" in capsys.readouterr().err


def spoiled(task: str, results: list) -> dict[str, tuple[list | dict, str]]:
    """Defect -> results with it, and what must be told of it."""
    first, second, *rest = results
    id_field, text_field = first
    whole = isinstance(first[id_field], int)
    kind, other = ("a whole number", str(first[id_field])) if whole else ("text", int(first[id_field]))
    expected = "as in the question file: .* has" if whole else "must be text: .* has"
    return {
        "missing": (rest, rf"{id_field} without a result \({len(results)} are asked for\): 2 in all, first at"),
        "twice": ([*results, first, first], f"{id_field} with a second result: 2 in all, first at"),
        "unknown": (
            [*results, {**first, id_field: type(first[id_field])(77)}],
            rf"{id_field} that is not asked for: .*77'?\)",
        ),
        "type of id": ([{**first, id_field: other}, second, *rest], f"'{id_field}' must be {kind}.*|{expected} "),
        "null id": ([{**first, id_field: None}, second, *rest], f"'{id_field}' must be .* has null"),
        "number as text": ([{**first, text_field: 3}, second, *rest], f"'{text_field}' must be text: .*:2 has 3"),
        "no text": ([{id_field: first[id_field]}, second, *rest], rf"'{text_field}' \(text\) is missing"),
        "other name": ([{id_field: first[id_field], "said": "a"}, second, *rest], f"'{text_field}'"),
        "line end": ([{**first, text_field: "a\nb"}, second, *rest], r"a control character or a line end: .*'a\\nb'"),
        "half a pair": ([{**first, text_field: "\ud800"}, second, *rest], r"has '\\ud800'"),
        "no object": ([*results, "a"], "a list of {"),
        "no list": ({str(i): one for i, one in enumerate(results)}, "a list of {"),
        "empty": ([], rf"{id_field} without a result .*: {len(results)} in all"),
    }


DEFECTS = sorted(spoiled("", [{"question_id": 1, "answer": "a"}, {"question_id": 2, "answer": "a"}]))


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("task", ["vqa", "gqa", "coco_caption"])
def test_a_defect_of_a_results_list_is_told(official, tmp_path, capsys, task, defect):
    import re

    results, told = spoiled(task, json.loads((official / "sent" / task).read_text()))[defect]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(results, indent=0))
    assert check(official, task, path) == 2
    said = capsys.readouterr().err
    assert re.search(told, said)
    assert str(path) in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text[: text.index("\n") + 1], r"identifier without a result \(23 are asked for\): 22 in all"),
        (lambda text: text + text.splitlines()[2], "identifier with a second result: .*:24 .'train-1-0-0'"),
        (lambda text: text + "other-1-0-0,True\n", "identifier that is not asked for: .*:24 .'other-1-0-0'"),
        (lambda text: text.replace("True", "true", 2), "identifier,True or identifier,False: 2 in all, first at .*:1"),
        (lambda text: text.replace(",True", ", True", 1), "identifier,True or identifier,False: .* has "),
        (lambda text: text.replace(",True", ",1", 1), "identifier,True or identifier,False"),
        (lambda text: text.replace(",True", "", 1), "identifier,True or identifier,False"),
        (lambda text: text.replace("\n", "\n\n", 1), r"identifier,True or identifier,False: .*:2 has ''"),
        (lambda text: "identifier,prediction\n" + text, "identifier,True or identifier,False: .*:1 has 'identifier,pr"),
        (lambda text: "", "identifier without a result .*: 23 in all"),
        (lambda text: "\ufeff" + text, "without a byte order mark"),
    ],
    ids=["missing", "twice", "unknown", "case", "blank", "number", "no truth", "blank line", "header", "empty", "mark"],
)
def test_a_defect_of_an_nlvr2_file_is_told(official, tmp_path, capsys, change, told):
    import re

    path = tmp_path / "r.csv"
    path.write_text(change((official / "sent" / "nlvr2").read_text()))
    assert check(official, "nlvr2", path) == 2
    assert re.search(told, capsys.readouterr().err)


def test_every_kind_of_defect_is_told_at_once(official, tmp_path, capsys):
    first, second, *rest = json.loads((official / "sent" / "vqa").read_text())
    path = tmp_path / "r.json"
    path.write_text(json.dumps([{**first, "question_id": "0"}, first, {**second, "answer": None}, *rest[1:]]))
    assert check(official, "vqa", path) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    for part in ("must be a whole number", "with a second result", "'answer' must be text", "question_id without"):
        assert sum(part in line for line in said) == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'[{"question_id": 0, "ans', "malformed JSON"),
        (b'[{"question_id": NaN, "answer": ""}]', "NaN is not JSON"),
        (b'[{"question_id": 0, "answer": "\xff"}]', "not UTF-8 text"),
        (b"\xef\xbb\xbf[]", "without a byte order mark"),
        (gzip.compress(b"[]"), "plain UTF-8 text without gzip"),
    ],
    ids=["cut", "nan", "latin", "mark", "gzip"],
)
def test_a_file_that_is_no_plain_json(official, tmp_path, capsys, content, told):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    assert check(official, "vqa", path) == 2
    assert told in capsys.readouterr().err


def test_question_files_that_cannot_be_used(official, tmp_path, capsys):
    sent = official / "sent" / "vqa"
    twice = [str(official / "vqa_train_questions.json")] * 2
    assert main(["--task", "vqa", "--questions", *twice, "--submission", str(sent)]) == 2
    assert "question_id that stands there twice: 23 in all" in capsys.readouterr().err
    assert main(["--task", "vqa", "--questions", str(official / "gqa_train.json"), "--submission", str(sent)]) == 2
    assert "there is no item under 'questions'" in capsys.readouterr().err
    assert main(["--task", "vqa", "--questions", "absent", "--submission", "gone"]) == 2
    assert capsys.readouterr().err.count("there is no file") == 2
