"""What do the formulas of CLIP's published ResNet give: a plain second implementation that records a fixture.

It knows nothing of open_clip or of the project: functions over a dictionary of tensors by OpenAI's names.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
LAYERS, WIDTH = [1, 2, 1, 1], 16


def weights_of(layers: list[int], width: int, prefix: str = "visual.") -> dict[str, torch.Tensor]:
    """Random tensors by OpenAI's names: convolutions without biases, batch norms with statistics of their own."""
    generator = torch.Generator().manual_seed(4)
    weights: dict[str, torch.Tensor] = {}

    def conv(name: str, outputs: int, inputs: int, size: int) -> None:
        spread = (2 / (inputs * size * size)) ** 0.5
        weights[f"{prefix}{name}.weight"] = spread * torch.randn(outputs, inputs, size, size, generator=generator)

    def norm(name: str, channels: int) -> None:
        for kind, around, spread in (("weight", 1, 0.1), ("bias", 0, 0.1), ("running_mean", 0, 0.1)):
            weights[f"{prefix}{name}.{kind}"] = around + spread * torch.randn(channels, generator=generator)
        weights[f"{prefix}{name}.running_var"] = 0.5 + torch.rand(channels, generator=generator)
        weights[f"{prefix}{name}.num_batches_tracked"] = torch.tensor(0)

    for number, (inputs, outputs) in enumerate(((3, width // 2), (width // 2, width // 2), (width // 2, width)), 1):
        conv(f"conv{number}", outputs, inputs, 3)
        norm(f"bn{number}", outputs)
    inputs = width
    for stage, blocks in enumerate(layers):
        inner = width * 2**stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            for number, (into, out, size) in enumerate(
                ((inputs, inner, 1), (inner, inner, 3), (inner, 4 * inner, 1)), 1
            ):
                conv(f"{name}.conv{number}", out, into, size)
                norm(f"{name}.bn{number}", out)
            if block == 0:
                conv(f"{name}.downsample.0", 4 * inner, inputs, 1)
                norm(f"{name}.downsample.1", 4 * inner)
            inputs = 4 * inner
    return weights


def grid(weights: dict[str, torch.Tensor], layers: list[int], images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> output of layer4 [B, D, H / 32, W / 32]."""
    prefix = "visual." if "visual.conv1.weight" in weights else ""

    def step(name: str, norm: str, x: torch.Tensor) -> torch.Tensor:
        kernel = weights[f"{prefix}{name}.weight"]
        stride = 2 if name == "conv1" else 1
        y = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, var, gain, shift = (
            weights[f"{prefix}{norm}.{kind}"][:, None, None]
            for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 1e-5).sqrt() * gain + shift

    x = images.permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    for number in (1, 2, 3):
        x = step(f"conv{number}", f"bn{number}", x).clamp(min=0)
    x = F.avg_pool2d(x, 2)
    for stage, blocks in enumerate(layers):
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            shrink = stage > 0 and block == 0  # an average before the last convolution, not a stride
            y = step(f"{name}.conv1", f"{name}.bn1", x).clamp(min=0)
            y = step(f"{name}.conv2", f"{name}.bn2", y).clamp(min=0)
            y = step(f"{name}.conv3", f"{name}.bn3", F.avg_pool2d(y, 2) if shrink else y)
            if block == 0:
                x = step(f"{name}.downsample.0", f"{name}.downsample.1", F.avg_pool2d(x, 2) if shrink else x)
            x = (x + y).clamp(min=0)
    return x


def record_trunk(path: Path, prefix: str = "visual.") -> None:
    """Write a file in the recorded format: weights, two images, grid, its cells, and 36 of them after pooling."""
    weights = {name: value.half().float() for name, value in weights_of(LAYERS, WIDTH, prefix).items()}
    images = torch.randint(0, 256, (2, 224, 224, 3), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
    found = grid(weights, LAYERS, images)
    pooled = F.max_pool2d(found, 2, stride=1)  # from 7 x 7 to 6 x 6 the adaptive pool is this one
    tensors = {f"weight/{name}": value for name, value in weights.items()}
    tensors |= {
        "input/images_uint8": images,
        "output/grid": found,
        "output/features49": found.flatten(2).transpose(1, 2),
        "output/features36": pooled.flatten(2).transpose(1, 2),
    }
    meta = {"fixture": "clip_modified_resnet", "config": {"layers": LAYERS, "width": WIDTH}}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"json": json.dumps(meta)})
