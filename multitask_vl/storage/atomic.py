"""What makes a file last: it appears whole or not at all, and stays through a power cut."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees all of it or what was there before: temporary file, sync, rename.

    Args:
        path: its folder is made if need be.
        content: text is written as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.writing")
    try:
        with writing.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(writing, path)
        sync(path.parent)
    finally:
        writing.unlink(missing_ok=True)


def unfinished(folder: Path) -> list[Path]:
    """Temporary files that `write_whole` left anywhere under ``folder`` because its process was killed."""
    return sorted(path for path in Path(folder).rglob(".*.writing") if path.is_file() or path.is_symlink())


def sync(path: Path) -> None:
    """Put a file, or a folder's renames, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
