"""Generated sections of Markdown pages, between marker comments."""

from __future__ import annotations

from pathlib import Path

from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import atomic_write


def markers(name: str) -> tuple[str, str]:
    """The comment lines before and after the section ``name``."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def replace_section(path: Path, text: str, name: str, option: str = "--markdown") -> None:
    """Write ``text`` between the `markers` of a Markdown page; everything else stays.

    Args:
        path: the page; it must contain the pair of markers exactly once.
        text: the new content of the section.
        name: name of the section.
        option: command-line option that named the page, for messages.

    Raises:
        InputError: the file does not exist, or the pair of markers is missing or repeated.
    """
    begin, end = markers(name)
    if not path.is_file():
        raise InputError(f"{option}: file not found: {path}")
    page = path.read_text(encoding="utf-8")
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise InputError(f"{option}: {path} needs the line '{begin}' once, followed by '{end}'; add both to the page")
    before, rest = page.split(begin)
    atomic_write(path, f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")
