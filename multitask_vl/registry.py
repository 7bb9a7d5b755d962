"""Where do names in YAML become code: one registry a kind, filled by decorators, found by did-you-mean."""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from multitask_vl.errors import InputError

T = TypeVar("T")
PROGRAMS = {str(folder / "launch") for folder in Path(__file__).resolve().parents[:2]}
"""Where programs lie: beside the package, or inside an installed one."""


class Registry(Generic[T]):
    """Names of one kind (method, task, routing function, ...) and what they stand for.

    Built-ins live in ``package``: every module of it is imported at the first look-up, so adding one is adding a file.
    Outsiders enter by the same decorator from a module named under ``plugins:`` (see `load_plugins`).

    Args:
        kind: the word used in errors, e.g. ``"method"``.
        package: dotted name of the package that holds the built-ins.
    """

    def __init__(self, kind: str, package: str):
        self.kind = kind
        self.package = package
        self._entries: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: enter the decorated class or function under ``name``. A name taken by other code is refused."""

        def enter(entry: T) -> T:
            known = self._entries.get(name)
            if known is not None and _address(known) != _address(entry):
                raise InputError(f'{self.kind} "{name}" is registered twice: {_address(known)} and {_address(entry)}')
            self._entries[name] = entry
            return entry

        return enter

    def get(self, name: str) -> T:
        """What ``name`` stands for; raises InputError with the closest names and the list of all."""
        self._discover()
        if name in self._entries:
            return self._entries[name]
        raise InputError(self.unknown(name))

    def unknown(self, name: object) -> str:
        """The sentence that tells a user ``name`` is not known, for callers that collect problems."""
        close = difflib.get_close_matches(str(name), self.names(), n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
        return f"unknown {self.kind} {name!r}{hint} (known: {', '.join(self.names())})"

    def names(self) -> list[str]:
        """All known names, sorted."""
        self._discover()
        return sorted(self._entries)

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")


def _address(entry: object) -> str:
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', entry)}"


METHODS: Registry = Registry("method", "multitask_vl.methods")
TASKS: Registry = Registry("task", "multitask_vl.tasks")
ROUTING: Registry = Registry("routing function", "multitask_vl.routing")
BACKBONES: Registry = Registry("backbone family", "multitask_vl.models.backbones")


def load_plugins(modules: Iterable[str]) -> None:
    """Import the modules a user names under ``plugins:``; their decorators do the rest.

    Raises:
        InputError: naming every module that cannot be imported or fails while it is, and why.
    """
    # `python launch/train_multitask.py` has Python look in launch/ first, where a program may be called as a plugin is
    sys.path.sort(key=lambda folder: os.path.abspath(folder) in PROGRAMS)
    problems = []
    for name in modules:
        try:
            where = getattr(importlib.import_module(name), "__file__", None) or ""
        except ImportError as error:
            problems.append(
                f"plugins: cannot import {name!r}: {error}. Is its folder on PYTHONPATH? Try: python -c 'import {name}'"
            )
            continue
        except InputError as error:
            problems += error.problems
            continue
        except Exception as error:  # whatever a stranger's module raises while it is imported is bad input here
            problems.append(f"plugins: {name!r} fails on import: {type(error).__name__}: {error}")
            continue
        if os.path.abspath(os.path.dirname(where)) in PROGRAMS:
            del sys.modules[name]
            problems.append(f"plugins: {name!r} is only the program {where}. Is your module's folder on PYTHONPATH?")
    if problems:
        raise InputError(problems)
