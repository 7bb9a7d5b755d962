"""How do pixels become features: the trunk on its device, in its precision, with the manifest of what it makes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from feature_extraction.encoders.fold_batchnorm import fold_batch_norms
from feature_extraction.images.preprocessing import CONVENTION, INTERPOLATION
from feature_extraction.vision_encoder import Trunk, load_trunk
from multitask_vl.config.schema import ClipConfig
from multitask_vl.data.store.manifest import Manifest
from multitask_vl.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class PixelTrunk(nn.Module):
    """Pixels -> cells: normalise, run the trunk, max-pool if asked.

    Args:
        trunk: its batch norms are folded where that is known to be safe.
        pool: rows and columns to pool the grid to; None: not at all.
    """

    def __init__(self, trunk: Trunk, pool: tuple[int, int] | None = None):
        super().__init__()
        folded = any(isinstance(one, ModifiedResNet) for one in trunk.module.modules())
        self.trunk = (fold_batch_norms(trunk.module) if folded else trunk.module).to(memory_format=torch.channels_last)
        self.pool = pool
        # Not buffers: `to(bfloat16)` would round them, and pixels are normalised in float32 at every precision.
        self.mean = torch.tensor(trunk.mean).view(3, 1, 1)
        self.std = torch.tensor(trunk.std).view(3, 1, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Cells before pooling: RGB uint8 [B, 3, S, S] -> [B, rows, columns, D] in the trunk's own dtype."""
        dtype = next(self.trunk.parameters()).dtype
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        images = ((pixels.float() / 255 - mean) / std).to(dtype, memory_format=torch.channels_last)
        cells = self.trunk(images)
        if self.pool is None:
            return cells
        return F.adaptive_max_pool2d(cells.permute(0, 3, 1, 2), self.pool).permute(0, 2, 3, 1)


class Encoder:
    """A trunk on its device, with the manifest of what it makes.

    Attributes:
        manifest: how the features are made.
        device: where the trunk computes.
        trunk: pixels -> cells.
    """

    def __init__(self, trunk: nn.Module, manifest: Manifest, device: torch.device):
        self.manifest = manifest
        self.device = device
        self.trunk = trunk

    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """Features of images, uint8 [B, 3, S, S] -> float16 [B, T, D]; what float16 cannot hold becomes infinite."""
        return self.encode(pixels).cpu().numpy()

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """As the call, but left on the device: a GPU is still at work on them when this returns."""
        with _exact() if self.device.type == "cuda" else nullcontext():
            return self.trunk(pixels.to(self.device, non_blocking=True)).half().flatten(1, 2)


def _exact() -> AbstractContextManager:
    # TF32 would make fp32 something else on a GPU, and a restart must give the same bits.
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def load_encoder(
    clip: ClipConfig, precision: str = "fp32", device: torch.device | str | None = None, compiled: bool = False
) -> Encoder:
    """The encoder of a configuration.

    Args:
        clip: which trunk, which weights, which square.
        precision: arithmetic of the trunk: fp32, bf16 or fp16.
        device: None takes the GPU if there is one.
        compiled: let torch.compile work on it.

    Raises:
        InputError: the model or its weights are unknown or do not fit, or the square cannot be cut into cells.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    trunk = load_trunk(clip)
    module = PixelTrunk(trunk).to(device, DTYPES[precision])
    with torch.inference_mode():
        probe = module(torch.zeros(1, 3, clip.image_size, clip.image_size, dtype=torch.uint8, device=device))
    rows, columns, dim = probe.shape[1:]
    if clip.pool is not None and (clip.pool[0] > rows or clip.pool[1] > columns):
        raise InputError(
            f"clip.pool: {clip.pool[0]}x{clip.pool[1]} cells cannot be pooled from a grid of {rows}x{columns}; set "
            "clip.pool=null"
        )
    module.pool = clip.pool
    manifest = Manifest(
        encoder=trunk.name,
        weights_tag=trunk.tag,
        weights_sha256=trunk.sha256,
        activation=trunk.activation,
        image_size=clip.image_size,
        resize=clip.resize,
        interpolation=INTERPOLATION,
        mean=trunk.mean,
        std=trunk.std,
        layer=trunk.layer,
        pool=clip.pool,
        grid=clip.pool or (rows, columns),
        dim=dim,
        precision=precision,
        pixels=CONVENTION,
    )
    return Encoder(torch.compile(module) if compiled else module, manifest, device)
