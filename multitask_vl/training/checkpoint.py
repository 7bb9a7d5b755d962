"""What survives a death: checkpoints that are whole or absent, checked by their sums, without a pickle in them."""

from __future__ import annotations

import hashlib
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

PREFIX = "step-"
WRITING, REMOVING = ".writing-", ".removing-"
MOMENTS, STATE = "optimizer.safetensors", "state.json"
WEIGHTS = (f"{ADAPTER_FOLDER}/{TENSOR_FILE}", "weights.safetensors")
"""Where the weights lie in a checkpoint; the second is that of older versions."""


def save(
    folder: Path,
    step: int,
    write_adapter: Callable[[Path], None],
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    record: Mapping[str, object],
) -> Path:
    """Write the state after ``step`` steps as ``folder/step-00000123``.

    The folder appears by a rename once every byte is on the disk, so a reader sees a whole checkpoint or none. It holds
    an adapter as a run's folder does, so it is scored and exported by the same commands.

    Args:
        write_adapter: writes weights, settings and card of the model into a folder.
        parameters: trainable tensors by name.
        optimizer: its moments are stored under the parameters' names.
        record: JSON-able facts to keep with it (the configuration, ...).

    Raises:
        InputError: when the disk is full; what was saved before is untouched.
    """
    target = folder / f"{PREFIX}{step:08d}"
    writing = folder / f"{WRITING}{step:08d}"
    try:
        remove(writing)
        writing.mkdir(parents=True)
        write_adapter(writing / ADAPTER_FOLDER)
        save_file(_moments(parameters, optimizer), writing / MOMENTS)
        files = [path for path in sorted(writing.rglob("*")) if path.is_file()]
        sums = {path.relative_to(writing).as_posix(): _sha256(path) for path in files}
        state = {"step": step, "sha256": sums, **record}
        (writing / STATE).write_text(json.dumps(state, indent=1, sort_keys=True))
        for path in (writing / MOMENTS, writing / STATE, writing / ADAPTER_FOLDER, writing):
            sync(path)
        remove(target)
        writing.rename(target)
        sync(folder)
    except (OSError, SafetensorError) as error:  # the latter is no OSError, even for a full disk
        shutil.rmtree(writing, ignore_errors=True)
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot write checkpoint {target}: {why}. The last good one is untouched; make room and start the same "
            f"command with training.resume=auto"
        ) from error
    return target


def adopt(checkpoint: Path, folder: Path, step: int) -> None:
    """Copy a whole checkpoint of another run, after ``step`` steps and of any name, into ``folder`` by a rename."""
    target, writing = folder / f"{PREFIX}{step:08d}", folder / f"{WRITING}{step:08d}"
    remove(writing)
    shutil.copytree(checkpoint, writing)
    for path in sorted(writing.rglob("*")):
        sync(path)
    sync(writing)
    remove(target)
    writing.rename(target)
    sync(folder)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint, if it is there; at no instant does it look like one that is damaged."""
    if checkpoint.exists():
        removing = checkpoint.with_name(f"{REMOVING}{checkpoint.name}")
        shutil.rmtree(removing, ignore_errors=True)
        checkpoint.rename(removing)
        shutil.rmtree(removing)


def drop_old(folder: Path, keep: int, best: Collection[int]) -> None:
    """Delete all but the ``keep`` newest checkpoints and those of the steps ``best``."""
    for old in steps(folder)[:-keep]:
        if step_of(old) not in best:
            remove(old)


def drop_later(folder: Path, step: int) -> list[str]:
    """Delete checkpoints of later steps than ``step`` and what a killed process left half written or half removed.

    A run that goes on from ``step`` takes those steps again. Were it killed on the way, going on from one of the old
    ones would leave a gap in its metrics.

    Returns:
        names of the checkpoints that are gone.
    """
    for half in (*folder.glob(f"{WRITING}*"), *folder.glob(f"{REMOVING}*")):
        shutil.rmtree(half)
    later = [path for path in steps(folder) if step_of(path) > step]
    for path in later:
        remove(path)
    return [path.name for path in later]


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix(PREFIX))


def steps(folder: Path) -> list[Path]:
    """Checkpoints in ``folder``, oldest first, damaged ones included."""
    return sorted(folder.glob(f"{PREFIX}{'[0-9]' * 8}"))


def damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or None if it is whole."""
    try:
        state = json.loads((checkpoint / STATE).read_text())
        if not isinstance(state["step"], int) or not isinstance(state["sha256"], dict):
            return "state.json does not say which step and files it is about"
        if MOMENTS not in state["sha256"] or not any(name in state["sha256"] for name in WEIGHTS):
            return "state.json names no weights or no moments"
        for name, expected in state["sha256"].items():
            if _sha256(checkpoint / name) != expected:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"state.json or a file it names is missing or malformed ({type(error).__name__}: {error})"
    return None


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint, and a remark for each damaged one that was passed over."""
    remarks = []
    for checkpoint in reversed(steps(folder)):
        reason = damage(checkpoint)
        if reason is None:
            return checkpoint, remarks
        remarks.append(f"checkpoint {checkpoint} is damaged and passed over: {reason}")
    return None, remarks


def read_state(checkpoint: Path) -> dict:
    """What was recorded with a checkpoint; ``step`` among it."""
    return json.loads((checkpoint / STATE).read_text())


def load(checkpoint: Path, parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Put weights and moments back, strictly; returns the number of steps taken.

    Raises:
        InputError: if the checkpoint is damaged or holds other tensors than the model trains.
    """
    reason = damage(checkpoint)
    if reason is not None:
        raise InputError(f"checkpoint {checkpoint}: {reason}")
    state = read_state(checkpoint)
    weights = load_file(checkpoint / next(name for name in WEIGHTS if name in state["sha256"]))
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
    moments = load_file(checkpoint / MOMENTS)
    # a fused optimiser counts its steps on the device
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for name, parameter in parameters.items():
        keys = {key.removeprefix(f"{name}/"): key for key in moments if key.startswith(f"{name}/")}
        if keys:
            optimizer.state[parameter] = {
                kind: moments[key] if kind == "step" and not fused else moments[key].to(parameter.device)
                for kind, key in keys.items()
            }
    return int(state["step"])


def _moments(parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{kind}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
