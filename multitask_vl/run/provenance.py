"""Provenance of a run, kept as record.json: code, packages, machine, data, sampled mixture."""

from __future__ import annotations

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
from multitask_vl.data.schedule import Schedule, StepPlan
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.storage.atomic import atomic_write_json
from multitask_vl.storage.hashing import text_sha256

FILENAME = "record.json"
REPOSITORY = Path(multitask_vl.__file__).resolve().parents[1]


class SampledMixture:
    """Steps and examples that each task was trained on.

    Args:
        tasks: in the order of reports.
        counts: of an earlier part of the run.
    """

    def __init__(self, tasks: Sequence[str], counts: Mapping[str, Mapping[str, int]] = {}):
        self.counts = {task: {"steps": 0, "examples": 0} | dict(counts.get(task, {})) for task in tasks}

    @classmethod
    def from_checkpoint(cls, schedule: Schedule, record: Mapping[str, Any], step: int) -> SampledMixture:
        """Restore the mixture of the first ``step`` steps: from a checkpoint's record, or else from the schedule."""
        mixture = cls(schedule.tasks, record.get("mixture", {}))
        for earlier in range(0 if "mixture" in record else step):
            mixture.add(schedule.plan(earlier))
        return mixture

    def add(self, plan: StepPlan) -> None:
        """Count a completed step."""
        self.counts[plan.task]["steps"] += 1
        self.counts[plan.task]["examples"] += len(plan.rows)


class RunRecord:
    """``record.json`` of a run folder. Created on every process, written by the main process.

    The top level describes the current part of the run. A resumed run keeps the start of the first part and adds an
    entry to ``resumes``. Environment variables are not recorded.

    Args:
        run_dir: the run folder.
        accelerator: gives processes and devices.
        facts: further entries: seed, data, features, ...
        done: number of completed steps.
        total: number of steps of the run.
    """

    def __init__(self, run_dir: Path, accelerator: Accelerator, facts: Mapping[str, Any], done: int, total: int):
        self.path, self.active = run_dir / FILENAME, accelerator.is_main_process
        devices = gather_object([device_name(accelerator.device)])
        if not self.active:
            return
        earlier, now = _read(self.path), _now()
        resume = {"at": now, "from_step": done, "command": command_line()}
        self.content = {
            "started": earlier.get("started", now),
            "ended": None,
            "resumes": [*earlier.get("resumes", []), resume] if earlier else [],
            "command": command_line(),
            "code": git_state(),
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

    def update(self, done: int, mixture: SampledMixture, ended: bool = False) -> None:
        """Record the number of completed steps and what the run was trained on."""
        if self.active:
            self.content["steps"]["done"] = done
            self.content["mixture"] = mixture.counts
            self.content["ended"] = _now() if ended else None
            self._write()

    def _write(self) -> None:
        atomic_write_json(self.path, self.content)


def git_state() -> dict[str, Any]:
    """Return the version of the package and, in a git checkout, its commit and the tracked files with changes."""
    state: dict[str, Any] = {"version": multitask_vl.__version__, "commit": None, "dirty": None}
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != REPOSITORY:
        return state  # an installed package, perhaps inside another repository
    changed = _git("status", "--porcelain", "--untracked-files=no") or ""
    files = sorted(line[3:] for line in changed.splitlines())
    return state | {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(files),
        "changed_files": files,
        "difference_sha256": text_sha256(_git("diff", "HEAD") or "") if files else None,
    }


def code_version() -> str:
    """Return version and commit of the code in one line."""
    state = git_state()
    commit = f", commit {state['commit'][:12]}" if state["commit"] else ""
    return f"{state['version']}{commit}{' with local changes' if state['dirty'] else ''}"


def packages() -> dict[str, str]:
    """Return every installed package and its version."""
    found = {one.metadata["Name"]: one.version for one in metadata.distributions() if one.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or that of the processor and the number of cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores"


def features_of(store: FeatureStore) -> dict[str, Any]:
    """Return which features a run reads: files and sizes, number of images, and the manifest."""
    files = {str(path): path.stat().st_size for path in store.paths}
    return {"files": files, "images": len(store), "manifest": store.manifest.model_dump(mode="json")}


def command_line() -> list[str]:
    """Return the command that started this process."""
    return [Path(sys.executable).name, *sys.orig_argv[1:]]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
