"""Registries of methods, tasks, routing functions and backbones."""

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
LAUNCH_DIRS = {str(folder / "launch") for folder in Path(__file__).resolve().parents[:2]}
"""Where `launch/` can be: next to the package in a checkout, inside it when installed."""


class Registry(Generic[T]):
    """Named entries of one kind (methods, tasks, routing functions, ...).

    The built-in entries are in the modules of ``package``, which are imported on the first lookup: a new file is all a
    new entry needs. Other entries are registered by the modules listed under ``plugins:`` (see `load_plugins`).

    Args:
        kind: what an entry is called in error messages, e.g. ``"method"``.
        package: dotted name of the package with the built-in entries.
    """

    def __init__(self, kind: str, package: str):
        self.kind = kind
        self.package = package
        self._entries: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a class or function under ``name``; a name used by other code is an error."""

        def decorator(entry: T) -> T:
            known = self._entries.get(name)
            if known is not None and _qualified_name(known) != _qualified_name(entry):
                raise InputError(
                    f'{self.kind} "{name}" is registered twice: {_qualified_name(known)} and {_qualified_name(entry)}'
                )
            self._entries[name] = entry
            return entry

        return decorator

    def get(self, name: str) -> T:
        """The entry registered under ``name``.

        Raises:
            InputError: the name is unknown; the message lists similar names and all names.
        """
        self._discover()
        if name in self._entries:
            return self._entries[name]
        raise InputError(self.unknown_name_message(name))

    def unknown_name_message(self, name: object) -> str:
        """The error message for an unknown name, for callers that collect problems."""
        close = difflib.get_close_matches(str(name), self.names(), n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
        return f"unknown {self.kind} {name!r}{hint} (known: {', '.join(self.names())})"

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._discover()
        return sorted(self._entries)

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")


def _qualified_name(entry: object) -> str:
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', entry)}"


METHODS: Registry = Registry("method", "multitask_vl.methods")
"""Parameter-efficient methods by name: classes with a `Config`."""
TASKS: Registry = Registry("task", "multitask_vl.tasks")
"""Tasks by name: subclasses of `multitask_vl.tasks.base.Task`."""
ROUTING: Registry = Registry("routing function", "multitask_vl.routing")
"""Routing functions by name: ``function(x_t [B, T, r], x_v [B, S, r]) -> [B, T, r]``."""
BACKBONES: Registry = Registry("backbone family", "multitask_vl.models.backbones")
"""Backbone families by name: subclasses of `multitask_vl.models.backbones.base.Backbone`."""


def load_plugins(modules: Iterable[str]) -> None:
    """Import the modules listed under ``plugins:``, whose decorators register their entries.

    Raises:
        InputError: one line for each module that cannot be imported or fails during the import, with the reason.
    """
    # `python launch/train_multitask.py` puts launch/ first on sys.path, where a script may have the name of a plugin
    sys.path.sort(key=lambda folder: os.path.abspath(folder) in LAUNCH_DIRS)
    problems = []
    for name in modules:
        try:
            file = getattr(importlib.import_module(name), "__file__", None) or ""
        except ImportError as error:
            problems.append(
                f"plugins: cannot import {name!r}: {error}. Is its folder on PYTHONPATH? Try: python -c 'import {name}'"
            )
            continue
        except InputError as error:
            problems += error.problems
            continue
        except Exception as error:  # anything that user code raises during its import is an input error
            problems.append(f"plugins: {name!r} fails on import: {type(error).__name__}: {error}")
            continue
        if os.path.abspath(os.path.dirname(file)) in LAUNCH_DIRS:
            del sys.modules[name]
            problems.append(
                f"plugins: {name!r} is the launch script {file}. Is the folder of your module on PYTHONPATH?"
            )
    if problems:
        raise InputError(problems)
