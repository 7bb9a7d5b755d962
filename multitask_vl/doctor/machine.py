"""Is the machine up to a run: versions of packages, devices, room on the disk and in memory."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset
from packaging.requirements import Requirement

from multitask_vl.config.schema import Config
from multitask_vl.run.build import make_accelerator, remarks_on
from multitask_vl.run.checks import Finding

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
WEIGHT = 4
"""Bytes of a weight, of a gradient and of each of Adam's two moments: float32, under mixed precision as well."""


def packages() -> Finding:
    """Versions of the installed packages against requirements.txt."""
    finding = Finding("packages")
    wanted = _requirements()
    wrong = []
    for one in wanted:
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            wrong.append((one, "not installed"))
            continue
        if not one.specifier.contains(version, prereleases=True):
            wrong.append((one, version))
    finding.found = f"{len(wanted) - len(wrong)} of {len(wanted)} as requirements.txt asks"
    if wrong:
        first, version = wrong[0]
        finding.problems.append(
            f"packages: {len(wrong)} are not as requirements.txt asks (first: {first.name}, wanted {first.specifier}, "
            f"found {version}). Run: pip install {shlex.join(str(one) for one, _ in wrong)}"
        )
    return finding


def _requirements() -> list[Requirement]:
    if REQUIREMENTS.is_file():
        lines = [line for line in REQUIREMENTS.read_text().splitlines() if line.strip() and not line.startswith("#")]
    else:
        lines = metadata.requires("multitask-vl") or []
    found = [Requirement(line) for line in lines]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def devices(config: Config) -> tuple[Finding, Accelerator | None]:
    """The accelerator that a run on this process would get, None where it cannot be made."""
    finding = Finding("devices")
    accelerator = finding.look(lambda: make_accelerator(config), _told)
    finding.remarks += [] if accelerator is None else remarks_on(accelerator)
    if accelerator is not None and accelerator.device.type == "cuda":
        if accelerator.mixed_precision == "bf16" and not torch.cuda.is_bf16_supported():
            finding.problems.append("training.mixed_precision: this GPU has no bf16; set training.mixed_precision=fp16")
        if torch.cuda.device_count() > accelerator.num_processes:
            finding.remarks.append(
                f"{torch.cuda.device_count()} GPUs are here; to use all: accelerate launch --multi_gpu --num_processes "
                f"{torch.cuda.device_count()} launch/train_multitask.py --config CONFIG"
            )
    return finding, accelerator


def _told(accelerator: Accelerator) -> str:
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    return (
        f"{accelerator.num_processes} x {accelerator.device.type}, {precision}, torch {torch.__version__}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )


def disk(config: Config, trainable: int, tables: Iterable[Dataset]) -> Finding:
    """Room for checkpoints (a trained tensor and its two moments, ``keep_checkpoints`` and one being written)."""
    kept = config.training.keep_checkpoints if config.training.checkpoint_every else 1
    needed = 3 * WEIGHT * trainable * (kept + 1)
    place = existing(config.run_dir)
    free = shutil.disk_usage(place).free
    cached = sum(Path(one["filename"]).stat().st_size for table in tables for one in table.cache_files)
    finding = Finding("disk")
    finding.found = f"checkpoints {size(needed)}, {size(free)} free; examples' cache {size(cached)}"
    if needed > free:
        finding.problems.append(
            f"run_dir: checkpoints need {size(needed)}, and {size(free)} are free in {place}; make room, keep fewer "
            "(training.keep_checkpoints=1), or choose another disk (run_dir=PATH)"
        )
    return finding


def memory(trainable: int, total: int, device: torch.device) -> Finding:
    """Room for weights, gradients and moments; what a batch takes comes on top, and the step that is tried is small."""
    needed = WEIGHT * (total + 3 * trainable)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    finding = Finding("memory")
    finding.found = f"at least {size(needed)} without batches, {size(free)} free"
    if needed > free:
        finding.problems.append(
            f"memory: {size(needed)} are needed before the first batch, and {size(free)} are free on {device.type}. "
            "End other programs, or choose a smaller backbone or a method that trains less"
        )
    return finding


def available_memory() -> int:
    """Bytes that a program may still take: of the machine, or of the control group it is in."""
    limits = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    about = Path("/proc/meminfo")
    if about.is_file():
        fields = dict(line.split(":", 1) for line in about.read_text().splitlines() if ":" in line)
        limits = [int(fields["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in fields else limits
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (most := (group / "memory.max").read_text().strip()).isdigit():
        limits.append(int(most) - int((group / "memory.current").read_text()))
    return max(0, min(limits))


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(one for one in (folder.resolve(), *folder.resolve().parents) if one.exists())


def writable(key: str, folder: Path) -> list[str]:
    """The problem with a folder in which a run will write; tried, since permissions do not tell of a read-only disk."""
    place = existing(folder.expanduser())
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place):
            return []
    except OSError as error:
        return [f"{key}: cannot write in {place}: {error.strerror}. Make room, or choose another place: {key}=PATH"]


def size(count: int) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
