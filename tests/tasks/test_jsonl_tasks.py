"""Custom data without code: JSON lines or lists, any field names, metrics, and a run on it."""

import json

import numpy as np
import pytest

from multitask_vl.config import load_config
from multitask_vl.data.example_table import load_table, table_provenance
from multitask_vl.errors import InputError
from multitask_vl.tasks.base import Target
from tests import tiny_run
from tests.task_files import make, read, write

ITEMS = [
    {"id": "a", "image": "shots/one.jpg", "question": "What is it? ", "answers": ["a cat", "Cat."]},
    {"id": "b", "image": "shots/two.v2.PNG", "question": "How many?", "answers": [3, 3, 4]},
    {"id": "c", "image": "plain.key", "question": "Why?", "answers": " so "},
]


def jsonl(*items) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


@pytest.mark.parametrize("content", [ITEMS, jsonl(*ITEMS), "\ufeff\r\n" + jsonl(*ITEMS).replace("\n", "\r\n\r\n")])
def test_jsonl_vqa_reads_list_and_lines(tmp_path, content):
    task = make("jsonl_vqa", tmp_path, items=write(tmp_path, "train.jsonl", content))
    table = load_table(task, "s", tmp_path / "cache")
    assert table["id"][:] == ["a", "b", "c"]
    # image extensions are removed, as in feature extraction; other names are unchanged
    assert table["images"][:] == [["one"], ["two.v2"], ["plain.key"]]
    assert table["text"][0] == "What is it?"
    assert table["answers"][:] == [["a cat", "Cat."], ["3", "4"], ["so"]]
    assert table["scores"][:] == [[1.0, 1.0], [1.0, 0.5], [1.0]]
    warnings = {
        "answers that are numbers, read as text": 3,
        "answers with leading or trailing whitespace, which is stripped": 1,
    }
    assert table_provenance(table)["warnings"] == warnings


def test_jsonl_vqa_field_names_are_configurable(tmp_path):
    item = {"pic": [7, 8], "q": "Same?", "a": {"answer": "no"}, "image": "not this", "nr": 5, "answer_type": "CLOSED "}
    fields = {"image": "pic", "question": "q", "answers": "a", "id": "nr"}
    path = write(tmp_path, "items.json", [item])
    (example,) = read(make("jsonl_vqa", tmp_path, task_options={"fields": fields}, items=path, image_key="{pic:03d}"))
    assert (example.id, example.images, example.answers) == ("5", ("007", "008"), ("no",))
    assert example.meta == {"answers": ["no"], "answer_type": "CLOSED", "question_type": None}
    with pytest.raises(InputError, match=r"field 'what' is missing: .*items.json:1 \(it has pic, q, a.*Set fields"):
        read(make("jsonl_vqa", tmp_path, task_options={"fields": {"question": "what"}}, items=path))


def test_jsonl_vqa_numbers_items_without_id(tmp_path):
    without_id = [{name: value for name, value in item.items() if name != "id"} for item in ITEMS]
    write(tmp_path, "one.jsonl", jsonl(*without_id[:2]))
    write(tmp_path, "two.json", without_id[2:])
    assert [e.id for e in read(make("jsonl_vqa", tmp_path, items=["one.jsonl", "two.json"]))] == ["1", "2", "3"]
    write(tmp_path, "mixed.json", [without_id[0], ITEMS[1]])
    with pytest.raises(InputError, match="some items have an id and some have none: 1 of 2"):
        read(make("jsonl_vqa", tmp_path, items="mixed.json"))


def test_jsonl_filter_selects_by_field(tmp_path):
    items = [{**item, "part": part} for item, part in zip(ITEMS, ("test", "train ", "train"), strict=True)]
    path = write(tmp_path, "items.json", items)
    assert [e.id for e in read(make("jsonl_vqa", tmp_path, items=path, filter={"part": "train"}))] == ["b", "c"]
    with pytest.raises(InputError, match=r"no item has the part 'dev': items.json has test \(1\), train \(2\)"):
        read(make("jsonl_vqa", tmp_path, items=path, filter={"part": ["dev"]}))
    with pytest.raises(InputError, match="field 'split', which filter selects by, is missing: 3 in all"):
        read(make("jsonl_vqa", tmp_path, items=path, filter={"split": "train"}))


