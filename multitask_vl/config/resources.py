"""Where is a file that ships with the project: `embedded:...` names in YAML become paths."""

from __future__ import annotations

from pathlib import Path

from multitask_vl.config.yaml_nodes import did_you_mean
from multitask_vl.errors import InputError

EMBEDDED = "embedded:"
WEIGHTS = Path(__file__).resolve().parents[1] / "synthetic" / "weights"


def locate(name_or_path: str) -> str:
    """The path behind ``embedded:bart``, ``embedded:clip/model.safetensors``, ...; every other string as it is.

    Raises:
        InputError: nothing of that name ships with the project.
    """
    if not name_or_path.startswith(EMBEDDED):
        return name_or_path
    rest = name_or_path.removeprefix(EMBEDDED)
    path = WEIGHTS / rest
    if rest and path.exists() and path.resolve().is_relative_to(WEIGHTS):
        return str(path)
    known = sorted(one.relative_to(WEIGHTS).as_posix() for one in WEIGHTS.rglob("*"))
    near = did_you_mean(rest, known, "there")
    raise InputError(
        f"{name_or_path}: nothing of this name in {WEIGHTS}{near} Recipes that make these files: "
        "python -m multitask_vl.synthetic.pretraining.pretrain {clip,bart}"
    )
