"""Checks of the machine: package versions, devices, disk space and memory."""

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
from multitask_vl.run.build import make_accelerator, precision_warnings
from multitask_vl.run.checks import Check
from multitask_vl.storage.memory import available_memory

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
BYTES_PER_VALUE = 4
"""Size of a weight, a gradient and each of Adam's two moments: float32, with mixed precision as well."""


def check_packages() -> Check:
    """Compare the installed versions of packages with requirements.txt."""
    check = Check("packages")
    requirements = _requirements()
    unmet = []
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            unmet.append((requirement, "not installed"))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            unmet.append((requirement, version))
    check.detail = f"{len(requirements) - len(unmet)} of {len(requirements)} match requirements.txt"
    if unmet:
        first, version = unmet[0]
        check.problems.append(
            f"packages: {len(unmet)} do not match requirements.txt (first: {first.name}, required {first.specifier}, "
            f"found {version}). Run: pip install {shlex.join(str(requirement) for requirement, _ in unmet)}"
        )
    return check


def _requirements() -> list[Requirement]:
    """Requirements that apply here, from the checkout or from the installed package."""
    if REQUIREMENTS.is_file():
        lines = [line for line in REQUIREMENTS.read_text().splitlines() if line.strip() and not line.startswith("#")]
    else:
        lines = metadata.requires("multitask-vl") or []
    requirements = [Requirement(line) for line in lines]
    return [
        requirement
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]


def check_devices(config: Config) -> tuple[Check, Accelerator | None]:
    """Create the accelerator of a run in this process; None, with the problem in the check, if that fails."""
    check = Check("devices")
    accelerator = check.run(lambda: make_accelerator(config), _describe_accelerator)
    check.warnings += [] if accelerator is None else precision_warnings(accelerator)
    if accelerator is not None and accelerator.device.type == "cuda":
        if accelerator.mixed_precision == "bf16" and not torch.cuda.is_bf16_supported():
            check.problems.append(
                "training.mixed_precision: this GPU does not support bf16; set training.mixed_precision=fp16"
            )
        if torch.cuda.device_count() > accelerator.num_processes:
            check.warnings.append(
                f"{torch.cuda.device_count()} GPUs are available; to use all: accelerate launch --multi_gpu "
                f"--num_processes {torch.cuda.device_count()} launch/train_multitask.py --config CONFIG"
            )
    return check, accelerator


def _describe_accelerator(accelerator: Accelerator) -> str:
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    return (
        f"{accelerator.num_processes} x {accelerator.device.type}, {precision}, torch {torch.__version__}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )


def check_disk(config: Config, trainable: int, tables: Iterable[Dataset]) -> Check:
    """Check that checkpoints fit on the disk: trained tensors and two moments, for all that are kept and one more."""
    kept = config.training.max_checkpoints if config.training.checkpoint_steps else 1
    needed = 3 * BYTES_PER_VALUE * trainable * (kept + 1)
    folder = nearest_existing(config.run_dir)
    free = shutil.disk_usage(folder).free
    cached = sum(Path(cache["filename"]).stat().st_size for table in tables for cache in table.cache_files)
    check = Check("disk")
    check.detail = (
        f"checkpoints {format_bytes(needed)}, {format_bytes(free)} free; example cache {format_bytes(cached)}"
    )
    if needed > free:
        check.problems.append(
            f"run_dir: checkpoints need {format_bytes(needed)}, but {folder} has {format_bytes(free)} free. Free some "
            "space, keep fewer checkpoints (training.max_checkpoints=1), or choose another disk (run_dir=PATH)"
        )
    return check


def check_memory(trainable: int, total: int, device: torch.device) -> Check:
    """Check that weights, gradients and moments fit in memory; activations of a batch need more."""
    needed = BYTES_PER_VALUE * (total + 3 * trainable)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    check = Check("memory")
    check.detail = f"at least {format_bytes(needed)} without batches, {format_bytes(free)} free"
    if needed > free:
        check.problems.append(
            f"memory: weights, gradients and optimizer need {format_bytes(needed)}, but {format_bytes(free)} are free "
            f"on {device.type}. Stop other programs, or choose a smaller backbone or a method that trains less"
        )
    return check


def nearest_existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())


def write_problems(key: str, folder: Path) -> list[str]:
    """Return the problem of a folder that cannot be written. It tries, because permissions do not show read-only disks.

    Args:
        key: configuration key of the folder.
        folder: the folder, which may not exist yet.
    """
    existing = nearest_existing(folder.expanduser())
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=existing):
            return []
    except OSError as error:
        return [f"{key}: cannot write in {existing}: {error.strerror}. Free some space, or choose another: {key}=PATH"]


def format_bytes(count: float) -> str:
    """Return a number of bytes in B, kB, MB or GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
