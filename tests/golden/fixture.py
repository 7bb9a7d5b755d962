"""Recorded files: weights, inputs, outputs, and the metadata that describes them."""

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
"""Tolerance of outputs and gradients in float32 on a CPU; two framework versions agree to 2e-5."""
ROUNDING = 1e-6
"""Tolerance relative to the largest entry of a tensor: entries that nearly cancel carry the rounding error of those
that do not. It matters only for the routed layers, whose gradients reach 1e5 at larger sizes."""

NORM = re.compile(r"(layers\.\d+\.\w*layer_norm|layernorm_embedding|layer\.\d+\.layer_norm|final_layer_norm)\.weight$")
BIAS = re.compile(r"(fc1\.bias|relative_attention_bias\.weight)$")


class UnsupportedFile(Exception):
    """A file that this version of the project cannot be compared with, and the reason."""


@dataclass
class Fixture:
    """One recorded file.

    Attributes:
        path: where it is.
        meta: its metadata.
        tensors: all its tensors, with half precision converted to float32.
    """

    path: Path
    meta: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors whose name starts with ``prefix/``, keyed by the rest of their names."""
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
        """Norms of the backbone that the source trains: ``all``, ``encoder`` or ``none``."""
        norms = [name for name in self.meta["trainable"] if NORM.search(name) and "visual_embedding" not in name]
        if any("decoder." in name for name in norms):
            return "all"
        return "encoder" if norms else "none"

    @property
    def trained_biases(self) -> bool:
        """Whether the source trains the biases of the backbone's linear layers."""
        return any(BIAS.search(name) for name in self.meta["trainable"])

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument of the source's run, by its name there."""
        return self.meta.get("method_args", {}).get(name, default)


def read(path: Path) -> Fixture:
    """Open a recorded file.

    Raises:
        UnsupportedFile: a file that cannot be read or has other metadata.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise UnsupportedFile(f"cannot be read: {error}") from error
    text = metadata.get("json") or metadata.get("about")
    if text is None:
        raise UnsupportedFile("its metadata has neither 'json' nor 'about'")
    return Fixture(
        path, json.loads(text), {k: v.float() if v.dtype == torch.float16 else v for k, v in tensors.items()}
    )


@dataclass
class Report:
    """Result of comparing one file.

    Attributes:
        worst: largest absolute difference.
        failures: descriptions of what differs beyond the tolerance.
        compared: number of comparisons.
        ignored: recorded outputs that this version does not know.
    """

    worst: float = 0.0
    failures: list[str] = field(default_factory=list)
    compared: int = 0
    ignored: list[str] = field(default_factory=list)

    def close(self, name: str, ours: torch.Tensor, recorded: torch.Tensor, atol: float = ATOL) -> None:
        """Compare numbers within the tolerance."""
        self.compared += 1
        if ours.shape != recorded.shape:
            self.failures.append(f"{name}: shape {list(ours.shape)}, recorded {list(recorded.shape)}")
            return
        difference = (ours.detach().double() - recorded.double()).abs()
        self.worst = max(self.worst, float(difference.max()) if difference.numel() else 0.0)
        size = recorded.double().abs()
        allowed = atol + RTOL * size + ROUNDING * (float(size.max()) if size.numel() else 0.0)
        if not bool((difference <= allowed).all()):
            self.failures.append(f"{name}: off by {float(difference.max()):.2g}")

    def same(self, name: str, ours: Any, recorded: Any) -> None:
        """Compare values that must be equal."""
        self.compared += 1
        if ours != recorded:
            self.failures.append(f"{name}: {_short(ours)}, recorded {_short(recorded)}")


def _short(value: Any) -> str:
    if isinstance(value, set | frozenset):
        value = sorted(value)
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
