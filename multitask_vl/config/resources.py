"""Files that ship with the project: configurations, launch scripts and the weights behind `bundled:` names."""

from __future__ import annotations

from pathlib import Path

from multitask_vl.config.yaml_nodes import did_you_mean
from multitask_vl.errors import InputError

BUNDLED = "bundled:"
_PACKAGE = Path(__file__).resolve().parents[1]
WEIGHTS_DIR = _PACKAGE / "synthetic" / "weights"
RESOURCES_DIR = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent
"""Folder of `launch/` and `configs/`: the package itself when installed from a wheel, otherwise the checkout."""
CONFIGS_DIR = RESOURCES_DIR / "configs"


def locate(name_or_path: str) -> str:
    """Path of a bundled file or folder, such as ``bundled:bart`` or ``bundled:clip/model.safetensors``.

    Any other string is returned unchanged.

    Raises:
        InputError: the project ships nothing of this name.
    """
    if not name_or_path.startswith(BUNDLED):
        return name_or_path
    name = name_or_path.removeprefix(BUNDLED)
    path = WEIGHTS_DIR / name
    if name and path.exists() and path.resolve().is_relative_to(WEIGHTS_DIR):
        return str(path)
    known = sorted(entry.relative_to(WEIGHTS_DIR).as_posix() for entry in WEIGHTS_DIR.rglob("*"))
    raise InputError(
        f"{name_or_path}: not found in {WEIGHTS_DIR}{did_you_mean(name, known, 'available')} To rebuild these files: "
        "python -m multitask_vl.synthetic.pretraining {clip,bart}"
    )