def test_jsonl_vqa_ten_answers_use_vqa_accuracy(tmp_path):
    ten = {**ITEMS[0], "answers": ["cat"] * 2 + ["dog"] * 8}
    task = make("jsonl_vqa", tmp_path, items=write(tmp_path, "ten.json", [ten]))
    examples = read(task)
    assert (examples[0].answers, examples[0].scores) == (("dog", "cat"), (1.0, 0.6))
    assert task.score(examples, {"a": "cat"}).metrics["accuracy"] == 60.0
    exact = make("jsonl_vqa", tmp_path, task_options={"metric": "exact_match"}, items="ten.json")
    assert exact.score(examples, {"a": "cat"}).metrics == {"accuracy": 100.0}


@pytest.mark.parametrize(("match", "accuracy"), [("normalized", 100.0), ("exact", 100 / 3)])
def test_jsonl_vqa_exact_match(tmp_path, match, accuracy):
    options = {"match": match, "metric": "auto"}
    task = make("jsonl_vqa", tmp_path, task_options=options, items=write(tmp_path, "items.json", ITEMS))
    scores = task.score(read(task), {"a": "the CAT", "b": "three", "c": "so"})
    assert scores.metrics == {"accuracy": pytest.approx(accuracy)}
    assert scores.per_example["c"] == 100.0
    assert match in scores.notes["accuracy"]
    assert scores.intervals["accuracy"].low <= scores.metrics["accuracy"] <= scores.intervals["accuracy"].high
    task = make("jsonl_vqa", tmp_path, task_options={"metric": "vqa_accuracy"}, items="items.json")
    with pytest.raises(
        InputError, match=r"vqa_accuracy needs 10 answers per question; 3 have another number \(first: a"
    ):
        task.score(read(task), dict.fromkeys("abc", "so"))


def test_jsonl_vqa_answers_are_all_hidden_or_none(tmp_path):
    hidden = [{name: value for name, value in item.items() if name != "answers"} for item in ITEMS]
    task = make("jsonl_vqa", tmp_path, items=write(tmp_path, "test.json", hidden))
    examples = read(task)
    assert [e.answers for e in examples] == [(), (), ()]
    with pytest.raises(InputError, match="the labels of the split are hidden"):
        task.score(examples, dict.fromkeys("abc", "so"))
    write(tmp_path, "mixed.json", [*hidden[:2], ITEMS[2]])
    with pytest.raises(InputError, match="some items have answers and some have none: 2 of 3"):
        read(make("jsonl_vqa", tmp_path, items="mixed.json"))


def test_jsonl_vqa_target_sampling(tmp_path):
    path = write(tmp_path, "items.json", ITEMS)
    task = make("jsonl_vqa", tmp_path, items=path)
    second = read(task)[1]

    def sampled(task, count):
        return [task.sample_target(second.answers, second.scores, np.random.default_rng([1, n])) for n in range(count)]

    targets = sampled(task, 300)
    assert sum(target.text == "3" for target in targets) == pytest.approx(200, abs=30)
    assert set(targets) == {Target("3", 1.0), Target("4", 0.5)}
    options = {"target_sampling": "most_frequent", "weight_by_score": False}
    assert set(sampled(make("jsonl_vqa", tmp_path, task_options=options, items=path), 20)) == {Target("3", 1.0)}


