"""Atomic, durable writes."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see either the previous or the complete new content.

    The content goes to a temporary file in the same folder, which is synced and renamed.

    Args:
        path: the file; missing parent folders are created.
        content: text is encoded as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_replace(path) as temp:
        temp.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_replace(path: Path, temp: Path | None = None) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces ``path`` on success and is deleted on error.

    Args:
        path: the file to be written; its folder exists.
        temp: the temporary file, in the same folder; by default a name unique to this thread. A fixed name lets the
            next writer overwrite what a killed process left behind; the caller then holds a lock.
    """
    temp = temp or path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.writing")
    try:
        yield temp
        sync(temp)
        temp.replace(path)
        sync(path.parent)
    finally:
        temp.unlink(missing_ok=True)


def atomic_write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; ValueError for NaN and infinity, which JSON does not have."""
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    # UTF-8 cannot encode a lone surrogate; its Python escape, \udxxx, is a valid JSON escape too
    atomic_write(path, text.encode(errors="backslashreplace"))


def leftover_temp_files(folder: Path) -> list[Path]:
    """Return the temporary files under ``folder`` that `atomic_write` left because its process was killed."""
    return sorted(path for path in Path(folder).rglob(".*.writing") if path.is_file() or path.is_symlink())


def sync(path: Path) -> None:
    """Flush a file, or a folder's renames, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
