"""Is malformed input told with its place, its number and one instance, and never dropped in silence?"""

import gzip
import json
import re

import pytest

from multitask_vl.data.example_table import compiled
from multitask_vl.errors import InputError
from multitask_vl.tasks.readers import json_stream
from multitask_vl.tasks.readers.json_stream import Problems, json_lines, lines, walk, write_json
from tests.task_files import make, read, vqa_files, write

SOME = {"info": {"a": [1, {"b": None}]}, "questions": [{"id": 12345, "t": 'é "}]'}, -1.5e3, "x"], "none": [], "n": 3}


def entries(path):
    return [(key, value) for key, value, _ in walk(path)]


# ---- files


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 1 << 20])
def test_a_stream_gives_what_the_whole_file_holds(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(json_stream, "_PIECE", piece)
    (tmp_path / "f.json").write_text(json.dumps(SOME, indent=2, ensure_ascii=False), encoding="utf-8")
    expected = [("info", SOME["info"]), *(("questions", item) for item in SOME["questions"]), ("n", 3)]
    assert entries(tmp_path / "f.json") == expected
    places = [where for key, _, where in walk(tmp_path / "f.json") if key == "questions"]
    assert [place.rpartition(":")[2] for place in places] == ["11", "15", "16"]


@pytest.mark.parametrize(
    "encoded",
    [
        json.dumps(SOME).encode(),
        b"\xef\xbb\xbf" + json.dumps(SOME).encode(),
        json.dumps(SOME, indent=1).replace("\n", "\r\n").encode(),
        gzip.compress(json.dumps(SOME).encode()),
        gzip.compress(b"\xef\xbb\xbf" + json.dumps(SOME).encode()),
    ],
    ids=["plain", "BOM", "CRLF", "gzip", "gzip of BOM"],
)
def test_byte_order_marks_line_ends_and_gzip_are_read(tmp_path, encoded):
    (tmp_path / "f.any").write_bytes(encoded)
    assert len(entries(tmp_path / "f.any")) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1,\n "b": [1,\n 2 3]}', ":3: malformed JSON: expected ',' or ']'"),
        ('{"a": 1,\n\n "b": tru}', ":3: malformed JSON: Expecting value"),
        ('{"questions": [{"id": 1},\n {"id": ', ":2: malformed JSON: Expecting value. Is the download complete"),
        ('{"questions": [{"id": 1}\n', "the file ends in the middle"),
        ("", "expected a list or an object"),
        ("17", "expected a list or an object"),
        ("[1] [2]", "more text after the end"),
        ('{"a" 1}', "expected ':' after \"a\""),
        ("{1: 2}", "a member's name must be text"),
        ('[1,\n{"score": NaN}]', ":2: malformed JSON: NaN is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\xfe[1]", "not UTF-8 text \\(byte 0xff"),
        (gzip.compress(b"[1, 2, 3]", mtime=0)[:-9], "broken gzip: .*Is the download complete"),
        (b"\x1f\x8b garbage", "broken gzip"),
    ],
)
def test_broken_files_are_told_with_their_line(tmp_path, content, message):
    path = tmp_path / "f.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=re.escape(str(path))) as error:
        entries(path)
    assert re.search(message, str(error.value))


def test_a_mistake_far_from_the_end_does_not_read_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_PIECE", 1000)
    monkeypatch.setattr(json_stream, "_LONGEST", 1000)
    path = tmp_path / "f.json"
    path.write_text("[1,\n oops," + "\n 2," * 100_000)
    fills = []
    fill = json_stream._Text._fill
    monkeypatch.setattr(json_stream._Text, "_fill", lambda self, size: (fills.append(size), fill(self, size)))
    with pytest.raises(InputError, match=":2: malformed JSON"):
        entries(path)
    assert sum(fills) < 10_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n\n{"a": \n', ":3: malformed JSON: Expecting value"),
        ("[1, 2]\n", ":1: one JSON object a line is expected"),
        ('{"a": Infinity}\n', ":1: malformed JSON: Infinity is not JSON"),
        ('{\n "a": 1}\n', ":1: malformed JSON"),
    ],
)
def test_broken_lines(tmp_path, content, message):
    (tmp_path / "f.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        list(json_lines(tmp_path / "f.jsonl"))


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        list(lines(tmp_path))
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "s.json", [float("nan")])
    assert list(tmp_path.iterdir()) == []


