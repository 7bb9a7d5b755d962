"""JSON streaming and file access for official annotation files, with errors as file:line."""

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

from multitask_vl.errors import InputError, truncate

_GZIP_MAGIC = b"\x1f\x8b"
_READ_CHARS = 1 << 20
_MAX_LOOKAHEAD = 1 << 20
"""A parse error this far from the end of the buffer cannot be a value that the buffer cuts; longer strings are
therefore reported as malformed."""
_WHITESPACE = re.compile(r"[ \t\n\r]*")
_TYPE_NAMES = {
    str: "text", int: "an integer", float: "a number", list: "a list", dict: "an object", bool: "true or false",
}  # fmt: skip
_FIX_DOWNLOAD = "Is the download complete? Compare its size, or fetch it again"


class ErrorCollector:
    """Problems with the items of a split, counted by kind and raised together.

    Args:
        subject: dotted path of the configuration they belong to, e.g. ``tasks.vqa.splits.train``.
        warnings: mapping that `warn` counts in: message -> number of items. None: a new one.
    """

    def __init__(self, subject: str, warnings: dict[str, int] | None = None):
        self.subject = subject
        self.warnings = {} if warnings is None else warnings
        self._problems: dict[tuple[str, str], tuple[int, str]] = {}

    def warn(self, message: str) -> None:
        """Count an item that is not an error but that the user should know of, such as a dropped one."""
        self.warnings[message] = self.warnings.get(message, 0) + 1

    def add(self, kind: str, where: str, fix: str = "") -> None:
        """Count one problem of a kind. ``where`` is reported for the first problem of each kind only."""
        count, first = self._problems.get((kind, fix), (0, where))
        self._problems[kind, fix] = (count + 1, first)

    def require_field(self, item: dict, name: str, types: type | tuple[type, ...], where: str) -> Any:
        """Value of a required field of one of some types; None, and a problem, if it is missing or has another type."""
        types = types if isinstance(types, tuple) else (types,)
        value = item.get(name)
        # bool is a subclass of int, but JSON's true is not a number
        if isinstance(value, types) and (bool in types or not isinstance(value, bool)):
            return value
        expected = " or ".join(_TYPE_NAMES[type_] for type_ in types)
        if name not in item:
            self.add(f"field '{name}' ({expected}) is missing", where)
        else:
            self.add(f"field '{name}' must be {expected}", f"{where} has {truncate_repr(value)}")
        return None

    def raise_if_any(self) -> None:
        """Raise InputError if there are problems, one line per kind with its count and the first place."""
        if self._problems:
            raise InputError(
                f"{self.subject}: {kind}: "
                + (first if count == 1 else f"{count:,} in all, first at {first}")
                + (f". {fix}" if fix else "")
                for (kind, fix), (count, first) in self._problems.items()
            )


def stream_json(path: Path, split_lists: bool = True) -> Iterator[tuple[str | None, Any, str]]:
    """Stream the entries of a JSON file, so that a file of a gigabyte needs only megabytes of memory.

    Args:
        split_lists: yield a member that is a list as one entry per item. False: every member is one entry.

    Yields:
        key, value, where. For a list: its items with the key None. For an object: its members; a member that is a list
        gives one entry per item, all with the member's key. ``where`` is ``file:line`` of the entry.

    Raises:
        InputError: not JSON, truncated, not UTF-8, or broken gzip; with file:line.
    """
    with open_text(path) as file:
        cursor = _JsonCursor(path, file)
        start = cursor.peek()
        if start == "[":
            yield from ((None, value, where) for value, where in cursor.items())
        elif start == "{":
            for key in cursor.members():
                if cursor.peek() == "[" and split_lists:
                    yield from ((key, value, where) for value, where in cursor.items())
                else:
                    where = cursor.where()
                    yield key, cursor.value(), where
        else:
            cursor.fail("expected a list or an object")
        if cursor.peek():
            cursor.fail("there is more text after the end")


def stream_list(path: Path, member: str, problems: ErrorCollector) -> Iterator[tuple[dict, str]]:
    """Stream the objects in the list ``member`` of a JSON object, each with its ``file:line``.

    A file without such an item is added to ``problems``.
    """
    keys = []
    for key, value, where in stream_json(path):
        if key not in keys:
            keys.append(key)
        if key != member:
            continue
        if isinstance(value, dict):
            yield value, where
        else:
            problems.add(f"an item of '{member}' must be an object", f"{where} has {truncate_repr(value)}")
    if member not in keys:
        content = "a list" if keys == [None] else ", ".join(str(key) for key in keys[:8]) or "nothing"
        problems.add(f"there is no item under '{member}'", f"{path} (it contains {content})")


def read_records(path: Path, problems: ErrorCollector) -> Iterator[tuple[dict, str]]:
    """Read the objects of a JSON list or of a JSON lines file, each with its ``file:line``.

    The first character decides which of the two it is. List items that are not objects are added to ``problems``.
    """
    with open_text(path) as file:
        is_list = _JsonCursor(path, file).peek() == "["
    if not is_list:
        yield from read_jsonl(path)
        return
    for _, item, where in stream_json(path):
        if isinstance(item, dict):
            yield item, where
        else:
            problems.add("an item of the list must be an object", f"{where} has {truncate_repr(item)}")


