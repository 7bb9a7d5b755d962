"""How does an image become a grid of features: CLIP's ResNet, stopped before its attention pool."""

from __future__ import annotations

import numpy as np
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from feature_extraction.pixels import CONVENTION, INTERPOLATION
from feature_extraction.weights import load_trunk
from multitask_vl.config.schema import ClipConfig
from multitask_vl.data.manifest import Manifest
from multitask_vl.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYER = "layer4"
STRIDE = 32


class GridTrunk(nn.Module):
    """Pixels -> grid cells, in eval mode for good.

    Args:
        visual: an open_clip ModifiedResNet; its attention pool is never called.
        mean: subtracted from RGB in [0, 1].
        std: RGB is divided by this.
    """

    def __init__(self, visual: ModifiedResNet, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.visual = visual.eval().to(memory_format=torch.channels_last)
        # Not buffers: `to(bfloat16)` would round them, and pixels are normalised in float32 at every precision.
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Output of `layer4` (after its last ReLU, so >= 0), cells row by row.

        Args:
            pixels: RGB uint8 [B, 3, S, S], S a multiple of 32.

        Returns:
            [B, (S / 32) ** 2, D] in the trunk's own dtype.
        """
        weight = self.visual.conv1.weight
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        images = ((pixels.float() / 255 - mean) / std).to(weight.dtype, memory_format=torch.channels_last)
        hidden = self.visual.stem(images)
        for layer in (self.visual.layer1, self.visual.layer2, self.visual.layer3, self.visual.layer4):
            hidden = layer(hidden)
        return hidden.permute(0, 2, 3, 1).flatten(1, 2)


class GridEncoder:
    """A trunk on its device, with the manifest of what it makes.

    Attributes:
        manifest: how the features are made.
        device: where the trunk computes.
    """

    def __init__(self, trunk: GridTrunk, manifest: Manifest, device: torch.device):
        self.manifest = manifest
        self.device = device
        self._trunk = trunk

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """Features of images, uint8 [B, 3, S, S] -> float16 [B, T, D]; what float16 cannot hold becomes infinite."""
        return self._trunk(pixels.to(self.device, non_blocking=True)).half().cpu().numpy()


def load_encoder(clip: ClipConfig, precision: str = "fp32", device: torch.device | str | None = None) -> GridEncoder:
    """The encoder of a configuration.

    Args:
        clip: which trunk, which weights, which square.
        precision: arithmetic of the trunk: fp32, bf16 or fp16.
        device: None takes the GPU if there is one.

    Raises:
        InputError: the model or its weights are unknown or do not fit, or the square cannot be cut into cells.
    """
    if clip.image_size % STRIDE:
        near = max(STRIDE, round(clip.image_size / STRIDE) * STRIDE)
        raise InputError(
            f"clip.image_size: {clip.image_size} is not a multiple of {STRIDE}, so the right and lower border would be "
            f"lost; try {near}"
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    trunk = load_trunk(clip)
    grid = GridTrunk(trunk.visual, trunk.mean, trunk.std).to(device, DTYPES[precision])
    with torch.inference_mode():
        probe = grid(torch.zeros(1, 3, clip.image_size, clip.image_size, dtype=torch.uint8, device=device))
    side = clip.image_size // STRIDE
    manifest = Manifest(
        encoder=trunk.name,
        weights_tag=trunk.tag,
        weights_sha256=trunk.sha256,
        activation=type(trunk.visual.act1).__name__.lower(),
        image_size=clip.image_size,
        resize=clip.resize,
        interpolation=INTERPOLATION,
        mean=trunk.mean,
        std=trunk.std,
        layer=LAYER,
        grid=(side, side),
        dim=probe.shape[2],
        precision=precision,
        pixels=CONVENTION,
    )
    return GridEncoder(grid, manifest, device)
