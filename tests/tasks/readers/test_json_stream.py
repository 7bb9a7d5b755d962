"""JSON streaming: content, encodings, file:line of errors, and the error collector."""

import gzip
import json
import re

import pytest

from multitask_vl.errors import InputError
from multitask_vl.tasks.readers import json_stream
from multitask_vl.tasks.readers.json_stream import ErrorCollector, read_jsonl, read_lines, stream_json

CONTENT = {"info": {"a": [1, {"b": None}]}, "questions": [{"id": 12345, "t": 'é "}]'}, -1.5e3, "x"], "none": [], "n": 3}


def entries(path):
    return [(key, value) for key, value, _ in stream_json(path)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
def test_stream_json_equals_json_load(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "_READ_CHARS", chunk)
    path = tmp_path / "f.json"
    path.write_text(json.dumps(CONTENT, indent=2, ensure_ascii=False), encoding="utf-8")
    expected = [("info", CONTENT["info"]), *(("questions", item) for item in CONTENT["questions"]), ("n", 3)]
    assert entries(path) == expected
    places = [where for key, _, where in stream_json(path) if key == "questions"]
    assert [place.rpartition(":")[2] for place in places] == ["11", "15", "16"]
    assert {key: value for key, value, _ in stream_json(path, split_lists=False)} == CONTENT


@pytest.mark.parametrize(
    "encoded",
    [
        json.dumps(CONTENT).encode(),
        b"\xef\xbb\xbf" + json.dumps(CONTENT).encode(),
        json.dumps(CONTENT, indent=1).replace("\n", "\r\n").encode(),
        gzip.compress(json.dumps(CONTENT).encode()),
        gzip.compress(b"\xef\xbb\xbf" + json.dumps(CONTENT).encode()),
    ],
    ids=["plain", "bom", "crlf", "gzip", "gzip-bom"],
)
def test_stream_json_reads_encoding(tmp_path, encoded):
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
    ids=[
        "list-separator", "literal", "truncated-item", "truncated-list", "empty", "number", "second-value", "colon",
        "member-name", "nan", "nesting", "not-utf8", "gzip-truncated", "gzip-corrupt",
    ],
)  # fmt: skip
def test_stream_json_reports_line_of_error(tmp_path, content, message):
    path = tmp_path / "f.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=re.escape(str(path))) as error:
        entries(path)
    assert re.search(message, str(error.value))


def test_stream_json_stops_reading_after_error(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_READ_CHARS", 1000)
    monkeypatch.setattr(json_stream, "_MAX_LOOKAHEAD", 1000)
    path = tmp_path / "f.json"
    path.write_text("[1,\n oops," + "\n 2," * 100_000)
    fills = []
    fill = json_stream._JsonCursor._fill
    monkeypatch.setattr(json_stream._JsonCursor, "_fill", lambda self, size: (fills.append(size), fill(self, size)))
    with pytest.raises(InputError, match=":2: malformed JSON"):
        entries(path)
    assert sum(fills) < 10_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n\n{"a": \n', ":3: malformed JSON: Expecting value"),
        ("[1, 2]\n", ":1: one JSON object per line is expected"),
        ('{"a": Infinity}\n', ":1: malformed JSON: Infinity is not JSON"),
        ('{\n "a": 1}\n', ":1: malformed JSON"),
    ],
    ids=["truncated", "list", "infinity", "multi-line"],
)
def test_read_jsonl_reports_line_of_error(tmp_path, content, message):
    (tmp_path / "f.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        list(read_jsonl(tmp_path / "f.jsonl"))


def test_read_lines_rejects_folder(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        list(read_lines(tmp_path))


def test_error_collector_counts_problems_by_kind():
    problems = ErrorCollector("tasks.vqa.splits.train")
    problems.raise_if_any()
    for line in range(1, 1201):
        problems.require_field({"id": True}, "id", (int, str), f"q.json:{line}")
    problems.add("something else", "there", "Fix it")
    with pytest.raises(InputError) as error:
        problems.raise_if_any()
    assert error.value.problems == [
        "tasks.vqa.splits.train: field 'id' must be an integer or text: 1,200 in all, first at q.json:1 has true",
        "tasks.vqa.splits.train: something else: there. Fix it",
    ]
