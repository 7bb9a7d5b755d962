"""Progress of loops over the rows of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable

ProgressFn = Callable[[Iterable, str], Iterable]
"""Wraps an iterable to show its progress, like tqdm; the text describes the work, such as "checking stored rows"."""


def no_progress(items: Iterable, description: str) -> Iterable:
    """Return ``items`` as they are; the default `ProgressFn`."""
    return items
