"""Which images could not be read: a list beside the stores, kept by any number of processes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import write_whole
from multitask_vl.storage.file_lock import WriterLock

FAILURES = "failures.jsonl"


def record_failures(store: Path, failures: list[dict[str, str]]) -> None:
    """Put a file's failures into the list beside it, in place of those of its last run; an empty list goes away.

    Args:
        store: the file they belong to.
        failures: key, path and reason of each.
    """
    path = store.with_name(FAILURES)
    with WriterLock(path, wait=True):
        others = [line for line in _lines(path) if _entry(line, path)["store"] != store.name]
        mine = [json.dumps({"store": store.name, **one}, ensure_ascii=False) for one in failures]
        if others + mine:
            write_whole(path, "\n".join([*others, *mine, ""]))
        else:
            path.unlink(missing_ok=True)


def printable(path: str) -> str:
    """A path in text, the bytes of it that are none as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def recorded_failures(stores: Iterable[Path]) -> dict[str, list[dict[str, str]]]:
    """The listed failures of files in one folder: file name -> key, path and reason of each."""
    names = {store.name: store for store in stores}
    found: dict[str, list[dict[str, str]]] = {name: [] for name in names}
    for path in {store.with_name(FAILURES) for store in names.values()}:
        for line in _lines(path):
            entry = _entry(line, path)
            if entry["store"] in found:
                found[entry.pop("store")].append(entry)
    return found


def _lines(path: Path) -> list[str]:
    try:
        # not splitlines(), for which a text holds ends of lines that JSON leaves as they are
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line]
    except FileNotFoundError:  # also where another process has just emptied the list
        return []


def _entry(line: str, path: Path) -> dict[str, str]:
    try:
        entry = json.loads(line)
        entry["store"], entry["key"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not written by extraction ({line[:60]!r}); move it away and run again") from error
    return entry
