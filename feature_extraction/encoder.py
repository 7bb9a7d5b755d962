"""Vision encoder on its device, with preprocessing, precision and manifest."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from feature_extraction.encoders.fold_batchnorm import fold_batch_norms
from feature_extraction.images.preprocessing import INTERPOLATION, PREPROCESSING
from feature_extraction.vision_encoder import VisionEncoder, load_vision_encoder
from multitask_vl.config.schema import VisionConfig
from multitask_vl.data.store.manifest import Manifest
from multitask_vl.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class PreprocessedEncoder(nn.Module):
    """Vision encoder with pixel normalization before it and optional max-pooling after it.

    Args:
        encoder: the batch norms of CLIP's ResNets are folded into their convolutions.
        pool: rows and columns to max-pool the grid to; None: no pooling.
    """

    def __init__(self, encoder: VisionEncoder, pool: tuple[int, int] | None = None):
        super().__init__()
        foldable = any(isinstance(module, ModifiedResNet) for module in encoder.module.modules())
        network = fold_batch_norms(encoder.module) if foldable else encoder.module
        self.encoder = network.to(memory_format=torch.channels_last)
        self.pool = pool
        # Not buffers: `to(bfloat16)` would round them, and pixels are normalized in float32 at every precision.
        self.mean = torch.tensor(encoder.mean).view(3, 1, 1)
        self.std = torch.tensor(encoder.std).view(3, 1, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """RGB uint8 [B, 3, S, S] to grid features [B, rows, columns, D] in the encoder's dtype."""
        dtype = next(self.encoder.parameters()).dtype
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        images = ((pixels.float() / 255 - mean) / std).to(dtype, memory_format=torch.channels_last)
        grid = self.encoder(images)
        if self.pool is None:
            return grid
        return F.adaptive_max_pool2d(grid.permute(0, 3, 1, 2), self.pool).permute(0, 2, 3, 1)


class Encoder:
    """Vision encoder on its device, with the manifest of its features.

    Attributes:
        manifest: how the features are made.
        device: where the encoder computes.
        model: pixels to grid features, see `PreprocessedEncoder.forward`.
    """

    def __init__(self, model: nn.Module, manifest: Manifest, device: torch.device):
        self.manifest = manifest
        self.device = device
        self.model = model

    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """Uint8 [B, 3, S, S] to float16 features [B, T, D]; values beyond the range of float16 become infinite."""
        return self.encode(pixels).cpu().numpy()

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Like the call, but leaves the features on the device; a GPU may still be computing when this returns."""
        with _deterministic_cudnn() if self.device.type == "cuda" else nullcontext():
            return self.model(pixels.to(self.device, non_blocking=True)).half().flatten(1, 2)


def _deterministic_cudnn() -> AbstractContextManager:
    # TF32 would change fp32 features, and a resumed extraction must give the same bits.
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def load_encoder(
    vision: VisionConfig, precision: str = "fp32", device: torch.device | str | None = None, compiled: bool = False
) -> Encoder:
    """Load the vision encoder of a configuration onto a device.

    Args:
        vision: the model, its weights and its image size.
        precision: arithmetic of the encoder: fp32, bf16 or fp16.
        device: None: the GPU if there is one.
        compiled: compile the encoder with torch.compile.

    Raises:
        InputError: unknown model or weights, weights that do not fit, or an image size that the model does not accept.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    encoder = load_vision_encoder(vision)
    model = PreprocessedEncoder(encoder).to(device, DTYPES[precision])
    with torch.inference_mode():
        probe = model(torch.zeros(1, 3, vision.image_size, vision.image_size, dtype=torch.uint8, device=device))
    rows, columns, dim = probe.shape[1:]
    if vision.pool is not None and (vision.pool[0] > rows or vision.pool[1] > columns):
        raise InputError(
            f"vision.pool: {vision.pool[0]}x{vision.pool[1]} cells cannot be pooled from a grid of {rows}x{columns}; "
            "set vision.pool=null"
        )
    model.pool = vision.pool
    manifest = Manifest(
        encoder=encoder.name,
        weights_tag=encoder.tag,
        weights_sha256=encoder.sha256,
        activation=encoder.activation,
        image_size=vision.image_size,
        resize=vision.resize,
        interpolation=INTERPOLATION,
        mean=encoder.mean,
        std=encoder.std,
        layer=encoder.layer,
        pool=vision.pool,
        grid=vision.pool or (rows, columns),
        dim=dim,
        precision=precision,
        pixels=PREPROCESSING,
    )
    return Encoder(torch.compile(model) if compiled else model, manifest, device)