def test_jsonl_caption_groups_captions_by_image(tmp_path):
    items = [
        {
            "image": "val2014/COCO_val2014_000000522418.jpg",
            "caption": ["A woman. ", "A cook."],
            "image_id": "coco_522418",
        },
        {"image": "b.png", "caption": "A dog."},
        {"image": "val2014/COCO_val2014_000000522418.jpg", "caption": "A kitchen."},
    ]
    path = write(tmp_path, "items.jsonl", jsonl(*items))
    by_image = read(make("jsonl_caption", tmp_path, items=path))
    key = "COCO_val2014_000000522418"
    assert [(e.id, e.images, e.answers) for e in by_image] == [
        (key, (key,), ("A woman.", "A cook.", "A kitchen.")),
        ("b", ("b",), ("A dog.",)),
    ]
    train = read(make("jsonl_caption", tmp_path, "train", items=path), "train")
    assert [e.id for e in train] == [f"{key}-1", f"{key}-2", f"{key}-3", "b-1"]
    task = make("jsonl_caption", tmp_path, task_options={"scorers": ["Bleu", "CIDEr"]}, items=path)
    scores = task.score(by_image, {key: "a cook", "b": "a dog"}, caption_tokenizer="python")
    assert scores.metrics["Bleu_1"] > 50


def test_jsonl_captions_are_all_hidden_or_none(tmp_path):
    write(tmp_path, "test.json", [{"image": "a.png"}, {"image": "b.png"}])
    assert [e.answers for e in read(make("jsonl_caption", tmp_path, items="test.json"))] == [(), ()]
    with pytest.raises(InputError, match=r"no item has captions: test.json. Set fields"):
        read(make("jsonl_caption", tmp_path, "train", items="test.json"), "train")
    write(tmp_path, "mixed.json", [{"image": "a.png"}, {"image": "b.png", "caption": "A dog."}])
    with pytest.raises(InputError, match="some items have captions and some have none: 1 of 2"):
        read(make("jsonl_caption", tmp_path, items="mixed.json"))


def test_jsonl_task_needs_few_settings(tmp_path):
    write(tmp_path, "items.json", ITEMS)
    yaml = "tasks:\n  pets:\n    type: jsonl_vqa\n    splits:\n      train: {items: items.json}\n"
    (tmp_path / "run.yaml").write_text(yaml)
    config = load_config(tmp_path / "run.yaml")
    assert config.tasks["pets"].fields.answers == ("answers", "answer", "direct_answers")
    (tmp_path / "bad.yaml").write_text(yaml.replace("items.json", "items.json, image_key: '{}'"))
    with pytest.raises(InputError, match=r"bad.yaml:5: tasks.pets.splits.train.image_key.*a name, such as {stem}"):
        load_config(tmp_path / "bad.yaml")


@pytest.mark.slow
def test_run_on_custom_data(tmp_path, capsys):
    tiny_run.write_dataset(tmp_path)
    key = f"{0:012d}.png"
    answers = ["red", 7, "blue"]
    questions = [{"image": key, "question": "what color ?", "answer": answer} for answer in answers]
    captions = [{"image": key, "caption": "a red thing ."}, {"image": f"{1:012d}.png", "caption": ["a blue thing ."]}]
    lxmert = [
        {"question_id": n, "img_id": f"{n:012d}", "sent": "what color ?", "label": {"red": 1, "blue": 0.3}}
        for n in range(2)
    ]
    write(tmp_path, "questions.jsonl", jsonl(*questions))
    write(tmp_path, "captions.json", captions)
    write(tmp_path, "train.json", lxmert)
    tasks = {
        "questions": {"type": "jsonl_vqa", "splits": {s: {"items": "questions.jsonl"} for s in ("train", "test")}},
        "captions": {
            "type": "jsonl_caption",
            "scorers": ["Bleu", "CIDEr"],
            "splits": {s: {"items": "captions.json"} for s in ("train", "test")},
        },
        "vqa": {"splits": {"train": {"questions": "train.json"}}},
    }
    values = {**tiny_run.base_config(tmp_path), "tasks": tasks, "routing": {"function": "mul"}}
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    assert tiny_run.launch("train", "--config", str(tmp_path / "run.yaml"), "training.max_steps=4") == 0
    assert "task questions, split train: answers that are numbers, read as text: 1" in capsys.readouterr().err
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    found = scores["splits"]["test"]["tasks"]
    assert {name: task["count"] for name, task in found.items()} == {"questions": 3, "captions": 2}
    assert 0 <= found["questions"]["value"] <= 100
    data = json.loads((tmp_path / "run" / "submission" / "test" / "questions_results.json").read_text())
    assert [row["question_id"] for row in data] == [1, 2, 3]
