"""How is an official file read and written: gzip or plain, JSON as a stream or by lines, errors as file:line."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import write_whole

_GZIP = b"\x1f\x8b"
_PIECE = 1 << 20  # characters read at once
_LONGEST = 1 << 20  # a mistake this far from the end of what is read is no value cut there; so no text is longer
_BLANKS = re.compile(r"[ \t\n\r]*")
_KINDS = {
    str: "text", int: "a whole number", float: "a number", list: "a list", dict: "an object", bool: "true or false",
}  # fmt: skip
_MEND = "Is the download complete? Compare its size, or fetch it again"


class Problems:
    """Problems with the items of a split, counted by kind and raised together.

    Args:
        subject: dotted path of the configuration they belong to, e.g. ``tasks.vqa.splits.train``.
        remarks: gets what was read in another form than it stands in the file, or left out as the configuration says:
            what it was -> how often.
    """

    def __init__(self, subject: str, remarks: dict[str, int] | None = None):
        self.subject = subject
        self.remarks = {} if remarks is None else remarks
        self._found: dict[tuple[str, str], tuple[int, str]] = {}

    def remark(self, what: str) -> None:
        """Count something that is no problem but that the user should know of."""
        self.remarks[what] = self.remarks.get(what, 0) + 1

    def add(self, kind: str, where: str, mend: str = "") -> None:
        """Count one problem of a kind; ``where`` is told for the first only."""
        count, first = self._found.get((kind, mend), (0, where))
        self._found[kind, mend] = (count + 1, first)

    def field(self, item: dict, name: str, kinds: type | tuple[type, ...], where: str) -> Any:
        """The value of a field that must be there, of one of some types; None, and a problem, if it is not."""
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        value = item.get(name)
        # JSON's true is an int to Python
        if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
            return value
        wanted = " or ".join(_KINDS[kind] for kind in kinds)
        if name not in item:
            self.add(f"field '{name}' ({wanted}) is missing", where)
        else:
            self.add(f"field '{name}' must be {wanted}", f"{where} has {short(value)}")
        return None

    def raise_any(self) -> None:
        """Raise InputError if there were problems: one line a kind, with its number and its first place."""
        if self._found:
            raise InputError(
                f"{self.subject}: {kind}: "
                + (first if count == 1 else f"{count:,} in all, first at {first}")
                + (f". {mend}" if mend else "")
                for (kind, mend), (count, first) in self._found.items()
            )


def walk(path: Path, whole: bool = False) -> Iterator[tuple[str | None, Any, str]]:
    """The entries of a JSON file in a streaming way, so that a file of a gigabyte costs megabytes.

    Args:
        whole: an object's members come whole, lists among them too.

    Yields:
        key, value, where. For a list: its items under the key None. For an object: its members, but a member that is a
        list comes as one entry an item, all under the member's key. ``where`` is ``file:line`` of the entry.

    Raises:
        InputError: no JSON, cut off, not UTF-8, broken gzip; with file:line.
    """
    with _opened(path) as file:
        text = _Text(path, file)
        start = text.peek()
        if start == "[":
            yield from ((None, value, where) for value, where in text.items())
        elif start == "{":
            for key in text.members():
                if text.peek() == "[" and not whole:
                    yield from ((key, value, where) for value, where in text.items())
                else:
                    where = text.where()
                    yield key, text.value(), where
        else:
            text.fail("expected a list or an object")
        if text.peek():
            text.fail("there is more text after the end")


def items_of(path: Path, member: str, problems: Problems) -> Iterator[tuple[dict, str]]:
    """The objects in the list ``member`` of a JSON object, and where each stands; a file without any is a problem."""
    seen = []
    for key, value, where in walk(path):
        if key not in seen:
            seen.append(key)
        if key != member:
            continue
        if isinstance(value, dict):
            yield value, where
        else:
            problems.add(f"an item of '{member}' must be an object", f"{where} has {short(value)}")
    if member not in seen:
        holds = "a list" if seen == [None] else ", ".join(str(key) for key in seen[:8]) or "nothing"
        problems.add(f"there is no item under '{member}'", f"{path} (it holds {holds})")


def records(path: Path, problems: Problems) -> Iterator[tuple[dict, str]]:
    """The objects of a file that is one list, or has one object a line, and ``file:line`` of each.

    Which of the two it is, its first sign says; an item of a list that is no object is a problem.
    """
    with _opened(path) as file:
        listed = _Text(path, file).peek() == "["
    if not listed:
        yield from json_lines(path)
        return
    for _, item, where in walk(path):
        if isinstance(item, dict):
            yield item, where
        else:
            problems.add("an item of the list must be an object", f"{where} has {short(item)}")


def read_results(path: Path, id_field: str, text_field: str, subject: str) -> dict[str, str]:
    """An official results file, a list of ``{id_field, text_field}``, as id -> text.

    Raises:
        InputError: malformed, ids more than once, or none at all.
    """
    problems, results = Problems(subject), {}
    for _, item, where in walk(path):
        if not isinstance(item, dict):
            problems.add(f"a list of {{{id_field}, {text_field}}} is expected", f"{where} has {short(item)}")
            continue
        id_ = problems.field(item, id_field, (int, str), where)
        text = problems.field(item, text_field, str, where)
        if id_ is not None and str(id_) in results:
            problems.add(f"a second result for a {id_field}", f"{where} ({id_})")
        elif id_ is not None and text is not None:
            results[str(id_)] = text
    problems.raise_any()
    if not results:
        raise InputError(f"{subject}: {path} holds no results")
    return results


def official_id(id_: str) -> int | str:
    """An id as official files write it: a whole number where it is one, for example ids are always text."""
    return int(id_) if id_.isdecimal() and str(int(id_)) == id_ else id_


def json_lines(path: Path) -> Iterator[tuple[dict, str]]:
    """The objects of a file that has one JSON object a line, and ``file:line`` of each; empty lines are passed over.

    Raises:
        InputError: a line is no JSON object, not UTF-8, broken gzip.
    """
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                item = _DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: malformed JSON: {_said(error)} (one object a line is expected)") from None
            if not isinstance(item, dict):
                raise InputError(f"{where}: one JSON object a line is expected, got {short(item)}")
            yield item, where


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, without their ends, and ``file:line`` of each."""
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield line.rstrip("\n"), f"{path}:{number}"


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that it appears whole or not at all; NaN is refused."""
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    # half of a surrogate pair is no character, but Python's escape of it is JSON's too
    write_whole(path, text.encode(errors="backslashreplace"))


class _Text:
    """A JSON text read piece by piece, with the line of the place reached."""

    def __init__(self, path: Path, file: io.TextIOBase):
        self.path, self.file = path, file
        self.buffer, self.at, self.line, self.ended = "", 0, 1, False

    def where(self) -> str:
        return f"{self.path}:{self.line}"

    def fail(self, what: str, at: int | None = None) -> NoReturn:
        line = self.line + self.buffer.count("\n", self.at, self.at if at is None else at)
        raise InputError(f"{self.path}:{line}: malformed JSON: {what}. {_MEND}")

    def peek(self) -> str:
        """The next character that is no blank; empty at the end of the file."""
        while True:
            self._go(_BLANKS.match(self.buffer, self.at).end())
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if self.ended:
                return ""
            self._fill(_PIECE)

    def value(self) -> Any:
        """The value that starts at the next character."""
        self.peek()
        piece = _PIECE
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.at)
                # a number at the very end of a piece may go on in the next
                if end < len(self.buffer) or self.ended:
                    self._go(end)
                    return value
            except json.JSONDecodeError as error:
                if self.ended or len(self.buffer) - error.pos > _LONGEST:
                    self.fail(error.msg, error.pos)
            except (ValueError, RecursionError) as error:
                # NaN, nesting, and whole numbers of more digits than Python reads
                self.fail(_said(error))
            self._fill(piece)
            piece *= 2

    def items(self) -> Iterator[tuple[Any, str]]:
        """Values of the list that starts here, each with its place."""
        for _ in self._entries("[", "]"):
            where = self.where()
            yield self.value(), where

    def members(self) -> Iterator[str]:
        """Keys of the object that starts here; the caller reads each value before it asks for the next key."""
        for _ in self._entries("{", "}"):
            key = self.value()
            if not isinstance(key, str):
                self.fail("a member's name must be text")
            if self.peek() != ":":
                self.fail(f"expected ':' after {short(key)}")
            self._go(self.at + 1)
            yield key

    def _entries(self, opening: str, closing: str) -> Iterator[None]:
        self._go(self.at + len(opening))
        if self.peek() == closing:
            self._go(self.at + 1)
            return
        while True:
            self.peek()
            yield
            sign = self.peek()
            if sign not in (",", closing):
                self.fail(f"expected ',' or '{closing}'" if sign else "the file ends in the middle")
            self._go(self.at + 1)
            if sign == closing:
                return

    def _go(self, at: int) -> None:
        self.line += self.buffer.count("\n", self.at, at)
        self.at = at

    def _fill(self, size: int) -> None:
        piece = self.file.read(size)
        self.buffer, self.at = self.buffer[self.at :] + piece, 0
        self.ended = not piece


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.TextIOBase]:
    """A text file, unpacked where it is gzip (by its first bytes), a byte order mark passed over."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            with io.TextIOWrapper(gzip.GzipFile(fileobj=raw) if packed else raw, encoding="utf-8-sig") as file:
                yield file
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text (byte 0x{error.object[error.start]:02x}: {error.reason})"
        raise InputError(f"{path}: broken gzip, or in it {what}. {_MEND}" if packed else f"{path}: {what}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: broken gzip: {error}. {_MEND}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


class _NotJSON(ValueError):
    """NaN and its like, which Python reads and JSON does not have."""


def _constant(name: str) -> NoReturn:
    raise _NotJSON(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_constant)


def _said(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def short(value: Any) -> str:
    """A value as JSON of at most sixty characters, for messages."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
