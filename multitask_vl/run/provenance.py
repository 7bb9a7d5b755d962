"""What made this run: code, packages, machine, data, what was trained so far; kept as record.json in its folder."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

import multitask_vl
from multitask_vl.data.schedule import Draw, Schedule
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.storage.atomic import write_whole

NAME = "record.json"
ROOT = Path(multitask_vl.__file__).resolve().parents[1]


class Mixture:
    """Steps and examples that each task was trained on.

    Args:
        tasks: in the order of reports.
        before: what an earlier part of the run counted.
    """

    def __init__(self, tasks: Sequence[str], before: Mapping[str, Mapping[str, int]] = {}):
        self.counts = {task: {"steps": 0, "examples": 0} | dict(before.get(task, {})) for task in tasks}

    @classmethod
    def so_far(cls, schedule: Schedule, state: Mapping[str, Any], done: int) -> Mixture:
        """That of the first ``done`` steps: as kept with a checkpoint, or as the schedule had them."""
        mixture = cls(schedule.tasks, state.get("mixture", {}))
        for step in range(0 if "mixture" in state else done):
            mixture.add(schedule.draw(step))
        return mixture

    def add(self, draw: Draw) -> None:
        """A step was taken."""
        self.counts[draw.task]["steps"] += 1
        self.counts[draw.task]["examples"] += len(draw.rows)


class Record:
    """``record.json`` of a run folder. Every process makes one, the main process writes it.

    A run that goes on from a checkpoint keeps the start it had and adds a line to ``resumes``; what made the part that
    runs now stands at the top. No environment variable is kept.

    Args:
        run_dir: the run folder.
        accelerator: says which processes and devices there are.
        facts: what the caller knows: seed, data, features, ...
        done: steps taken before.
        total: steps in all.
    """

    def __init__(self, run_dir: Path, accelerator: Accelerator, facts: Mapping[str, Any], done: int, total: int):
        self.path, self.active = run_dir / NAME, accelerator.is_main_process
        devices = gather_object([device_name(accelerator.device)])
        if not self.active:
            return
        earlier = _read(self.path)
        now = _now()
        begun = {"at": now, "from_step": done, "command": command_line()}
        self.content = {
            "started": earlier.get("started", now),
            "ended": None,
            "resumes": [*earlier.get("resumes", []), begun] if earlier else [],
            "command": command_line(),
            "code": code(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "devices": devices,
            "processes": accelerator.num_processes,
            "mixed_precision": accelerator.mixed_precision,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "packages": packages(),
            **facts,
            "steps": {"done": done, "total": total},
            "mixture": earlier.get("mixture", {}),
        }
        self._write()

    def update(self, done: int, mixture: Mixture, ended: bool = False) -> None:
        """How far the run has come, and what it was trained on."""
        if self.active:
            self.content["steps"]["done"] = done
            self.content["mixture"] = mixture.counts
            self.content["ended"] = _now() if ended else None
            self._write()

    def _write(self) -> None:
        write_whole(self.path, json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")


def code() -> dict[str, Any]:
    """Version of the package and, in a checkout, its commit and which tracked files differ from it."""
    found: dict[str, Any] = {"version": multitask_vl.__version__, "commit": None, "dirty": None}
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return found  # installed, perhaps inside somebody else's repository
    changed = _git("status", "--porcelain", "--untracked-files=no") or ""
    files = sorted(line[3:] for line in changed.splitlines())
    difference = hashlib.sha256((_git("diff", "HEAD") or "").encode()).hexdigest() if files else None
    return found | {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(files),
        "changed_files": files,
        "difference_sha256": difference,
    }


def revision() -> str:
    """The code in a few words."""
    found = code()
    commit = f", commit {found['commit'][:12]}" if found["commit"] else ""
    return f"{found['version']}{commit}{' with local changes' if found['dirty'] else ''}"


def packages() -> dict[str, str]:
    """Every installed package and its version."""
    found = {one.metadata["Name"]: one.version for one in metadata.distributions() if one.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def device_name(device: torch.device) -> str:
    """What computes: the GPU's name, or the processor's and how many cores of it this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores"


def features_of(store: FeatureStore) -> dict[str, Any]:
    """Which features a run read: files and sizes, images, and the manifest of how they were made."""
    files = {str(path): path.stat().st_size for path in store.paths}
    return {"files": files, "images": len(store), "manifest": store.manifest.model_dump(mode="json")}


def command_line() -> list[str]:
    """The words that started this process, as Python was given them."""
    return [Path(sys.executable).name, *sys.orig_argv[1:]]


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    if about.is_file():
        for line in about.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
