"""A fork server that has imported one module, whose children start without importing anything."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver

_module = None


def context_with(module: str):
    """Return a multiprocessing context whose processes are forked from a server that has imported ``module``.

    A process has one server. Where the one that runs has imported another module, it is replaced.
    """
    global _module
    if _module != module:
        forkserver._forkserver._stop()
        _module = module
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context
