"""What is an encoder: a trunk with frozen weights, and what a manifest says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from multitask_vl.config.schema import ClipConfig
from multitask_vl.registry import Registry

POOLED = "pooled"
DEFAULT_KIND = "open_clip"


@dataclass(frozen=True)
class Trunk:
    """A network from pixels to cells, in eval mode, float32, without gradients.

    Attributes:
        module: normalised images [B, 3, S, S] -> cells [B, rows, columns, D]; one cell where they are pooled.
        name: what the manifest calls the model.
        tag: what the manifest calls the weights.
        sha256: of the weights file, or of the tensors where they are random.
        mean: subtracted from RGB in [0, 1].
        std: RGB is divided by this.
        layer: whose output the cells are; `POOLED` for one vector an image.
        activation: the non-linearity; None: not known.
    """

    module: nn.Module
    name: str
    tag: str
    sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layer: str
    activation: str | None


ENCODERS: Registry[Callable[[ClipConfig], Trunk]] = Registry("kind of encoder", "feature_extraction.encoders")
"""Word before the colon of `clip.model` -> what builds the trunk; a name without such a word is open_clip's."""


def load_trunk(clip: ClipConfig) -> Trunk:
    """Build the trunk of a configuration and load its weights.

    Raises:
        InputError: unknown model or weights, weights that do not fit, or a square that the trunk cannot see.
    """
    kind, colon, _ = clip.model.partition(":")
    known = colon and kind in ENCODERS.names()
    return ENCODERS.get(kind if known else DEFAULT_KIND)(clip)
