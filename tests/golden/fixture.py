"""What is a recorded file: weights, inputs, outputs and the metadata that says what they are."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

ATOL, RTOL = 5e-5, 1e-4
"""Allowed on outputs and gradients in float32 on a CPU; two framework versions agree to 2e-5."""
ROUNDING = 1e-6
"""Allowed of the largest entry beside it: entries that nearly cancel carry the rounding of those that do not, which
counts for the routed layers alone, whose gradients reach 1e5 at larger sizes."""


NORM = re.compile(r"(layers\.\d+\.\w*layer_norm|layernorm_embedding|layer\.\d+\.layer_norm|final_layer_norm)\.weight$")
BIAS = re.compile(r"(fc1\.bias|relative_attention_bias\.weight)$")


class NotUnderstood(Exception):
    """A file that this version of the project cannot be compared with, and why."""


@dataclass
class Fixture:
    """One recorded file.

    Attributes:
        meta: its description.
        tensors: everything in it, half-precision values raised to float32.
    """

    path: Path
    meta: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors whose name starts with ``prefix/``, by the rest of their names."""
        return {name[len(prefix) + 1 :]: value for name, value in self.tensors.items() if name.startswith(prefix + "/")}

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """Weights by the source's names, each stored once."""
        return self.under("weight")

    @property
    def aliases(self) -> dict[str, str]:
        """Further names of a stored tensor -> the name under which it is stored."""
        return self.meta.get("aliases", {})

    @property
    def trained_norms(self) -> str:
        """Which of the backbone's norms the source trains: ``all``, ``encoder`` or ``none``."""
        norms = [name for name in self.meta["trainable"] if NORM.search(name) and "visual_embedding" not in name]
        if any("decoder." in name for name in norms):
            return "all"
        return "encoder" if norms else "none"

    @property
    def trained_biases(self) -> bool:
        """Whether the source trains the biases of the backbone's own maps."""
        return any(BIAS.search(name) for name in self.meta["trainable"])

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument of the source's run, by its name there."""
        return self.meta.get("method_args", {}).get(name, default)


def read(path: Path) -> Fixture:
    """Open a file; NotUnderstood where it is not one of ours."""
    try:
        with safe_open(path, "pt") as file:
            described = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise NotUnderstood(f"cannot be read: {error}") from error
    text = described.get("json") or described.get("about")
    if text is None:
        raise NotUnderstood("its metadata has neither 'json' nor 'about'")
    return Fixture(
        path, json.loads(text), {k: v.float() if v.dtype == torch.float16 else v for k, v in tensors.items()}
    )


@dataclass
class Report:
    """What comparing one file gave.

    Attributes:
        worst: largest absolute difference seen.
        failures: what was out of tolerance or simply different, in words.
        compared: how many things were compared.
    """

    worst: float = 0.0
    failures: list[str] = field(default_factory=list)
    compared: int = 0

    def close(self, what: str, ours: torch.Tensor, recorded: torch.Tensor, atol: float = ATOL) -> None:
        """Compare numbers."""
        self.compared += 1
        if ours.shape != recorded.shape:
            self.failures.append(f"{what}: shape {list(ours.shape)}, recorded {list(recorded.shape)}")
            return
        difference = (ours.detach().double() - recorded.double()).abs()
        self.worst = max(self.worst, float(difference.max()) if difference.numel() else 0.0)
        size = recorded.double().abs()
        allowed = atol + RTOL * size + ROUNDING * (float(size.max()) if size.numel() else 0.0)
        if not bool((difference <= allowed).all()):
            self.failures.append(f"{what}: off by {float(difference.max()):.2g}")

    def same(self, what: str, ours: Any, recorded: Any) -> None:
        """Compare what must be equal."""
        self.compared += 1
        if ours != recorded:
            self.failures.append(f"{what}: {_short(ours)}, recorded {_short(recorded)}")


def _short(value: Any) -> str:
    if isinstance(value, set | frozenset):
        value = sorted(value)
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