def test_problems_of_a_kind_are_counted_and_told_once():
    problems = Problems("tasks.vqa.splits.train")
    problems.raise_any()
    for line in range(1, 1201):
        problems.field({"id": True}, "id", (int, str), f"q.json:{line}")
    problems.add("something else", "there", "Mend it")
    with pytest.raises(InputError) as error:
        problems.raise_any()
    assert error.value.problems == [
        "tasks.vqa.splits.train: field 'id' must be a whole number or text: 1,200 in all, first at q.json:1 has true",
        "tasks.vqa.splits.train: something else: there. Mend it",
    ]


# ---- items of tasks

QUESTION = {"question_id": 1, "image_id": 2, "question": "Why?"}
ANNOTATION = {"question_id": 1, "image_id": 2, "answers": [{"answer": "so"}]}
GQA = {"imageId": "a", "question": "Is it?", "answer": "yes"}
PAIR = {"identifier": "dev-0-0-0", "sentence": "Two dogs.", "label": "True"}
IMAGE = {"id": 1, "file_name": "1.jpg"}
CAPTION = {"id": 5, "image_id": 1, "caption": "A cat"}
KARPATHY = {"cocoid": 1, "filename": "1.jpg", "split": "s", "sentences": [{"raw": "A cat"}]}


def without(item: dict, name: str) -> dict:
    return {key: value for key, value in item.items() if key != name}


def vqa(questions, annotations, **options):
    def task(folder):
        asked = write(folder, "q.json", {"data_subtype": "val2014", "questions": questions})
        said = write(folder, "a.json", {"annotations": annotations})
        return make("vqa", folder, questions=asked, annotations=said, **options)

    return task


def single(name: str, key: str, content, **options):
    return lambda folder: make(name, folder, **{key: write(folder, "f.json", content)}, **options)


def jsonl(*items) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


def captions(images, annotations, **options):
    return single("coco_caption", "captions", {"images": images, "annotations": annotations}, **options)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (vqa([], []), r"no item under 'questions': .*q.json \(it holds data_subtype\)"),
        (vqa([7], []), "a question must be an object: .*:1 has 7"),
        (vqa([QUESTION], []), "no item under 'annotations'"),
        (vqa([without(QUESTION, "image_id")], [ANNOTATION]), "field 'image_id' .* is missing"),
        (vqa([{**QUESTION, "question": None}], [ANNOTATION]), "field 'question' must be text: .* has null"),
        (vqa([{**QUESTION, "image_id": "x"}], [ANNOTATION]), "image_id does not fit image_key"),
        (vqa([QUESTION, QUESTION], [ANNOTATION]), "a second question of the same id"),
        (
            vqa([QUESTION, {**QUESTION, "question_id": 9}], [ANNOTATION]),
            "question without annotation: question 9. Give",
        ),
        (vqa([QUESTION], [ANNOTATION, ANNOTATION]), "unknown question, or a second one: .* .question 1"),
        (vqa([QUESTION], [{**ANNOTATION, "image_id": 3}]), "name different images"),
        (vqa([QUESTION], [{**ANNOTATION, "answers": []}]), "'answers' must be a list of .*, not empty"),
        (vqa([QUESTION], [{**ANNOTATION, "answers": [{"answer": 4}]}]), "'answers' must be a list"),
        (vqa([QUESTION], [{**ANNOTATION, "answers": "so"}]), "field 'answers' must be a list"),
        (vqa([QUESTION], [without(ANNOTATION, "question_id")]), "field 'question_id' .* is missing"),
        (single("vqa", "questions", {"questions": [QUESTION]}), "has no data_subtype. Set .*subtype, e.g. train2014"),
        (single("vqa", "questions", {"a": 1, "b": []}, subtype="x"), r"no item under 'questions': .* \(it holds a\)"),
        (single("gqa", "questions", [GQA]), "field 'question_id' .* is missing: .*f.json:1"),
        (single("gqa", "questions", {}), "the split is empty"),
        (single("gqa", "questions", {"1": without(GQA, "imageId")}), "field 'imageId' .text. is missing"),
        (single("gqa", "questions", {"1": {**GQA, "answer": 3}}), "field 'answer' must be text"),
        (single("gqa", "questions", {"1": GQA, "2": without(GQA, "answer")}), "some have none: 1 of 2"),
        (single("gqa", "questions", '{"1": %s, "1": %s}' % ((json.dumps(GQA),) * 2)), "same id: 1"),
        (single("gqa", "questions", {"1": {**GQA, "question": "\ud800"}}), "text that is no Unicode"),
        (single("gqa", "questions", {"1": {**GQA, "entailed": ["2", ["3"]]}}), "'entailed' must list .*:1 has"),
        (single("gqa", "questions", {"1": GQA}, expected_count=7), "than expected_count: 1 found, 7 expected"),
        (single("nlvr2", "items", jsonl(without(PAIR, "sentence"))), "field 'sentence' .text. is missing"),
        (single("nlvr2", "items", jsonl({**PAIR, "label": "maybe"})), "'label' must be True or False"),
        (single("nlvr2", "items", jsonl({**PAIR, "label": 2})), "field 'label' must be text or true or false"),
        (
            single("nlvr2", "items", jsonl(PAIR, {**without(PAIR, "label"), "identifier": "b"})),
            "some have none: 1 of 2",
        ),
        (single("nlvr2", "items", jsonl(PAIR, PAIR)), "two examples have the same id: dev-0-0-0"),
        (single("nlvr2", "items", jsonl({**PAIR, "structured_rep": []})), "shows one picture.*Set image_keys"),
        (single("nlvr2", "items", ""), "the split is empty"),
        (captions([IMAGE, {**IMAGE, "id": 2}], [CAPTION]), r"image without captions: .*f.json:1 \(2\)"),
        (captions([IMAGE], [CAPTION, {**CAPTION, "image_id": 8}]), r"not listed under 'images': .*\(image 8\)\. If"),
        (captions([IMAGE], [{**CAPTION, "caption": " "}]), "a caption is blank"),
        (captions([IMAGE], [without(CAPTION, "caption")]), "field 'caption' .text. is missing"),
        (captions([without(IMAGE, "file_name")], [CAPTION]), "field 'file_name' .text. is missing"),
        (captions(["x"], [CAPTION]), "an item of 'images' must be an object"),
        (captions([IMAGE], [CAPTION], subset="val"), "subset is for Karpathy's layout only"),
        (captions([IMAGE, IMAGE], [CAPTION]), "an image is listed twice: .*f.json:1 .1"),
        (captions([IMAGE], [{**CAPTION, "image_id": "a"}], image_key="{image_id:05d}"), "does not fit image_key"),
        (captions([IMAGE], [], one_per="caption"), "there are images but no captions"),
        (captions([without(KARPATHY, "filename")], []), "field 'filename' .text. is missing"),
        (captions([{**KARPATHY, "sentences": [{"raw": " "}]}], []), "must have the text 'raw', not blank"),
        (captions([KARPATHY, KARPATHY], []), "an image is listed twice"),
        (captions([{**KARPATHY, "split": "t"}, {**KARPATHY, "split": 3}], []), "field 'split' must be text: .* has 3"),
        (single("coco_caption", "captions", {"a": 1}), "a layout is expected .* holds .'a'"),
    ],
)
def test_bad_items_are_told(tmp_path, task, message):
    task = task(tmp_path)
    with pytest.raises(InputError) as error:
        compiled(task, "s", tmp_path / "cache")
    assert re.search(message, str(error.value)), str(error.value)
    assert all(problem.startswith("tasks.") for problem in error.value.problems)


