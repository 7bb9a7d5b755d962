"""Which numbers are in a weights file, do they fit the trunk, and how are they told from others?"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from multitask_vl.errors import InputError


def read_weights(path: Path, tower: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a weights file, by their names in the trunk.

    Takes safetensors, plain state dicts (also inside `state_dict`, also with `module.` before the names) and OpenAI's
    TorchScript archives. Nothing in the file is executed.

    Args:
        path: the file.
        tower: where the names of a whole model begin with this (``visual.``), only these are taken, without it.
    """
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        elif is_torchscript(path):
            tensors = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on files that hold something else torch's reader raises nearly every type there is
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path}: cannot be read as weights ({first})") from error
    if isinstance(tensors, dict):
        tensors = tensors.get("state_dict", tensors)
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not named or not all(isinstance(one, torch.Tensor) for one in tensors.values()):
        raise InputError(f"{path}: not a state dict (names -> tensors)")
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    whole = tower and any(name.startswith(tower) for name in plain)
    return {k.removeprefix(tower): v for k, v in plain.items() if not whole or k.startswith(tower)}


def load_into(module: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Put tensors into a module.

    Raises:
        InputError: names or shapes differ; says how many and the first. Counters of batches may be absent.
    """
    wanted = module.state_dict()
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}
    problems = [
        *(f"lacks {name}" for name in sorted(needed - tensors.keys())),
        *(f"has {name}, which the model has not" for name in sorted(tensors.keys() - wanted.keys())),
        *(
            f"{name} is {tuple(tensors[name].shape)}, not {tuple(wanted[name].shape)}"
            for name in sorted(needed & tensors.keys())
            if tensors[name].shape != wanted[name].shape
        ),
    ]
    if problems:
        raise InputError(
            f"clip.pretrained: {path} does not fit clip.model: {len(problems)} tensors differ (first: it "
            f"{problems[0]}); name the model these weights belong to"
        )
    module.load_state_dict({**wanted, **tensors})


def is_torchscript(path: Path) -> bool:
    """Is a file a TorchScript archive, as OpenAI published its weights?"""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hexadecimal SHA-256 of tensors, their names and shapes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} ".encode())
        digest.update(tensors[name].contiguous().numpy())
    return digest.hexdigest()
