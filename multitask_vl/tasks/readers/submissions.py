"""What is wrong with a submission before the server says so: ids, types, characters; every kind of defect counted."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from multitask_vl.errors import InputError
from multitask_vl.tasks.readers.json_stream import Problems, walk

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What no answer needs and some servers stumble over: control characters, other line ends, halves of a pair."""
_ENCODINGS = {codecs.BOM_UTF8: "a byte order mark", b"\x1f\x8b": "gzip"}


def one_line(text: str) -> str:
    """A prediction as it may stand in a submission: each of `CONTROL` becomes a blank."""
    return CONTROL.sub(" ", text)


def ids_of(items: Iterable[tuple[dict, str]], field: str, problems: Problems) -> list[int | str]:
    """The ids that official files ask for, of the type they have there, in file order.

    Args:
        items: (object, ``file:line``) pairs.

    Raises:
        InputError: an object without id, an id twice, or no object at all; with what ``problems`` holds already.
    """
    found: dict[int | str, None] = {}
    for item, where in items:
        id_ = problems.field(item, field, (int, str), where)
        if id_ is not None and id_ in found:
            problems.add(f"{field} that stands there twice", f"{where} ({id_})")
        elif id_ is not None:
            found[id_] = None
    problems.raise_any()
    if not found:
        raise InputError(f"{problems.subject}: there is nothing in it that asks for an answer")
    return list(found)


def check_results(path: Path, id_field: str, text_field: str, ids: Iterable[int | str]) -> None:
    """Check a JSON list of ``{id_field, text_field}``: every id once, of its type in ``ids``, with a text of one line.

    Raises:
        InputError: every kind of defect, with its number and one instance.
    """
    problems = _plain(path)
    answered = Answered(id_field, ids, problems)
    for key, item, where in walk(path):
        if key is not None or not isinstance(item, dict):
            problems.add(f"a list of {{{id_field}, {text_field}}} is expected", where)
            continue
        answered.add(problems.field(item, id_field, (int, str), where), where)
        text = problems.field(item, text_field, str, where)
        if text is not None and CONTROL.search(text):
            problems.add(f"'{text_field}' has a control character or a line end", f"{where} has {text!a}")
    answered.finish()


def check_lines(path: Path, pattern: re.Pattern, wanted: str, id_field: str, ids: Iterable[str]) -> None:
    """Check a text file with one result a line: every line of the form, every id once.

    Args:
        pattern: of a whole line, with a group ``id``.
        wanted: how a line must read, for messages.

    Raises:
        InputError: every kind of defect, with its number and one instance.
    """
    problems = _plain(path)
    answered = Answered(id_field, ids, problems)
    for line, where in _lines(path):
        found = pattern.fullmatch(line)
        if found is None:
            problems.add(f"a line must read {wanted}", f"{where} has {line!a}")
        else:
            answered.add(found["id"], where)
    answered.finish()


class Answered:
    """Ids of results as they come, compared with those asked for.

    Args:
        field: what the file calls them.
        ids: those asked for, each of its right type.
        problems: gets every defect.
    """

    def __init__(self, field: str, ids: Iterable[int | str], problems: Problems):
        self.field, self.problems = field, problems
        self.wanted = {str(id_): id_ for id_ in ids}
        self.seen: set[str] = set()

    def add(self, id_: int | str | None, where: str) -> None:
        """One result's id; None, where it has none, is the caller's to tell."""
        text = str(id_)
        if id_ is None:
            return
        if text not in self.wanted:
            self.problems.add(f"{self.field} that is not asked for", f"{where} ({id_!r})")
        elif text in self.seen:
            self.problems.add(f"{self.field} with a second result", f"{where} ({id_!r})")
        elif type(id_) is not type(self.wanted[text]):
            kind = "a whole number" if isinstance(self.wanted[text], int) else "text"
            self.problems.add(f"'{self.field}' must be {kind} as in the question file", f"{where} has {id_!r}")
        self.seen.add(text)

    def finish(self) -> None:
        """Tell which ids have no result, and raise InputError if anything was wrong."""
        missing = [id_ for text, id_ in self.wanted.items() if text not in self.seen]
        for id_ in missing:
            self.problems.add(f"{self.field} without a result ({len(self.wanted):,} are asked for)", repr(id_))
        self.problems.raise_any()


def _plain(path: Path) -> Problems:
    """Problems of a file, with what its first bytes tell: a reader may pass over what a server does not."""
    problems = Problems(str(path))
    with path.open("rb") as file:
        start = file.read(3)
    for mark, name in _ENCODINGS.items():
        if start.startswith(mark):
            problems.add(f"the file must be plain UTF-8 text without {name}", f"{path}:1")
    return problems


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """All lines, blank ones included, without their ends, and ``file:line`` of each."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte 0x{error.object[error.start]:02x}: {error.reason})") from None
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        yield line, f"{path}:{number}"
