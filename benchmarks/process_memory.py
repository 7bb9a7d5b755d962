"""Resident memory of this process and its resettable peak (Linux)."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> float | None:
    """Reset the peak and return the resident memory in MiB; None where Linux's /proc is absent."""
    if not (STATUS.exists() and RESET.exists()):
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory cached by the allocator would hide a part of the peak
    RESET.write_text("5")
    return _mib("VmRSS")


def peak() -> float:
    """Return the peak since `reset_peak` in MiB."""
    return _mib("VmHWM")


def peak_of(call: Callable[[], object]) -> float | None:
    """Return the peak of a call above the memory before it in MiB; None where Linux's /proc is absent."""
    before = reset_peak()
    if before is None:
        return None
    call()
    return peak() - before


def _mib(name: str) -> float:
    return int(next(line for line in STATUS.read_text().splitlines() if line.startswith(name)).split()[1]) / 1024
