"""Atomic, checksummed checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import Parameter

from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.adapter_io import ADAPTER_FOLDER, TENSOR_FILE
from multitask_vl.storage.atomic import sync
from multitask_vl.storage.hashing import file_sha256

STEP_PREFIX = "step-"
WRITING, REMOVING = ".writing-", ".removing-"
OPTIMIZER_FILE, STATE_FILE = "optimizer.safetensors", "state.json"
WEIGHT_FILES = (f"{ADAPTER_FOLDER}/{TENSOR_FILE}", "weights.safetensors")
"""Where a checkpoint holds its weights; the second place is that of older versions."""


def path_of(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of ``step``: ``folder/step-00000123``."""
    return folder / f"{STEP_PREFIX}{step:08d}"


def save(
    folder: Path,
    step: int,
    write_adapter: Callable[[Path], None],
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    record: Mapping[str, object],
) -> Path:
    """Write the checkpoint of ``step`` completed steps and return its path.

    The checkpoint is written to a temporary folder, synced and renamed, so readers see a complete one or none. Like a
    run folder it contains an adapter, so the same commands evaluate and export it.

    Args:
        write_adapter: writes weights, settings and card of the model into a folder.
        parameters: trainable tensors by name.
        optimizer: its moments are stored under the names of the parameters.
        record: JSON-serializable entries of state.json, such as the configuration.

    Raises:
        InputError: the disk is full or cannot be written. Earlier checkpoints are untouched.
    """
    target, writing = path_of(folder, step), folder / f"{WRITING}{step:08d}"
    try:
        remove(writing)
        writing.mkdir(parents=True)
        write_adapter(writing / ADAPTER_FOLDER)
        save_file(_moments(parameters, optimizer), writing / OPTIMIZER_FILE)
        files = [path for path in sorted(writing.rglob("*")) if path.is_file()]
        checksums = {path.relative_to(writing).as_posix(): file_sha256(path) for path in files}
        state = {"step": step, "sha256": checksums, **record}
        (writing / STATE_FILE).write_text(json.dumps(state, indent=1, sort_keys=True))
        for path in (writing / OPTIMIZER_FILE, writing / STATE_FILE, writing / ADAPTER_FOLDER, writing):
            sync(path)
        remove(target)
        writing.rename(target)
        sync(folder)
    except (OSError, SafetensorError) as error:  # safetensors does not raise OSError, even for a full disk
        shutil.rmtree(writing, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot write checkpoint {target}: {reason}. Earlier checkpoints are untouched; free disk space and run "
            f"the same command with training.resume=auto"
        ) from error
    return target


def import_from(checkpoint: Path, folder: Path, step: int) -> None:
    """Copy a valid checkpoint of another run into ``folder`` as that of ``step``, atomically."""
    target, writing = path_of(folder, step), folder / f"{WRITING}{step:08d}"
    remove(writing)
    shutil.copytree(checkpoint, writing)
    for path in sorted(writing.rglob("*")):
        sync(path)
    sync(writing)
    remove(target)
    writing.rename(target)
    sync(folder)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint if it exists. It is renamed first, so that an interruption never leaves a corrupt one."""
    if checkpoint.exists():
        removing = checkpoint.with_name(f"{REMOVING}{checkpoint.name}")
        shutil.rmtree(removing, ignore_errors=True)
        checkpoint.rename(removing)
        shutil.rmtree(removing)


def prune(folder: Path, keep: int, best: Collection[int]) -> None:
    """Delete all but the ``keep`` latest checkpoints and those of the steps ``best``."""
    for old in steps(folder)[:-keep]:
        if step_of(old) not in best:
            remove(old)


def remove_after(folder: Path, step: int) -> list[str]:
    """Delete checkpoints of later steps than ``step``, and the temporary folders of an interrupted process.

    A run that resumes from ``step`` trains the later steps again. If an old checkpoint of them stayed, resuming from
    it after another interruption would leave a gap in the metrics.

    Returns:
        names of the deleted checkpoints.
    """
    for temporary in (*folder.glob(f"{WRITING}*"), *folder.glob(f"{REMOVING}*")):
        shutil.rmtree(temporary)
    later = [path for path in steps(folder) if step_of(path) > step]
    for path in later:
        remove(path)
    return [path.name for path in later]


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix(STEP_PREFIX))


def steps(folder: Path) -> list[Path]:
    """Return the checkpoints in ``folder``, oldest first, corrupt ones included."""
    return sorted(folder.glob(f"{STEP_PREFIX}{'[0-9]' * 8}"))


def corruption(checkpoint: Path) -> str | None:
    """Return why a checkpoint cannot be used, None if it is valid."""
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text())
        if not isinstance(state["step"], int) or not isinstance(state["sha256"], dict):
            return "state.json does not contain the step and the checksums of the files"
        if OPTIMIZER_FILE not in state["sha256"] or not any(name in state["sha256"] for name in WEIGHT_FILES):
            return "state.json does not list weights and optimizer moments"
        for name, expected in state["sha256"].items():
            if file_sha256(checkpoint / name) != expected:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"state.json or a file that it lists is missing or malformed ({type(error).__name__}: {error})"
    return None


def latest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the latest valid checkpoint, and a warning for each corrupt one that was skipped."""
    warnings = []
    for checkpoint in reversed(steps(folder)):
        reason = corruption(checkpoint)
        if reason is None:
            return checkpoint, warnings
        warnings.append(f"checkpoint {checkpoint} is corrupt and skipped: {reason}")
    return None, warnings


def read_state(checkpoint: Path) -> dict:
    """Return the content of a checkpoint's state.json, which includes ``step``."""
    return json.loads((checkpoint / STATE_FILE).read_text())


def load(checkpoint: Path, parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Restore weights and moments, strictly; returns the number of completed steps.

    Raises:
        InputError: the checkpoint is corrupt or holds other tensors than the model trains.
    """
    reason = corruption(checkpoint)
    if reason is not None:
        raise InputError(f"checkpoint {checkpoint}: {reason}")
    state = read_state(checkpoint)
    weights = load_file(checkpoint / next(name for name in WEIGHT_FILES if name in state["sha256"]))
    problems = [f"checkpoint {checkpoint}: tensor {name} is missing" for name in parameters.keys() - weights.keys()]
    problems += [
        f"checkpoint {checkpoint}: tensor {name} is not trained here" for name in weights.keys() - parameters.keys()
    ]
    problems += [
        f"checkpoint {checkpoint}: tensor {name} has shape {tuple(weights[name].shape)}, the model's is "
        f"{tuple(parameters[name].shape)}"
        for name in parameters.keys() & weights.keys()
        if weights[name].shape != parameters[name].shape
    ]
    if problems:
        raise InputError(sorted(problems))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    _load_moments(load_file(checkpoint / OPTIMIZER_FILE), parameters, optimizer)
    return int(state["step"])


def _moments(parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{kind}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def _load_moments(
    moments: Mapping[str, torch.Tensor], parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer
) -> None:
    # a fused optimizer counts its steps on the device
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for name, parameter in parameters.items():
        keys = {key.removeprefix(f"{name}/"): key for key in moments if key.startswith(f"{name}/")}
        if keys:
            optimizer.state[parameter] = {
                kind: moments[key] if kind == "step" and not fused else moments[key].to(parameter.device)
                for kind, key in keys.items()
            }
