"""Vision encoder with frozen weights and the facts that its manifest records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from multitask_vl.config.schema import VisionConfig
from multitask_vl.registry import Registry

POOLED = "pooled"
DEFAULT_LIBRARY = "open_clip"


@dataclass(frozen=True)
class VisionEncoder:
    """Frozen network from normalized images to grid features, in eval mode, float32.

    Attributes:
        module: normalized images [B, 3, S, S] to features [B, rows, columns, D]; a 1 x 1 grid if pooled.
        name: model name in the manifest.
        tag: name of the weights in the manifest.
        sha256: of the weights file, or of the tensors if they are random.
        mean: subtracted from RGB in [0, 1].
        std: RGB is divided by this.
        layer: layer whose output the features are; `POOLED` for one vector per image.
        activation: activation function; None: unknown.
    """

    module: nn.Module
    name: str
    tag: str
    sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layer: str
    activation: str | None


ENCODERS: Registry[Callable[[VisionConfig], VisionEncoder]] = Registry("encoder library", "feature_extraction.encoders")
"""Prefix of `vision.model` before the colon (default: `DEFAULT_LIBRARY`) -> function that builds the encoder."""


def load_vision_encoder(vision: VisionConfig) -> VisionEncoder:
    """Build the vision encoder of a configuration and load its weights.

    Raises:
        InputError: unknown model or weights, weights that do not fit, or an image size that the model does not accept.
    """
    library, colon, _ = vision.model.partition(":")
    known = colon and library in ENCODERS.names()
    return ENCODERS.get(library if known else DEFAULT_LIBRARY)(vision)
