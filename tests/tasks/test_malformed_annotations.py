"""Does each of a corpus of malformed inputs give one clear error with its place, or a counted repair; never silence?

Everything is read as a run reads it: `compiled`, which names files and lines and writes tables.
"""

import gzip
import json
import re
from pathlib import Path

import pytest

from multitask_vl.data.example_table import compiled, example_from_row, made_from
from multitask_vl.errors import InputError
from tests.task_files import make

QUESTION = {"question_id": 1, "image_id": 2, "question": "Why?"}
TEN = [{"answer": "so", "answer_id": n} for n in range(1, 11)]
ANNOTATION = {"question_id": 1, "image_id": 2, "answers": TEN}
LISTED = {"question_id": 1, "img_id": "COCO_val2014_000000000002", "sent": "Why?", "label": {"so": 1}}
GENOME = {"id": 2, "qas": [{"qa_id": 1, "image_id": 2, "question": "Why?", "answer": "So."}]}
GQA = {"imageId": "a", "question": "Is it?", "answer": "yes"}
GQA_LISTED = {"question_id": "1", "img_id": "a", "sent": "Is it?", "label": {"yes": 1.0}}
PAIR = {"identifier": "dev-0-0-0", "sentence": "Two dogs.", "label": "True"}
PAIR_LISTED = {"identifier": "dev-0-0-0", "img0": "a", "img1": "b", "sent": "Two dogs.", "label": 1, "uid": "u"}
IMAGE, CAPTION = {"id": 1, "file_name": "1.jpg"}, {"id": 5, "image_id": 1, "caption": "A cat"}
KARPATHY = {"cocoid": 1, "filename": "1.jpg", "split": "s", "sentences": [{"raw": "A cat", "sentid": 5}]}
OWN = {"id": "a", "image": "a.jpg", "question": "Why?", "answers": ["so"]}
OWN_CAPTION = {"image": "a.jpg", "caption": "A cat"}


def but(item: dict, *without: str, **changes) -> dict:
    return {key: value for key, value in {**item, **changes}.items() if key not in without}


def text(value) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def lines(*items) -> bytes:
    return b"".join(text(item) + b"\n" for item in items)


def questions(*items, **header) -> dict:
    return {"data_subtype": "val2014", **header, "questions": list(items)}


def annotations(*items) -> dict:
    return {"annotations": list(items)}


def captions(images, said) -> dict:
    return {"images": images, "annotations": said}


KEYS = {
    "vqa": ("questions", "annotations"),
    "gqa": ("questions",),
    "nlvr2": ("items",),
    "coco_caption": ("captions",),
    "jsonl_vqa": ("items",),
    "jsonl_caption": ("items",),
}


def table(folder: Path, name: str, *contents, **options):
    """The compiled split of a task whose files hold ``contents``; None is a folder without files."""
    for key, content in zip(KEYS[name], contents, strict=False):
        if content is None:
            (folder / key).mkdir()
        else:
            (folder / key).write_bytes(text(content))
        options[key] = key
    return compiled(make(name, folder, **options), "s", folder / "cache")


GOOD = {
    "vqa": (questions(QUESTION), annotations(ANNOTATION)),
    "gqa": ({"1": GQA},),
    "nlvr2": (lines(PAIR),),
    "coco_caption": (captions([IMAGE], [CAPTION]),),
    "jsonl_vqa": (lines(OWN),),
    "jsonl_caption": (lines(OWN_CAPTION),),
}

# ---- what is wrong with the file itself, whatever task reads it

