"""Scores and submissions of every task, official results files, and a task from a plug-in."""

import json
import re
import sys
from pathlib import Path

import pytest

from multitask_vl.cli.main import main
from multitask_vl.config.schema import Config, TaskConfig
from multitask_vl.data.example_table import example_from_row, load_table
from multitask_vl.errors import InputError
from multitask_vl.evaluation.score import read_predictions, score_predictions
from multitask_vl.metrics.bootstrap import bootstrap_mean_ci
from multitask_vl.registry import TASKS, load_plugins
from multitask_vl.tasks.base import Task
from multitask_vl.tasks.build import build_tasks
from tests.task_files import karpathy_file, make, read, vqa_files, write

GQA = {
    "07": {"imageId": "n1", "question": "Is it red?", "answer": "yes", "types": {"structural": "verify"}},
    "8": {"imageId": "n1", "question": "What?", "answer": "dog", "types": {"structural": "query"}, "entailed": ["07"]},
}
NLVR2 = "".join(
    json.dumps({"identifier": f"dev-1-{pair}-0", "sentence": "Two dogs.", "label": label}) + "\n"
    for pair, label in ((0, "True"), (1, "False"))
)


def predictions_file(folder: Path, predictions: dict[str, str]) -> Path:
    path = folder / "predictions.jsonl"
    path.write_text(
        "".join(json.dumps({"id": i, "prediction": t, "images": []}) + "\n" for i, t in predictions.items())
    )
    return path


def score(task, folder: Path, predictions: dict[str, str], **options):
    return score_predictions(task, read(task), predictions_file(folder, predictions), **options)


def test_vqa_scores_and_submission(tmp_path):
    task = make("vqa", tmp_path, **vqa_files(tmp_path))
    found = score(task, tmp_path, {"10": "red", "11": "Blue.", "12": "green"})
    assert found.primary_metric == "accuracy"
    assert found.metrics["accuracy"] == pytest.approx(53.33)
    assert found.metrics["label_score"] == pytest.approx(100 / 3)  # "Blue." is not a label as written
    assert found.per_example == {"10": 100, "11": 60, "12": 0}
    assert found.groups["answer_type"] == {"other": 53.33}
    assert found.intervals["accuracy"] == bootstrap_mean_ci([100, 60, 0], "questions")
    out = tmp_path / "out" / task.submission_name
    task.submission({"10": "red", "007": "x"}, out)
    assert json.loads(out.read_text()) == [
        {"question_id": 10, "answer": "red"},
        {"question_id": "007", "answer": "x"},
    ]


def test_gqa_scores_and_submission(tmp_path):
    task = make("gqa", tmp_path, questions=write(tmp_path, "q.json", GQA))
    found = score(task, tmp_path, {"07": "no", "8": "dog"})
    assert (found.metrics["accuracy"], found.metrics["consistency"]) == (50, 0)
    assert found.groups["answer"] == {"binary": 0, "open": 100}
    none = score(task, tmp_path, {"07": "yes", "8": "cat"})
    assert none.metrics["consistency"] is None
    assert "not computed" in none.notes["consistency"]
    assert found.notes == {}
    asked = {**GQA, "9": {**GQA["8"], "entailed": ["07", "gone"]}, "10": {**GQA["8"], "isBalanced": False}}
    task = make("gqa", tmp_path, questions=write(tmp_path, "all.json", asked))
    more = score(task, tmp_path, {"07": "no", "8": "dog", "9": "dog", "10": "cat"})
    assert more.metrics["accuracy"] == pytest.approx(200 / 3)
    assert more.intervals["accuracy"] == bootstrap_mean_ci([0, 100, 100], "questions")  # the balanced ones
    assert more.notes["accuracy"] == "of the 3 balanced questions; 1 others do not count"
    assert more.notes["consistency"].startswith("1 entailed questions are not in the set")
    task.submission({"07": "no"}, tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text()) == [{"questionId": "07", "prediction": "no"}]
    out = tmp_path / "o.json"
    results = write(tmp_path, "r.json", [{"questionId": i, "prediction": "yes"} for i in GQA])
    arguments = ["--task", "gqa", "--references", str(tmp_path / "q.json"), "--predictions", str(tmp_path / results)]
    assert main(["score", *arguments, "--out", str(out)]) == 0
    assert json.loads(out.read_text())["per_question"] == {"07": 100, "8": 0}


