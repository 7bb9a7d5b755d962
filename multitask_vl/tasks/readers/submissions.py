"""Checks of submission files: ids, types and characters, with every kind of defect counted."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from multitask_vl.errors import InputError
from multitask_vl.tasks.readers.json_stream import ErrorCollector, stream_json

CONTROL_CHARS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that no answer needs and some servers reject: control characters, Unicode line ends, lone surrogates."""
_SIGNATURES = {codecs.BOM_UTF8: "a byte order mark", b"\x1f\x8b": "gzip"}


def strip_control_chars(text: str) -> str:
    """Replace each of `CONTROL_CHARS` in a prediction by a space, so that it fits on one line of a submission."""
    return CONTROL_CHARS.sub(" ", text)


def expected_ids(items: Iterable[tuple[dict, str]], field: str, problems: ErrorCollector) -> list[int | str]:
    """Collect the ids of official questions, in file order and with their type in the file.

    Args:
        items: (object, ``file:line``) pairs.

    Raises:
        InputError: a missing id, a duplicate id, or no object; also whatever ``problems`` contains already.
    """
    ids: dict[int | str, None] = {}
    for item, where in items:
        id_ = problems.require_field(item, field, (int, str), where)
        if id_ is not None and id_ in ids:
            problems.add(f"duplicate {field}", f"{where} ({id_})")
        elif id_ is not None:
            ids[id_] = None
    problems.raise_if_any()
    if not ids:
        raise InputError(f"{problems.subject}: there is nothing to answer in it")
    return list(ids)


def check_results(path: Path, id_field: str, text_field: str, ids: Iterable[int | str]) -> None:
    """Check a JSON list of ``{id_field, text_field}``: every id once, of its type in ``ids``, with a text of one line.

    Raises:
        InputError: every kind of defect, with its count and one instance.
    """
    problems = _check_signature(path)
    checker = IdChecker(id_field, ids, problems)
    for key, item, where in stream_json(path):
        if key is not None or not isinstance(item, dict):
            problems.add(f"a list of {{{id_field}, {text_field}}} is expected", where)
            continue
        checker.add(problems.require_field(item, id_field, (int, str), where), where)
        text = problems.require_field(item, text_field, str, where)
        if text is not None and CONTROL_CHARS.search(text):
            problems.add(f"'{text_field}' has a control character or a line end", f"{where} has {text!a}")
    checker.finish()


def check_lines(path: Path, pattern: re.Pattern, form: str, id_field: str, ids: Iterable[str]) -> None:
    """Check a text file with one result per line: every line of the expected form, every id once.

    Args:
        pattern: full match of a line, with a group ``id``.
        form: description of a valid line, for messages.

    Raises:
        InputError: every kind of defect, with its count and one instance.
    """
    problems = _check_signature(path)
    checker = IdChecker(id_field, ids, problems)
    for line, where in _read_all_lines(path):
        match = pattern.fullmatch(line)
        if match is None:
            problems.add(f"a line must read {form}", f"{where} has {line!a}")
        else:
            checker.add(match["id"], where)
    checker.finish()


class IdChecker:
    """Comparison of the ids of results with the expected ones.

    Args:
        field: name of the id in the file, for messages.
        ids: expected ids, with their type in official files.
        problems: every defect is added to it.
    """

    def __init__(self, field: str, ids: Iterable[int | str], problems: ErrorCollector):
        self.field, self.problems = field, problems
        self.expected = {str(id_): id_ for id_ in ids}
        self.seen: set[str] = set()

    def add(self, id_: int | str | None, where: str) -> None:
        """Check the id of one result. None, a missing id, is ignored: the caller reports it."""
        text = str(id_)
        if id_ is None:
            return
        if text not in self.expected:
            self.problems.add(f"unknown {self.field}", f"{where} ({id_!r})")
        elif text in self.seen:
            self.problems.add(f"{self.field} with a second result", f"{where} ({id_!r})")
        elif type(id_) is not type(self.expected[text]):
            kind = "an integer" if isinstance(self.expected[text], int) else "text"
            self.problems.add(f"'{self.field}' must be {kind} as in the question file", f"{where} has {id_!r}")
        self.seen.add(text)

    def finish(self) -> None:
        """Add expected ids without a result, and raise InputError if there are problems."""
        for text, id_ in self.expected.items():
            if text not in self.seen:
                self.problems.add(f"{self.field} without a result ({len(self.expected):,} are expected)", repr(id_))
        self.problems.raise_if_any()


def _check_signature(path: Path) -> ErrorCollector:
    """Look for a byte order mark or gzip, which `open_text` accepts and servers do not."""
    problems = ErrorCollector(str(path))
    with path.open("rb") as file:
        start = file.read(3)
    for signature, name in _SIGNATURES.items():
        if start.startswith(signature):
            problems.add(f"the file must be plain UTF-8 text without {name}", f"{path}:1")
    return problems


def _read_all_lines(path: Path) -> Iterator[tuple[str, str]]:
    """All lines without line ends, blank ones included, each with its ``file:line``."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte 0x{error.object[error.start]:02x}: {error.reason})") from None
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        yield line, f"{path}:{number}"
