"""Reading, loading and hashing of encoder weights."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from multitask_vl.errors import InputError


def read_weights(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Read the tensors of a weights file by their names in the encoder; no code in the file is executed.

    Reads safetensors, plain state dicts (also inside ``state_dict``, also with ``module.`` before the names) and
    OpenAI's TorchScript archives.

    Args:
        path: the file.
        prefix: if any name begins with it (``visual.`` in a complete CLIP), only those tensors are returned, without
            the prefix.

    Raises:
        InputError: the file cannot be read or is not a state dict.
    """
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        elif is_torchscript(path):
            tensors = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises almost any type on files with other content
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path}: cannot be read as weights ({reason})") from error
    if isinstance(tensors, dict):
        tensors = tensors.get("state_dict", tensors)
    has_names = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not has_names or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise InputError(f"{path}: not a state dict (names -> tensors)")
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    prefixed = prefix and any(name.startswith(prefix) for name in plain)
    return {k.removeprefix(prefix): v for k, v in plain.items() if not prefixed or k.startswith(prefix)}


def load_weights(module: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load tensors into a module; only batch counters (``num_batches_tracked``) may be missing.

    Raises:
        InputError: names or shapes differ; states how many and the first.
    """
    expected = module.state_dict()
    required = {name for name in expected if not name.endswith("num_batches_tracked")}
    problems = [
        *(f"lacks {name}" for name in sorted(required - tensors.keys())),
        *(f"has {name}, which the model does not have" for name in sorted(tensors.keys() - expected.keys())),
        *(
            f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}"
            for name in sorted(required & tensors.keys())
            if tensors[name].shape != expected[name].shape
        ),
    ]
    if problems:
        raise InputError(
            f"vision.pretrained: {path} does not fit vision.model: {len(problems)} tensors differ (first: "
            f"{problems[0]}); set vision.model to the model these weights belong to"
        )
    module.load_state_dict({**expected, **tensors})


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, the format of OpenAI's CLIP weights."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the hexadecimal SHA-256 of tensors, their names and shapes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} ".encode())
        digest.update(tensors[name].contiguous().numpy())
    return digest.hexdigest()