def test_score_command_preserves_lone_surrogate_in_id(tmp_path):
    questions = write(tmp_path, "q.json", {"\ud83d": GQA["8"]})
    results = write(tmp_path, "r.json", [{"questionId": "\ud83d", "prediction": "é"}])
    arguments = ["--task", "gqa", "--references", str(tmp_path / questions), "--predictions", str(tmp_path / results)]
    assert main(["score", *arguments, "--out", str(tmp_path / "o.json")]) == 0
    assert json.loads((tmp_path / "o.json").read_text())["per_question"] == {"\ud83d": 0}


def test_nlvr2_scores_and_submission(tmp_path, capsys):
    task = make("nlvr2", tmp_path, items=write(tmp_path, "dev.json", NLVR2))
    found = score(task, tmp_path, {"dev-1-0-0": "true", "dev-1-1-0": "true"})
    assert found.metrics == {"accuracy": 50, "consistency": 0}
    assert found.intervals["accuracy"] == bootstrap_mean_ci([100, 0], "items")
    assert found.intervals["consistency"] == bootstrap_mean_ci([0], "sentences")
    task.submission({"dev-1-0-0": "true", "dev-1-1-0": "false"}, tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text() == "dev-1-0-0,True\ndev-1-1-0,False\n"
    with pytest.raises(InputError, match="1 predictions are neither 'true' nor 'false'"):
        task.submission({"dev-1-0-0": "maybe"}, tmp_path / "s.csv")
    arguments = ["--task", "nlvr2", "--references", str(tmp_path / "dev.json"), "--predictions"]
    assert main(["score", *arguments, str(tmp_path / "s.csv"), "--out", str(tmp_path / "o.json")]) == 0
    assert json.loads((tmp_path / "o.json").read_text())["consistency"] == 100
    (tmp_path / "bad.csv").write_text("dev-1-0-0,True\ndev-1-0-0,False\ndev-1-1-0 False\n")
    assert main(["score", *arguments, str(tmp_path / "bad.csv"), "--out", str(tmp_path / "o.json")]) == 2
    err = capsys.readouterr().err
    assert "a second result for an identifier" in err
    assert "bad.csv:3 has 'dev-1-1-0 False'" in err


def test_caption_scores_and_submission(tmp_path):
    options = {"captions": karpathy_file(tmp_path), "subset": ["train", "test"]}
    task = make("coco_caption", tmp_path, task_options={"scorers": ["Bleu", "CIDEr"]}, **options)
    predictions = {str(i): f"cat {i} sleeps 0" for i in (0, 1, 3, 4)}
    found = score(task, tmp_path, predictions, caption_tokenizer="python")
    assert found.metrics["Bleu_1"] == pytest.approx(100)
    assert set(found.metrics) == {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "CIDEr"}
    assert sum(found.per_example.values()) / 4 == pytest.approx(found.metrics["CIDEr"])
    assert found.intervals["CIDEr"].low < found.metrics["CIDEr"] < found.intervals["CIDEr"].high
    assert "document frequencies stay those of the full set" in found.intervals["CIDEr"].unit
    task.submission({"4": "a cat"}, tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text()) == [{"image_id": 4, "caption": "a cat"}]


def test_score_requires_exactly_the_ids_of_the_split(tmp_path):
    task = make("vqa", tmp_path, **vqa_files(tmp_path))
    with pytest.raises(InputError) as error:
        score(task, tmp_path, {"10": "red", "99": "red"})
    assert error.value.problems == [
        "tasks.vqa: 2 of 3 ids have no prediction (first: 11)",
        "tasks.vqa: 1 predictions are for unknown ids (first: 99)",
    ]
    with pytest.raises(InputError, match="no examples to score"):
        task.score([], {})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            '{"id": "1", "prediction": "a"}\n{"id": "1", "prediction": "b"}\n',
            r"a second prediction for an id: .*:2 \(1\)",
        ),
        ('{"id": 1, "prediction": "a"}\n', "field 'id' must be text: .*:1 has 1"),
        ('{"id": "1"}\n{"id": "2"}\n', r"field 'prediction' \(text\) is missing: 2 in all, first at .*:1"),
        ('{"id": "1", ', ":1: malformed JSON"),
    ],
    ids=["duplicate", "id-type", "no-prediction", "truncated"],
)
def test_read_predictions_rejects_malformed_file(tmp_path, rows, message):
    path = tmp_path / "p.jsonl"
    path.write_text(rows)
    with pytest.raises(InputError, match=message):
        read_predictions(path)


