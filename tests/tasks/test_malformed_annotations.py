"""Malformed annotation files: each gives one error with its place, or a counted warning, and nothing is lost silently.

Every file is read by `load_table`, as in a run. Select cases with -k, for example ``-k "nlvr2 and label"``.
"""

import gzip
import json
import re
from pathlib import Path

import pytest

from multitask_vl.data.example_table import example_from_row, load_table, table_provenance
from multitask_vl.errors import InputError
from tests.task_files import make

QUESTION = {"question_id": 1, "image_id": 2, "question": "Why?"}
TEN = [{"answer": "so", "answer_id": n} for n in range(1, 11)]
ANNOTATION = {"question_id": 1, "image_id": 2, "answers": TEN}
LXMERT = {"question_id": 1, "img_id": "COCO_val2014_000000000002", "sent": "Why?", "label": {"so": 1}}
GENOME = {"id": 2, "qas": [{"qa_id": 1, "image_id": 2, "question": "Why?", "answer": "So."}]}
GQA = {"imageId": "a", "question": "Is it?", "answer": "yes"}
GQA_LXMERT = {"question_id": "1", "img_id": "a", "sent": "Is it?", "label": {"yes": 1.0}}
PAIR = {"identifier": "dev-0-0-0", "sentence": "Two dogs.", "label": "True"}
PAIR_LXMERT = {"identifier": "dev-0-0-0", "img0": "a", "img1": "b", "sent": "Two dogs.", "label": 1, "uid": "u"}
IMAGE, CAPTION = {"id": 1, "file_name": "1.jpg"}, {"id": 5, "image_id": 1, "caption": "A cat"}
KARPATHY = {"cocoid": 1, "filename": "1.jpg", "split": "s", "sentences": [{"raw": "A cat", "sentid": 5}]}
CUSTOM = {"id": "a", "image": "a.jpg", "question": "Why?", "answers": ["so"]}
CUSTOM_CAPTION = {"image": "a.jpg", "caption": "A cat"}


def edited(item: dict, *without: str, **changes) -> dict:
    return {key: value for key, value in {**item, **changes}.items() if key not in without}


def encode(value) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def jsonl(*items) -> bytes:
    return b"".join(encode(item) + b"\n" for item in items)


def questions(*items, **header) -> dict:
    return {"data_subtype": "val2014", **header, "questions": list(items)}


def annotations(*items) -> dict:
    return {"annotations": list(items)}


def captions(images, annotations_) -> dict:
    return {"images": images, "annotations": annotations_}


KEYS = {
    "vqa": ("questions", "annotations"),
    "gqa": ("questions",),
    "nlvr2": ("items",),
    "coco_caption": ("captions",),
    "jsonl_vqa": ("items",),
    "jsonl_caption": ("items",),
}


def table(folder: Path, name: str, *contents, **options):
    """Load the split of a task whose files have ``contents``; None is a folder without files."""
    for key, content in zip(KEYS[name], contents, strict=False):
        if content is None:
            (folder / key).mkdir()
        else:
            (folder / key).write_bytes(encode(content))
        options[key] = key
    return load_table(make(name, folder, **options), "s", folder / "cache")


def case_id(case: tuple) -> str:
    """Task and message of a case, such as ``nlvr2-label-must-be-true-or-false``."""
    name, *_, message = case
    return f"{name}-{re.sub('[^a-z0-9]+', '-', (message or 'valid').lower()).strip('-')[:60]}"


VALID = {
    "vqa": (questions(QUESTION), annotations(ANNOTATION)),
    "gqa": ({"1": GQA},),
    "nlvr2": (jsonl(PAIR),),
    "coco_caption": (captions([IMAGE], [CAPTION]),),
    "jsonl_vqa": (jsonl(CUSTOM),),
    "jsonl_caption": (jsonl(CUSTOM_CAPTION),),
}

# ---- corrupt files, for every task

