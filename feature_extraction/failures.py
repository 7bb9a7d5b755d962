"""List of images that could not be read, next to the store and shared by all processes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import atomic_write
from multitask_vl.storage.file_lock import FileLock

FAILURES_FILE = "failures.jsonl"


def record_failures(store: Path, failures: list[dict[str, str]]) -> None:
    """Replace the failures of a store file in the list next to it; an empty list is deleted.

    Args:
        store: the store file that was being filled.
        failures: key, path and reason of each unreadable image.
    """
    path = store.with_name(FAILURES_FILE)
    with FileLock(path, wait=True):
        others = [line for line in _read_lines(path) if _parse(line, path)["store"] != store.name]
        added = [json.dumps({"store": store.name, **failure}, ensure_ascii=False) for failure in failures]
        if others + added:
            atomic_write(path, "\n".join([*others, *added, ""]))
        else:
            path.unlink(missing_ok=True)


def printable_path(path: str) -> str:
    """Return a path with the bytes that are not UTF-8 escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_failures(stores: Iterable[Path]) -> dict[str, list[dict[str, str]]]:
    """Return the recorded failures by name of the store file: key, path and reason of each.

    Args:
        stores: store files of one folder.

    Raises:
        InputError: the list was not written by extraction.
    """
    names = {store.name: store for store in stores}
    failures: dict[str, list[dict[str, str]]] = {name: [] for name in names}
    for path in {store.with_name(FAILURES_FILE) for store in names.values()}:
        for line in _read_lines(path):
            entry = _parse(line, path)
            if entry["store"] in failures:
                failures[entry.pop("store")].append(entry)
    return failures


def _read_lines(path: Path) -> list[str]:
    try:
        # Not splitlines(): it also splits at characters that JSON does not escape, such as U+2028.
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line]
    except FileNotFoundError:  # also if another process has just deleted it
        return []


def _parse(line: str, path: Path) -> dict[str, str]:
    try:
        entry = json.loads(line)
        entry["store"], entry["key"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not written by extraction ({line[:60]!r}); move it away and run again") from error
    return entry