def test_score_rejects_unlabeled_split(tmp_path):
    questions = vqa_files(tmp_path)["questions"]
    hidden = {i: {k: v for k, v in item.items() if k != "answer"} for i, item in GQA.items()}
    unlabeled = NLVR2.replace('"label"', '"was"')
    for task in (
        make("vqa", tmp_path, questions=questions),
        make("gqa", tmp_path, questions=write(tmp_path, "g.json", hidden)),
        make("nlvr2", tmp_path, items=write(tmp_path, "n.json", unlabeled)),
    ):
        examples = read(task)
        assert [example.answers for example in examples] == [()] * len(examples)
        with pytest.raises(InputError, match="the labels of the split are hidden"):
            task.score(examples, {example.id: "yes" for example in examples})


@pytest.mark.parametrize(
    ("task", "results", "message"),
    [
        ("vqa", [{"question_id": 10, "answer": "a"}] * 2, "a second result for a question_id"),
        ("vqa", [{"question_id": 10, "answer": 2}], "field 'answer' must be text: .* has 2"),
        ("vqa", {"question_id": 10}, r"a list of \{question_id, answer\} is expected"),
        ("vqa", [], "contains no results"),
        ("vqa", [{"question_id": 10, "answer": "a"}], "2 of 3 ids have no prediction"),
        ("caption", [{"image_id": 1, "caption": "a"}], "there is no item under 'annotations'|have no|'caption'"),
        ("vqaa", [], "did you mean 'vqa'"),
    ],
    ids=["duplicate", "answer-type", "not-list", "empty", "missing", "wrong-references", "unknown-task"],
)
def test_score_command_reports_invalid_results(tmp_path, capsys, task, results, message):
    references = tmp_path / vqa_files(tmp_path)["annotations"]
    path = tmp_path / write(tmp_path, "r.json", results)
    arguments = ["--task", task, "--references", str(references), "--predictions", str(path), "--out", "unused.json"]
    assert main(["score", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert main(["score", *arguments[:2], "--references", "none.json", "--predictions", "no.json", "--out", "o"]) == 2
    assert capsys.readouterr().err.count("file not found") == 2


PLUGIN = """
from multitask_vl.registry import TASKS
from multitask_vl.tasks.base import Example, Paths, Scores, SplitConfig, Task
from multitask_vl.config.schema import TaskConfig

class WordSplit(SplitConfig):
    words: Paths

class WordConfig(TaskConfig):
    prompt: str = "spell: "
    splits: dict[str, WordSplit] = {}

@TASKS.register("spelling")
class Spelling(Task[WordConfig]):
    Config = WordConfig
    primary_metric = "accuracy"
    submission_name = "spelling.txt"

    def sources(self, split):
        return self.resolve_files({f"splits.{split}.words": self.config.splits[split].words})

    def read(self, split):
        for path in self.sources(split):
            for word in path.read_text().split():
                yield Example(word, (word,), word, (" ".join(word),), (1.0,))

    def score(self, examples, predictions, **options):
        correct = [text == e.answers[0] for e, text in zip(examples, self.aligned_predictions(examples, predictions))]
        return Scores("accuracy", {"accuracy": 100 * sum(correct) / len(correct)})

    def submission(self, predictions, path):
        path.write_text("\\n".join(predictions.values()))
"""


def test_plugin_task_needs_one_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "spelling_task.py").write_text(PLUGIN)
    write(tmp_path, "words.txt", "cat horse")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))
    load_plugins(["spelling_task"])
    plain = TaskConfig(type="spelling", splits={"train": {"words": "words.txt"}})
    task = build_tasks(Config(data_dir=tmp_path, tasks={"mine": plain}))["mine"]
    assert (task.name, task.config.prompt) == ("mine", "spell: ")
    examples = [example_from_row(row) for row in load_table(task, "train", tmp_path / "cache").to_list()]
    assert [example.answers for example in examples] == [("c a t",), ("h o r s e",)]
    assert task.score(examples, {"cat": "c a t", "horse": "?"}).metrics == {"accuracy": 50}
    files = [str(tmp_path / "words.txt")] * 2
    arguments = ["--task", "spelling", "--references", files[0], "--predictions", files[1], "--out", "o"]
    assert main(["score", *arguments, "--plugin", "spelling_task"]) == 2
    assert "Spelling does not score official files" in capsys.readouterr().err
    sys.modules.pop("spelling_task")


def test_build_tasks_reports_every_problem(tmp_path):
    tasks = {"vqq": TaskConfig(), "gqa": TaskConfig(splits={"train": {"question": "q.json"}})}
    with pytest.raises(InputError) as error:
        build_tasks(Config(tasks=tasks))
    assert "tasks.vqq: unknown task 'vqq'; did you mean" in str(error.value)
    assert "tasks.gqa.splits.train.questions: Field required" in str(error.value)
    assert isinstance(build_tasks(Config(tasks={"gqa": TASKS.get("gqa").Config()}))["gqa"], Task)