CORRUPTIONS = {
    "empty-file": (lambda good: b"", "expected a list or an object|no item|the split is empty"),
    "blank-file": (lambda good: b" \n\n ", "expected a list or an object|no item|the split is empty"),
    "truncated": (lambda good: good[: len(good) // 2], r":\d+: malformed JSON"),
    "gzip-truncated": (lambda good: gzip.compress(good)[:-6], "broken gzip"),
    "gzip-corrupt": (lambda good: gzip.compress(good)[:12] + b"\xff" * 40, "broken gzip"),
    "not-utf8": (lambda good: good[:-4] + b"\xe9\xff" + good[-4:], "not UTF-8 text"),
    "utf16": (lambda good: good.decode().encode("utf-16"), "not UTF-8 text"),
    "html": (lambda good: b"<!DOCTYPE html><html>404</html>", r":1: (malformed JSON|one JSON object)"),
    "number": (lambda good: b"42", "expected a list or an object|one JSON object per line is expected"),
    "text-after-end": (lambda good: good + b"\n]", r":\d+: malformed JSON"),
    "5000-digits": (lambda good: b"[" + b"7" * 5000 + b"]", r":1: malformed JSON: .*4300 digits"),
    "deep-nesting": (lambda good: b"[" * 50_000, "nested too deeply|one JSON object"),
}


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_task_rejects_corrupt_file(tmp_path, name, corruption):
    corrupt, message = CORRUPTIONS[corruption]
    first, *rest = VALID[name]
    with pytest.raises(InputError) as error:
        table(tmp_path, name, corrupt(encode(first)), *rest)
    assert re.search(message, str(error.value)), str(error.value)
    assert KEYS[name][0] in str(error.value)


@pytest.mark.parametrize("name", VALID)
def test_task_rejects_missing_path_and_empty_folder(tmp_path, name):
    option = rf"tasks.{name}.splits.s.{KEYS[name][0]}"
    with pytest.raises(InputError, match=rf"{option}: there is no file .*empty folder"):
        table(tmp_path, name, None)
    with pytest.raises(InputError, match=rf"{option}: there is no file .*absent.json; set"):
        make(name, tmp_path, **{KEYS[name][0]: "absent.json"}).sources("s")


# ---- valid encodings, for every task

ENCODINGS = {
    "byte-order-mark": lambda good: b"\xef\xbb\xbf" + good,
    "crlf": lambda good: good.replace(b"\n", b"\r\n"),
    "no-final-newline": lambda good: good.rstrip(b"\n"),
    "blank-lines": lambda good: b"\n \n" + good + b"\n\n",
    "gzip": gzip.compress,
    "gzip-multi-member": lambda good: gzip.compress(good[:9]) + gzip.compress(good[9:]),
    "escaped": lambda good: good.replace(b"Why?", b"\\u0057hy?"),
}


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_task_reads_every_encoding(tmp_path, name, encoding):
    first, *rest = VALID[name]
    found = table(tmp_path, name, ENCODINGS[encoding](encode(first)), *rest)
    (tmp_path / "plain").mkdir()
    assert found.to_list() == table(tmp_path / "plain", name, *VALID[name]).to_list()
    assert table_provenance(found)["warnings"] == {}


# ---- malformed items

ITEMS = [
    # VQA, official
    ("vqa", ([QUESTION], annotations(ANNOTATION)), {"subtype": "x"}, None),  # a list without header is read
    ("vqa", (questions(), annotations()), {}, r"no item under 'questions': .*\(it contains data_subtype\)"),
    ("vqa", (questions("Why?"), annotations(ANNOTATION)), {}, r'must be an object: .*questions:1 has "Why\?"'),
    ("vqa", (questions([QUESTION]), annotations(ANNOTATION)), {}, "a question must be an object"),
    ("vqa", (questions(edited(QUESTION, question_id=1.5)),), {}, "'question_id' must be an integer"),
    ("vqa", (questions(edited(QUESTION, question_id=True)),), {}, "'question_id' must be an integer"),
    ("vqa", (questions(edited(QUESTION, image_id=None)),), {}, "'image_id' must be .* has null"),
    ("vqa", (questions(edited(QUESTION, question=["Why?"])),), {}, "'question' must be text"),
    ("vqa", (questions(QUESTION, QUESTION), annotations(ANNOTATION)), {}, "a second question with the same id"),
    ("vqa", (questions(QUESTION, edited(QUESTION, question_id="1")), annotations(ANNOTATION)), {}, "a second question"),
    ("vqa", (questions(QUESTION),), {"subset": "val"}, "field 'split' .text. is missing"),
    ("vqa", ({"questions": [QUESTION]},), {}, "has no data_subtype. Set .*subtype, e.g. train2014"),
    ("vqa", (questions(QUESTION), annotations(ANNOTATION, ANNOTATION)), {}, "a second one: .*annotations:1"),
    ("vqa", (questions(QUESTION), annotations()), {}, "no item under 'annotations'"),
    ("vqa", (questions(QUESTION), questions(QUESTION)), {}, r"no item under 'annotations': .*contains data_subtype, q"),
    ("vqa", (questions(QUESTION), [ANNOTATION]), {}, r"no item under 'annotations': .*it contains a list"),
    ("vqa", (questions(QUESTION), annotations(edited(ANNOTATION, image_id=3))), {}, "name different images"),
    ("vqa", (questions(QUESTION), annotations(edited(ANNOTATION, "question_id"))), {}, "'question_id' .* missing"),
    ("vqa", (questions(QUESTION), annotations(edited(ANNOTATION, answers=[]))), {}, "'answers' must be a .*not empty"),
    ("vqa", (questions(QUESTION), annotations(edited(ANNOTATION, answers=[None]))), {}, "'answers' must be a list of"),
    ("vqa", (questions(QUESTION), annotations(edited(ANNOTATION, answers={}))), {}, "'answers' must be a list"),
    ("vqa", (questions(QUESTION), annotations("so")), {}, "an item of 'annotations' must be an object"),
    (
        "vqa",
        (questions(QUESTION, edited(QUESTION, question_id=9)), annotations(ANNOTATION)),
        {},
        "question without annotation: question 9. Give",
    ),
    ("vqa", (questions(edited(QUESTION, question="\ud800")),), {}, "text that is not valid Unicode"),
    ("vqa", (questions(QUESTION),), {"image_key": "{img_id}"}, "names {img_id}, which the item does not have"),
    ("vqa", (questions(edited(QUESTION, image_id="x")),), {}, r"image_id does not fit image_key .*'x'"),
    # LXMERT's lists
    ("vqa", ([edited(LXMERT, "img_id")],), {}, "field 'image_id' .* is missing: .*questions:1"),
    ("vqa", ([edited(LXMERT, "sent")],), {}, "field 'question' .text. is missing"),
    ("vqa", ([LXMERT, LXMERT],), {}, "two examples have the same id: 1"),
    ("vqa", ([edited(LXMERT, label=["so"])],), {}, r"field 'label' must be an object: .*has \[\"so\"\]"),
    ("vqa", ([edited(LXMERT, label={"so": "1"})],), {}, r"'label' must be {answer: score .*has {\"so\": \"1\"}"),
    ("vqa", ([edited(LXMERT, label={"so": 1.2})],), {}, "'label' must be {answer: score from 0 to 1}"),
    ("vqa", ([edited(LXMERT, label={"so": -0.3})],), {}, "'label' must be {answer: score from 0 to 1}"),
    ("vqa", ([edited(LXMERT, label={"so": True})],), {}, "'label' must be {answer: score from 0 to 1}"),
    ("vqa", (b'[{"question_id": 1,\n "label": {"so": NaN}}]',), {}, "questions:1: malformed JSON: NaN is not JSON"),
    ("vqa", ([LXMERT, edited(LXMERT, "label", question_id=2)],), {}, "some have none: 1 of 2"),
    ("vqa", ([edited(LXMERT, answers=[])],), {}, "there is no answer, or only blank ones"),
    ("vqa", ([LXMERT, 3],), {}, "a question must be an object: .*questions:1 has 3"),
    # Visual Genome
    ("vqa", ([edited(GENOME, qas=None)],), {}, "field 'qas' must be a list"),
    ("vqa", ([edited(GENOME, "id")],), {}, "field 'id' .an integer. is missing"),
    ("vqa", ([edited(GENOME, id=3)],), {}, r"'id' and 'image_id' of a pair differ: .*\(qa_id 1\)"),
    ("vqa", ([edited(GENOME, qas=["Why?"])],), {}, "an item of 'qas' must be an object"),
    ("vqa", ([GENOME, GENOME],), {}, "two examples have the same id: vg-1"),
    # GQA
    ("gqa", ([GQA],), {}, "field 'question_id' .* is missing: .*questions:1"),
    ("gqa", ({},), {}, "the split is empty"),
    ("gqa", ({"1": [GQA]},), {}, "an object {question id: .* is expected"),
    ("gqa", ({"1": "Is it?"},), {}, "an object {question id"),
    ("gqa", ({"questions": [GQA]},), {}, "an object {question id: .* is expected"),
    ("gqa", ({"1": edited(GQA, imageId=7)},), {}, "field 'imageId' must be text: .*has 7"),
    ("gqa", ({"1": edited(GQA, answer=None)},), {}, "field 'answer' must be text"),
    ("gqa", ({"1": GQA, "2": edited(GQA, "answer")},), {}, "some have none: 1 of 2"),
    ("gqa", ({"1": edited(GQA, entailed=["2", ["3"]])},), {}, "'entailed' must be a list .*:1 has"),
    ("gqa", (b'{"1": %s,\n "1": %s}' % (encode(GQA), encode(GQA)),), {}, "two examples have the same id: 1"),
    ("gqa", ([edited(GQA_LXMERT, label={"yes": 1.0, "no": 1.0})],), {}, "'label' of GQA must be {correct answer: 1}"),
    ("gqa", ([edited(GQA_LXMERT, img_id=5)],), {}, "field 'img_id' must be text: .*has 5"),
    ("gqa", ([GQA_LXMERT, GQA_LXMERT],), {}, "two examples have the same id: 1"),
    ("gqa", ({"1": GQA},), {"expected_count": 2}, "expected_count: 1 found, 2 expected"),
    # NLVR2
    ("nlvr2", ([PAIR, "x"],), {}, 'an item of the list must be an object: .*items:1 has "x"'),
    ("nlvr2", (jsonl(PAIR) + b"[]\n",), {}, r"items:2: one JSON object per line is expected, got \[\]"),
    ("nlvr2", (jsonl(PAIR) + b'{"identifier": \n',), {}, "items:2: malformed JSON"),
    ("nlvr2", (json.dumps(PAIR, indent=1).encode(),), {}, r"items:1: malformed JSON: .*one object per line"),
    ("nlvr2", (jsonl(PAIR, PAIR),), {}, "two examples have the same id: dev-0-0-0"),
    ("nlvr2", (jsonl(edited(PAIR, label="yes")),), {}, "'label' must be True or False: .*has 'yes'"),
    ("nlvr2", (jsonl(edited(PAIR, label=0.5)),), {}, "field 'label' must be"),
    ("nlvr2", (jsonl(edited(PAIR, identifier=12)),), {}, "field 'identifier' must be text"),
    ("nlvr2", (jsonl(PAIR, edited(PAIR, "label", identifier="b")),), {}, "some have none: 1 of 2"),
    ("nlvr2", (jsonl(edited(PAIR, structured_rep=[])),), {}, "has one image.*Set image_keys"),
    ("nlvr2", ([edited(PAIR_LXMERT, "img1")],), {}, "names {img1}, which the item does not have"),
    ("nlvr2", (jsonl(PAIR),), {"image_keys": ["{img0}", "{img1}"]}, "names {img0}, which the item does not have"),
    ("nlvr2", ([edited(PAIR_LXMERT, label=2)],), {}, "field 'label' must be .*has 2"),
    # captions
    ("coco_caption", ([CAPTION],), {}, r"the format must be .*contains \['None'\]"),
    ("coco_caption", (captions(["x"], [CAPTION]),), {}, "an item of 'images' must be an object"),
    (
        "coco_caption",
        (captions([IMAGE], [edited(CAPTION, image_id=9)]),),
        {},
        r"not listed under 'images': .*\(image 9\)\. If",
    ),
    ("coco_caption", (captions([IMAGE, edited(IMAGE, id=2)], [CAPTION]),), {}, r"image without captions: .*:1 \(2\)"),
    ("coco_caption", (captions([IMAGE], [edited(CAPTION, caption=" ")]),), {}, "a caption is blank"),
    ("coco_caption", (captions([IMAGE], [edited(CAPTION, caption=5)]),), {}, "field 'caption' must be text"),
    ("coco_caption", (captions([IMAGE], [CAPTION, CAPTION]),), {"unit": "caption"}, "the same id: 1-5"),
    ("coco_caption", (captions([IMAGE], []),), {"unit": "caption"}, "there are images but no captions"),
    ("coco_caption", (captions([IMAGE], [CAPTION]),), {"subset": "val"}, "subset is for Karpathy's format only"),
    (
        "coco_caption",
        (captions([IMAGE], [edited(CAPTION, image_id="a")]),),
        {"image_key": "{image_id:05d}"},
        "does not fit image_key",
    ),
    ("coco_caption", (captions([IMAGE, IMAGE], [CAPTION]),), {}, "an image is listed twice"),
    ("coco_caption", ({"images": {"id": 1}},), {}, "field 'file_name' .text. is missing"),
    ("coco_caption", ({"images": [edited(KARPATHY, sentences="A cat")]},), {}, "field 'sentences' must be a list"),
    ("coco_caption", ({"images": [edited(KARPATHY, sentences=[{"raw": " "}])]},), {}, "must have the text 'raw'"),
    ("coco_caption", ({"images": [edited(KARPATHY, "split")]},), {}, "field 'split' .text. is missing"),
    ("coco_caption", ({"images": [KARPATHY, KARPATHY]},), {}, "an image is listed twice"),
    ("coco_caption", ({"images": [KARPATHY, edited(KARPATHY, cocoid=2, sentences=[])]},), {}, "image without captions"),
    ("coco_caption", ({"images": [KARPATHY]},), {"subset": "val"}, r"no image of the split: .*s \(1 images\)"),
    # custom data
    ("jsonl_vqa", (jsonl(edited(CUSTOM, "image")),), {}, "one of the fields image, images, .* is missing: .*items:1"),
    ("jsonl_vqa", (jsonl(edited(CUSTOM, image=[])),), {}, r"field 'image' must name an image, or a list .*has \[\]"),
    ("jsonl_vqa", (jsonl(edited(CUSTOM, image={"a": 1})),), {}, "field 'image' must name an image"),
    ("jsonl_vqa", (jsonl(CUSTOM, edited(CUSTOM, id="b", image=["a", "b"])),), {}, "numbers of images: .*items:2 has 2"),
    ("jsonl_vqa", (jsonl(edited(CUSTOM, "question")),), {}, "one of the fields question, sent is missing"),
    ("jsonl_vqa", (jsonl(edited(CUSTOM, question="  ")),), {}, "a question is blank: .*items:1"),
    ("jsonl_vqa", (jsonl(edited(CUSTOM, question=7)),), {}, "field 'question' must be text"),
    ("jsonl_vqa", (jsonl(edited(CUSTOM, answers=[])),), {}, "there is no answer, or only blank ones"),
    ("jsonl_vqa", (jsonl(edited(CUSTOM, answers=["", " "])),), {}, "there is no answer, or only blank ones"),
    ("jsonl_vqa", (jsonl(edited(CUSTOM, answers=True)),), {}, "answers must be text, .*has true"),
    ("jsonl_vqa", (jsonl(edited(CUSTOM, answers=[["so"]])),), {}, r"answers must be text, .*has \[\[\"so\"\]\]"),
    ("jsonl_vqa", (jsonl(edited(CUSTOM, answers=None)),), {}, "answers must be text, .*has null"),
    ("jsonl_vqa", (jsonl(CUSTOM, CUSTOM),), {}, "two examples have the same id: a"),
    ("jsonl_vqa", (jsonl(edited(CUSTOM, id=None)),), {}, "field 'id' must be an integer or text"),
    ("jsonl_vqa", (jsonl(CUSTOM),), {"image_key": "{photo}.jpg"}, "names {photo}, which the item does not have"),
    ("jsonl_vqa", (jsonl(CUSTOM),), {"image_key": "{stem:012d}"}, "image_id does not fit image_key"),
    ("jsonl_vqa", (jsonl(CUSTOM),), {"image_key": "{stem[0][1]}"}, "image_id does not fit image_key"),
    ("jsonl_vqa", (questions(QUESTION),), {}, "one of the fields image, .* is missing"),
    ("jsonl_caption", (jsonl(edited(CUSTOM_CAPTION, caption=[])),), {}, "'caption' must be a caption or a list"),
    ("jsonl_caption", (jsonl(edited(CUSTOM_CAPTION, caption=["A cat", " "])),), {}, "'caption' must be a caption"),
    ("jsonl_caption", (jsonl(edited(CUSTOM_CAPTION, caption=3)),), {}, "'caption' must be a caption .*has 3"),
    ("jsonl_caption", (jsonl(edited(CUSTOM_CAPTION, image="")),), {}, "field 'image' must name an image"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "contents", "options", "message"), ITEMS, ids=map(case_id, ITEMS))
def test_task_rejects_malformed_item(tmp_path, name, contents, options, message):
    if message is None:
        assert len(table(tmp_path, name, *contents, **options)) == 1
        return
    with pytest.raises(InputError) as error:
        table(tmp_path, name, *contents, **options)
    assert re.search(message, str(error.value)), str(error.value)
    assert all(problem.startswith("tasks.") or tmp_path.name in problem for problem in error.value.problems)
    assert len(str(error.value)) < 2000


# ---- unusual but valid items: unchanged, or changed with a counted warning

UNUSUAL = {
    "vqa-ten-equal-answers": ((questions(QUESTION), annotations(ANNOTATION)), ("Why?", ("so",), (1.0,)), {}),
    "vqa-long-question": ((questions(edited(QUESTION, question="Why? " * 600)),), ("Why? " * 600, (), ()), {}),
    "vqa-unicode": ((questions(edited(QUESTION, question="¿Qué es, 何? 🦊")),), ("¿Qué es, 何? 🦊", (), ()), {}),
    "vqa-blank-answers": (
        (questions(QUESTION), annotations(edited(ANNOTATION, answers=[{"answer": " "}] * 10))),
        ("Why?", (), ()),
        {"questions without a target, kept with weight 0": 1},
    ),
    "vqa-empty-label": (
        ([edited(LXMERT, label={})],),
        ("Why?", (), ()),
        {"questions without a target, kept with weight 0": 1},
    ),
    "vqa-visual-genome": (([edited(GENOME, id=2)],), ("Why?", ("so",), (1.0,)), {}),
    "gqa-types-as-text": (({"1": edited(GQA, types="query", entailed=None)},), ("Is it?", ("yes",), (1.0,)), {}),
    "nlvr2-upper-case-label": ((jsonl(edited(PAIR, label="TRUE")),), ("Two dogs.", ("true",), (1.0,)), {}),
    "coco_caption-whitespace": (
        (captions([IMAGE], [edited(CAPTION, caption=" A cat\n")]),),
        ("", ("A cat",), (1.0,)),
        {},
    ),
    "jsonl_vqa-numbers": (
        (jsonl(edited(CUSTOM, answers=[2, " 2", ""])),),
        ("Why?", ("2",), (1.0,)),
        {
            "answers that are numbers, read as text": 1,
            "answers with leading or trailing whitespace, which is stripped": 1,
        },
    ),
    "jsonl_vqa-ten-answers": ((jsonl(edited(CUSTOM, answers=["so"] * 10)),), ("Why?", ("so",), (1.0,)), {}),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_task_reads_unusual_item(tmp_path, case):
    contents, expected, warnings = UNUSUAL[case]
    found = table(tmp_path, case.partition("-")[0], *contents)
    (example,) = map(example_from_row, found)
    assert (example.text, example.answers, example.scores) == expected
    assert table_provenance(found)["warnings"] == warnings


def test_malformed_cases_cover_every_task():
    assert len(VALID) * (len(CORRUPTIONS) + 1) + len(ITEMS) + len(UNUSUAL) >= 60
    assert {name for name, *_ in ITEMS} == set(VALID)
