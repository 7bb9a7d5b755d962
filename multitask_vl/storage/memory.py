"""Available and peak memory of this process."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MIB, GIB = 2**20, 2**30
CGROUPS = Path("/sys/fs/cgroup")
PROCESS_CGROUPS = Path("/proc/self/cgroup")
"""Control groups of this process: one line ``ID:CONTROLLERS:PATH`` each, without controllers in version 2."""
MEMINFO = Path("/proc/meminfo")


def available_memory() -> int:
    """Return the bytes that this process may still allocate: of the machine, or of a smaller limit of its job."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if MEMINFO.is_file():
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        free = int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else free
    return max(0, min([free, *_available_in_cgroups()]))


def _available_in_cgroups() -> Iterator[int]:
    """Bytes available under each limit of this process's control groups and their parents, in version 1 or 2."""
    for line in PROCESS_CGROUPS.read_text().splitlines() if PROCESS_CGROUPS.is_file() else ():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            folder, limit, usage, prefix = CGROUPS, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            folder, limit, usage = CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            prefix = "total_"
        else:
            continue
        folder /= group.strip("/")
        for one in (folder, *folder.parents):
            exists = one.is_relative_to(CGROUPS) and (one / limit).is_file() and (one / usage).is_file()
            if exists and (limit_bytes := (one / limit).read_text().strip()) != "max":
                used = int((one / usage).read_text())
                yield int(limit_bytes) - used + _reclaimable(one / "memory.stat", prefix)


def _reclaimable(stat: Path, prefix: str) -> int:
    """Bytes that count as used although the kernel frees them on demand: its cache of files."""
    fields = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
    return sum(int(fields.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))


def peak_memory(device: torch.device | None = None) -> int:
    """Return the peak in bytes since the start: allocated by torch on a CUDA device, otherwise resident."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_usage(device: torch.device) -> dict[str, int]:
    """Return memory in MiB: ``rss_mib``, resident now, and on a CUDA device ``cuda_peak_mib``."""
    import psutil

    usage = {"rss_mib": psutil.Process().memory_info().rss // MIB}
    if device.type == "cuda":
        usage["cuda_peak_mib"] = peak_memory(device) // MIB
    return usage