def test_missing_files_and_splits_are_all_named(tmp_path):
    task = make("vqa", tmp_path, questions=["a.json", "b.json"], annotations="c.json", karpathy="k.json")
    with pytest.raises(InputError) as error:
        task.sources("s")
    assert [problem.partition(":")[0] for problem in error.value.problems] == [
        "tasks.vqa.splits.s.questions", "tasks.vqa.splits.s.questions", "tasks.vqa.splits.s.annotations",
        "tasks.vqa.splits.s.karpathy",
    ]  # fmt: skip
    with pytest.raises(InputError, match="there is no 'report' among \\['s'\\]"):
        task.sources("report")


def test_karpathy_file_without_the_split(tmp_path):
    write(tmp_path, "k.json", {"images": [{"cocoid": 1, "split": "val"}]})
    task = make("vqa", tmp_path, karpathy="k.json", subset="test", **vqa_files(tmp_path))
    with pytest.raises(InputError, match=r"no image of the split: .*has .'val'.. Choose with subset"):
        read(task)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vqa", {"questions": "q", "image_key": "{imageid}"}, "unknown field {imageid}; known: {image_id}, {subtype}"),
        ("vqa", {"questions": []}, "at least 1 item"),
        ("gqa", {"questions": "q", "image_key": "{}"}, "unknown field {}"),
        ("coco_caption", {"captions": "c", "one_per": "word"}, "'caption' or 'image'"),
        ("nlvr2", {"items": "i", "image_keys": []}, "at least 1 item"),
        ("nlvr2", {"items": "i", "layout": "nlvr1"}, "Extra inputs are not permitted"),
    ],
)
def test_bad_split_options(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(name, tmp_path, **options)


def test_cider_must_be_among_the_scorers(tmp_path):
    with pytest.raises(ValueError, match="CIDEr stands for the task"):
        make("coco_caption", tmp_path, task_options={"scorers": ["Bleu"]}, captions="c.json")