CUT = {
    "empty file": (lambda good: b"", "expected a list or an object|no item|the split is empty"),
    "blank file": (lambda good: b" \n\n ", "expected a list or an object|no item|the split is empty"),
    "cut in the middle": (lambda good: good[: len(good) // 2], r":\d+: malformed JSON"),
    "gzip, cut": (lambda good: gzip.compress(good)[:-6], "broken gzip"),
    "gzip, damaged": (lambda good: gzip.compress(good)[:12] + b"\xff" * 40, "broken gzip"),
    "not UTF-8": (lambda good: good[:-4] + b"\xe9\xff" + good[-4:], "not UTF-8 text"),
    "UTF-16": (lambda good: good.decode().encode("utf-16"), "not UTF-8 text"),
    "a web page": (lambda good: b"<!DOCTYPE html><html>404</html>", r":1: (malformed JSON|one JSON object)"),
    "a number": (lambda good: b"42", "expected a list or an object|one JSON object a line is expected"),
    "text behind": (lambda good: good + b"\n]", r":\d+: malformed JSON"),
    "a number of 5,000 digits": (lambda good: b"[" + b"7" * 5000 + b"]", r":1: malformed JSON: .*4300 digits"),
    "nothing but nesting": (lambda good: b"[" * 50_000, "nested too deeply|one JSON object"),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("defect", CUT)
def test_files_that_are_no_whole_json(tmp_path, name, defect):
    spoil, message = CUT[defect]
    first, *rest = GOOD[name]
    with pytest.raises(InputError) as error:
        table(tmp_path, name, spoil(text(first)), *rest)
    assert re.search(message, str(error.value)), str(error.value)
    assert KEYS[name][0] in str(error.value)


@pytest.mark.parametrize("name", GOOD)
def test_folders_without_files_and_paths_of_nothing(tmp_path, name):
    with pytest.raises(InputError, match=rf"tasks.{name}.splits.s.{KEYS[name][0]}: there is no file .*holds no file"):
        table(tmp_path, name, None)
    with pytest.raises(
        InputError, match=rf"tasks.{name}.splits.s.{KEYS[name][0]}: there is no file .*absent.json; set"
    ):
        make(name, tmp_path, **{KEYS[name][0]: "absent.json"}).sources("s")


# ---- how a file may be written, with no item lost

WRITTEN = {
    "byte order mark": lambda good: b"\xef\xbb\xbf" + good,
    "CRLF": lambda good: good.replace(b"\n", b"\r\n"),
    "no end of line": lambda good: good.rstrip(b"\n"),
    "blank lines": lambda good: b"\n \n" + good + b"\n\n",
    "gzip": gzip.compress,
    "gzip in two parts": lambda good: gzip.compress(good[:9]) + gzip.compress(good[9:]),
    "escaped": lambda good: good.replace(b"Why?", b"\\u0057hy?"),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("way", WRITTEN)
def test_ways_to_write_a_file(tmp_path, name, way):
    first, *rest = GOOD[name]
    found = table(tmp_path, name, WRITTEN[way](text(first)), *rest)
    (tmp_path / "plain").mkdir()
    assert found.to_list() == table(tmp_path / "plain", name, *GOOD[name]).to_list()
    assert made_from(found)["remarks"] == {}


# ---- what is wrong with items

ITEMS = [
    # VQA, official
    ("vqa", ([QUESTION], annotations(ANNOTATION)), {"subtype": "x"}, None),  # a list without header is read
    ("vqa", (questions("Why?"), annotations(ANNOTATION)), {}, r'must be an object: .*questions:1 has "Why\?"'),
    ("vqa", (questions([QUESTION]), annotations(ANNOTATION)), {}, "a question must be an object"),
    ("vqa", (questions(but(QUESTION, question_id=1.5)), annotations(ANNOTATION)), {}, "'question_id' must be a whole"),
    ("vqa", (questions(but(QUESTION, question_id=True)), annotations(ANNOTATION)), {}, "'question_id' must be a whole"),
    ("vqa", (questions(but(QUESTION, image_id=None)), annotations(ANNOTATION)), {}, "'image_id' must be .* has null"),
    ("vqa", (questions(but(QUESTION, question=["Why?"])), annotations(ANNOTATION)), {}, "'question' must be text"),
    ("vqa", (questions(QUESTION, QUESTION), annotations(ANNOTATION)), {}, "a second question of the same id"),
    ("vqa", (questions(QUESTION, but(QUESTION, question_id="1")), annotations(ANNOTATION)), {}, "a second question"),
    ("vqa", (questions(QUESTION),), {"subset": "val"}, "field 'split' .text. is missing"),
    ("vqa", (questions(QUESTION), annotations(ANNOTATION, ANNOTATION)), {}, "a second one: .*annotations:1"),
    ("vqa", (questions(QUESTION), annotations()), {}, "no item under 'annotations'"),
    ("vqa", (questions(QUESTION), questions(QUESTION)), {}, r"no item under 'annotations': .*holds data_subtype, que"),
    ("vqa", (questions(QUESTION), [ANNOTATION]), {}, r"no item under 'annotations': .*it holds a list"),
    ("vqa", (questions(QUESTION), annotations(but(ANNOTATION, image_id=3))), {}, "name different images"),
    ("vqa", (questions(QUESTION), annotations(but(ANNOTATION, answers=[]))), {}, "'answers' must be a .*not empty"),
    ("vqa", (questions(QUESTION), annotations(but(ANNOTATION, answers=[None]))), {}, "'answers' must be a list of"),
    ("vqa", (questions(QUESTION), annotations(but(ANNOTATION, answers={}))), {}, "'answers' must be a list"),
    ("vqa", (questions(QUESTION), annotations("so")), {}, "an item of 'annotations' must be an object"),
    ("vqa", (questions(but(QUESTION, question="\ud800")),), {}, "text that is no Unicode"),
    ("vqa", (questions(QUESTION),), {"image_key": "{img_id}"}, "names {img_id}, which the item does not have"),
    ("vqa", (questions(but(QUESTION, image_id="x")),), {}, r"image_id does not fit image_key .*'x'"),
    # LXMERT's lists
    ("vqa", ([but(LISTED, "img_id")],), {}, "field 'image_id' .* is missing: .*questions:1"),
    ("vqa", ([but(LISTED, "sent")],), {}, "field 'question' .text. is missing"),
    ("vqa", ([LISTED, LISTED],), {}, "two examples have the same id: 1"),
    ("vqa", ([but(LISTED, label=["so"])],), {}, r"field 'label' must be an object: .*has \[\"so\"\]"),
    ("vqa", ([but(LISTED, label={"so": "1"})],), {}, r"'label' must be {answer: score .*has {\"so\": \"1\"}"),
    ("vqa", ([but(LISTED, label={"so": 1.2})],), {}, "'label' must be {answer: score from 0 to 1}"),
    ("vqa", ([but(LISTED, label={"so": -0.3})],), {}, "'label' must be {answer: score from 0 to 1}"),
    ("vqa", ([but(LISTED, label={"so": True})],), {}, "'label' must be {answer: score from 0 to 1}"),
    ("vqa", (b'[{"question_id": 1,\n "label": {"so": NaN}}]',), {}, "questions:1: malformed JSON: NaN is not JSON"),
    ("vqa", ([LISTED, but(LISTED, "label", question_id=2)],), {}, "some have none: 1 of 2"),
    ("vqa", ([but(LISTED, answers=[])],), {}, "there is no answer, or only blank ones"),
    ("vqa", ([LISTED, 3],), {}, "a question must be an object: .*questions:1 has 3"),
    # Visual Genome
    ("vqa", ([but(GENOME, qas=None)],), {}, "field 'qas' must be a list"),
    ("vqa", ([but(GENOME, "id")],), {}, "field 'id' .a whole number. is missing"),
    ("vqa", ([but(GENOME, id=3)],), {}, r"'id' and 'image_id' of a pair differ: .*\(qa_id 1\)"),
    ("vqa", ([but(GENOME, qas=["Why?"])],), {}, "an item of 'qas' must be an object"),
    ("vqa", ([GENOME, GENOME],), {}, "two examples have the same id: vg-1"),
    # GQA
    ("gqa", ([GQA],), {}, "field 'question_id' .* is missing: .*questions:1"),
    ("gqa", ({"1": [GQA]},), {}, "an object {question id: .* is expected"),
    ("gqa", ({"1": "Is it?"},), {}, "an object {question id"),
    ("gqa", ({"questions": [GQA]},), {}, "an object {question id: .* is expected"),
    ("gqa", ({"1": but(GQA, imageId=7)},), {}, "field 'imageId' must be text: .*has 7"),
    ("gqa", ({"1": but(GQA, answer=None)},), {}, "field 'answer' must be text"),
    ("gqa", (b'{"1": %s,\n "1": %s}' % (text(GQA), text(GQA)),), {}, "two examples have the same id: 1"),
    ("gqa", ([but(GQA_LISTED, label={"yes": 1.0, "no": 1.0})],), {}, "'label' of GQA must be {the right answer: 1}"),
    ("gqa", ([but(GQA_LISTED, img_id=5)],), {}, "field 'img_id' must be text: .*has 5"),
    ("gqa", ([GQA_LISTED, GQA_LISTED],), {}, "two examples have the same id: 1"),
    ("gqa", ({"1": GQA},), {"expected_count": 2}, "another number of .*: 1 found, 2 expected"),
    # NLVR2
    ("nlvr2", ([PAIR, "x"],), {}, 'an item of the list must be an object: .*items:1 has "x"'),
    ("nlvr2", (lines(PAIR) + b"[]\n",), {}, r"items:2: one JSON object a line is expected, got \[\]"),
    ("nlvr2", (lines(PAIR) + b'{"identifier": \n',), {}, "items:2: malformed JSON"),
    ("nlvr2", (json.dumps(PAIR, indent=1).encode(),), {}, r"items:1: malformed JSON: .*one object a line is expected"),
    ("nlvr2", (lines(PAIR, PAIR),), {}, "two examples have the same id: dev-0-0-0"),
    ("nlvr2", (lines(but(PAIR, label="yes")),), {}, "'label' must be True or False: .*has 'yes'"),
    ("nlvr2", (lines(but(PAIR, label=0.5)),), {}, "field 'label' must be"),
    ("nlvr2", (lines(but(PAIR, identifier=12)),), {}, "field 'identifier' must be text"),
    ("nlvr2", ([but(PAIR_LISTED, "img1")],), {}, "names {img1}, which the item does not have"),
    ("nlvr2", (lines(PAIR),), {"image_keys": ["{img0}", "{img1}"]}, "names {img0}, which the item does not have"),
    ("nlvr2", ([but(PAIR_LISTED, label=2)],), {}, "field 'label' must be .*has 2"),
    # captions
    ("coco_caption", ([CAPTION],), {}, r"a layout is expected .*holds \['None'\]"),
    ("coco_caption", (captions([IMAGE], [but(CAPTION, image_id=9)]),), {}, r"not listed under 'images': .*\(image 9\)"),
    ("coco_caption", (captions([IMAGE, but(IMAGE, id=2)], [CAPTION]),), {}, r"image without captions: .*:1 \(2\)"),
    ("coco_caption", (captions([IMAGE], [but(CAPTION, caption="")]),), {}, "a caption is blank"),
    ("coco_caption", (captions([IMAGE], [but(CAPTION, caption=5)]),), {}, "field 'caption' must be text"),
    ("coco_caption", (captions([IMAGE], [CAPTION, CAPTION]),), {"one_per": "caption"}, "the same id: 1-5"),
    ("coco_caption", (captions([IMAGE, IMAGE], [CAPTION]),), {}, "an image is listed twice"),
    ("coco_caption", ({"images": {"id": 1}},), {}, "field 'file_name' .text. is missing"),
    ("coco_caption", ({"images": [but(KARPATHY, sentences="A cat")]},), {}, "field 'sentences' must be a list"),
    ("coco_caption", ({"images": [but(KARPATHY, "split")]},), {}, "field 'split' .text. is missing"),
    ("coco_caption", ({"images": [KARPATHY, but(KARPATHY, cocoid=2, sentences=[])]},), {}, "image without captions"),
    ("coco_caption", ({"images": [KARPATHY]},), {"subset": "val"}, r"no image of the split: .*s \(1 images\)"),
    # one's own
    ("jsonl_vqa", (lines(but(OWN, "image")),), {}, "one of the fields image, images, .* is missing: .*items:1"),
    ("jsonl_vqa", (lines(but(OWN, image=[])),), {}, r"field 'image' must name a picture, or list some: .*has \[\]"),
    ("jsonl_vqa", (lines(but(OWN, image={"a": 1})),), {}, "field 'image' must name a picture"),
    ("jsonl_vqa", (lines(OWN, but(OWN, id="b", image=["a", "b"])),), {}, "numbers of pictures: .*items:2 has 2"),
    ("jsonl_vqa", (lines(but(OWN, "question")),), {}, "one of the fields question, sent is missing"),
    ("jsonl_vqa", (lines(but(OWN, question="  ")),), {}, "a question is blank: .*items:1"),
    ("jsonl_vqa", (lines(but(OWN, question=7)),), {}, "field 'question' must be text"),
    ("jsonl_vqa", (lines(but(OWN, answers=[])),), {}, "there is no answer, or only blank ones"),
    ("jsonl_vqa", (lines(but(OWN, answers=["", " "])),), {}, "there is no answer, or only blank ones"),
    ("jsonl_vqa", (lines(but(OWN, answers=True)),), {}, "answers must be text, .*has true"),
    ("jsonl_vqa", (lines(but(OWN, answers=[["so"]])),), {}, r"answers must be text, .*has \[\[\"so\"\]\]"),
    ("jsonl_vqa", (lines(but(OWN, answers=None)),), {}, "answers must be text, .*has null"),
    ("jsonl_vqa", (lines(OWN, OWN),), {}, "two examples have the same id: a"),
    ("jsonl_vqa", (lines(but(OWN, id=None)),), {}, "field 'id' must be a whole number or text"),
    ("jsonl_vqa", (lines(OWN),), {"image_key": "{picture}.jpg"}, "names {picture}, which the item does not have"),
    ("jsonl_vqa", (lines(OWN),), {"image_key": "{stem:012d}"}, "image_id does not fit image_key"),
    ("jsonl_vqa", (lines(OWN),), {"image_key": "{stem[0][1]}"}, "image_id does not fit image_key"),
    ("jsonl_vqa", (questions(QUESTION),), {}, "one of the fields image, .* is missing"),
    ("jsonl_caption", (lines(but(OWN_CAPTION, caption=[])),), {}, "'caption' must be a caption or a list of captions"),
    ("jsonl_caption", (lines(but(OWN_CAPTION, caption=["A cat", " "])),), {}, "'caption' must be a caption"),
    ("jsonl_caption", (lines(but(OWN_CAPTION, caption=3)),), {}, "'caption' must be a caption .*has 3"),
    ("jsonl_caption", (lines(but(OWN_CAPTION, image="")),), {}, "field 'image' must name a picture"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "contents", "options", "message"), ITEMS)
def test_items_that_are_wrong(tmp_path, name, contents, options, message):
    if message is None:
        assert len(table(tmp_path, name, *contents, **options)) == 1
        return
    with pytest.raises(InputError) as error:
        table(tmp_path, name, *contents, **options)
    assert re.search(message, str(error.value)), str(error.value)
    assert len(str(error.value)) < 2000


# ---- what is odd and right: kept as it is, or repaired, documented and counted

ODD = [
    ("vqa", (questions(QUESTION), annotations(ANNOTATION)), {}, ("Why?", ("so",), (1.0,)), {}),  # ten identical answers
    ("vqa", (questions(but(QUESTION, question="Why? " * 600)),), {}, ("Why? " * 600, (), ()), {}),
    ("vqa", (questions(but(QUESTION, question="¿Qué es, 何? 🦊")),), {}, ("¿Qué es, 何? 🦊", (), ()), {}),
    (
        "vqa",
        (questions(QUESTION), annotations(but(ANNOTATION, answers=[{"answer": " "}] * 10))),
        {},
        ("Why?", (), ()),
        {"questions without a target, kept with weight 0": 1},
    ),
    (
        "vqa",
        ([but(LISTED, label={})],),
        {},
        ("Why?", (), ()),
        {"questions without a target, kept with weight 0": 1},
    ),
    ("vqa", ([but(GENOME, id=2)],), {}, ("Why?", ("so",), (1.0,)), {}),
    ("gqa", ({"1": but(GQA, types="query", entailed=None)},), {}, ("Is it?", ("yes",), (1.0,)), {}),
    ("nlvr2", (lines(but(PAIR, label="TRUE")),), {}, ("Two dogs.", ("true",), (1.0,)), {}),
    ("coco_caption", (captions([IMAGE], [but(CAPTION, caption=" A cat\n")]),), {}, ("", ("A cat",), (1.0,)), {}),
    (
        "jsonl_vqa",
        (lines(but(OWN, answers=[2, " 2", ""])),),
        {},
        ("Why?", ("2",), (1.0,)),
        {"answers that are numbers, read as text": 1, "answers with outer blanks, which are taken off": 1},
    ),
    ("jsonl_vqa", (lines(but(OWN, answers=["so"] * 10)),), {}, ("Why?", ("so",), (1.0,)), {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "contents", "options", "expected", "remarks"), ODD)
def test_items_that_are_odd(tmp_path, name, contents, options, expected, remarks):
    found = table(tmp_path, name, *contents, **options)
    (example,) = map(example_from_row, found)
    assert (example.text, example.answers, example.scores) == expected
    assert made_from(found)["remarks"] == remarks


def test_the_corpus_is_large():
    assert len(GOOD) * (len(CUT) + 1) + len(ITEMS) + len(ODD) >= 60
    assert {name for name, *_ in ITEMS} == set(GOOD)