def read_results(path: Path, id_field: str, text_field: str, subject: str) -> dict[str, str]:
    """Read an official results file, a list of ``{id_field, text_field}``, as id -> text.

    Raises:
        InputError: malformed, duplicate ids, or no results.
    """
    problems, results = ErrorCollector(subject), {}
    for _, item, where in stream_json(path):
        if not isinstance(item, dict):
            problems.add(f"a list of {{{id_field}, {text_field}}} is expected", f"{where} has {truncate_repr(item)}")
            continue
        id_ = problems.require_field(item, id_field, (int, str), where)
        text = problems.require_field(item, text_field, str, where)
        if id_ is not None and str(id_) in results:
            problems.add(f"a second result for a {id_field}", f"{where} ({id_})")
        elif id_ is not None and text is not None:
            results[str(id_)] = text
    problems.raise_if_any()
    if not results:
        raise InputError(f"{subject}: {path} contains no results")
    return results


def native_id(id_: str) -> int | str:
    """Convert an example id, which is always text, to its type in official files: an integer if it is one."""
    return int(id_) if id_.isdecimal() and str(int(id_)) == id_ else id_


def read_jsonl(path: Path) -> Iterator[tuple[dict, str]]:
    """Read the objects of a JSON lines file, each with its ``file:line``; blank lines are skipped.

    Raises:
        InputError: a line is not a JSON object, not UTF-8, or broken gzip.
    """
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                item = _DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{where}: malformed JSON: {_error_text(error)} (one object per line is expected)"
                ) from None
            if not isinstance(item, dict):
                raise InputError(f"{where}: one JSON object per line is expected, got {truncate_repr(item)}")
            yield item, where


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Read the lines of a text file that are not blank, without line ends, each with its ``file:line``."""
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield line.rstrip("\n"), f"{path}:{number}"


class _JsonCursor:
    """Incremental JSON parser over a text file; it tracks the line number of its position."""

    def __init__(self, path: Path, file: io.TextIOBase):
        self.path, self.file = path, file
        self.buffer, self.position, self.line, self.at_eof = "", 0, 1, False

    def where(self) -> str:
        """``file:line`` of the position."""
        return f"{self.path}:{self.line}"

    def fail(self, message: str, position: int | None = None) -> NoReturn:
        """Raise InputError for a position in the buffer, by default the current one."""
        position = self.position if position is None else position
        line = self.line + self.buffer.count("\n", self.position, position)
        raise InputError(f"{self.path}:{line}: malformed JSON: {message}. {_FIX_DOWNLOAD}")

    def peek(self) -> str:
        """The next character that is not whitespace; empty at the end of the file."""
        while True:
            self._advance_to(_WHITESPACE.match(self.buffer, self.position).end())
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if self.at_eof:
                return ""
            self._fill(_READ_CHARS)

    def value(self) -> Any:
        """The value that starts at the next character."""
        self.peek()
        size = _READ_CHARS
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.position)
                # a number at the very end of the buffer may continue in the next chunk
                if end < len(self.buffer) or self.at_eof:
                    self._advance_to(end)
                    return value
            except json.JSONDecodeError as error:
                if self.at_eof or len(self.buffer) - error.pos > _MAX_LOOKAHEAD:
                    self.fail(error.msg, error.pos)
            except (ValueError, RecursionError) as error:
                # NaN, nesting, and integers with more digits than Python reads
                self.fail(_error_text(error))
            self._fill(size)
            size *= 2

    def items(self) -> Iterator[tuple[Any, str]]:
        """Values of the list that starts here, each with its ``file:line``."""
        for _ in self._entries("[", "]"):
            where = self.where()
            yield self.value(), where

    def members(self) -> Iterator[str]:
        """Keys of the object that starts here. The caller must read each value before it asks for the next key."""
        for _ in self._entries("{", "}"):
            key = self.value()
            if not isinstance(key, str):
                self.fail("a member's name must be text")
            if self.peek() != ":":
                self.fail(f"expected ':' after {truncate_repr(key)}")
            self._advance_to(self.position + 1)
            yield key

    def _entries(self, opening: str, closing: str) -> Iterator[None]:
        self._advance_to(self.position + len(opening))
        if self.peek() == closing:
            self._advance_to(self.position + 1)
            return
        while True:
            self.peek()
            yield
            separator = self.peek()
            if separator not in (",", closing):
                self.fail(f"expected ',' or '{closing}'" if separator else "the file ends in the middle")
            self._advance_to(self.position + 1)
            if separator == closing:
                return

    def _advance_to(self, position: int) -> None:
        self.line += self.buffer.count("\n", self.position, position)
        self.position = position

    def _fill(self, size: int) -> None:
        chunk = self.file.read(size)
        self.buffer, self.position = self.buffer[self.position :] + chunk, 0
        self.at_eof = not chunk


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[io.TextIOBase]:
    """Open a UTF-8 text file. gzip is detected by its first bytes, and a byte order mark is skipped.

    Raises:
        InputError: not UTF-8, broken gzip, or unreadable; also while the body reads.
    """
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            with io.TextIOWrapper(gzip.GzipFile(fileobj=raw) if is_gzip else raw, encoding="utf-8-sig") as file:
                yield file
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text (byte 0x{error.object[error.start]:02x}: {error.reason})"
        message = (
            f"{path}: broken gzip, or its content is {reason}. {_FIX_DOWNLOAD}" if is_gzip else f"{path}: {reason}"
        )
        raise InputError(message) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: broken gzip: {error}. {_FIX_DOWNLOAD}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


class _NotJSON(ValueError):
    """NaN and infinities, which Python's decoder reads and JSON does not have."""


def _refuse_constant(name: str) -> NoReturn:
    raise _NotJSON(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _error_text(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def truncate_repr(value: Any) -> str:
    """A value as JSON of at most 60 characters, for messages."""
    return truncate(json.dumps(value, ensure_ascii=False), 60)
