"""Extraction fixtures: a tiny CLIP ResNet with weights, and a folder of small images."""

import functools
import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from multitask_vl.config.schema import Config

SIDE = 64
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1},
}
DIM, CELLS = 8 * 32, 4


def random_image(seed: int, width: int = 80, height: int = 48) -> Image.Image:
    """Return an image of coarse color blocks, so that every grid cell differs."""
    blocks = np.random.default_rng([seed, 7]).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def tiny_weights() -> dict[str, torch.Tensor]:
    """Return CLIP weights of the sizes in `TINY`, spread enough that every grid cell has distinct features."""
    return {name: tensor.clone() for name, tensor in _tiny_weights().items()}


@functools.cache
def _tiny_weights() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        weights = open_clip.CLIP(**TINY).state_dict()
        for name, tensor in weights.items():
            if ".bn" in name or "downsample.1" in name:
                if name.endswith("weight"):  # open_clip initializes the last one of a block to zero
                    tensor.uniform_(2.0, 3.0)
                elif name.endswith(("bias", "running_mean")):
                    tensor.normal_(0, 0.2)
                elif name.endswith("running_var"):
                    tensor.uniform_(0.5, 1.5)
    return weights


def tiny_config(folder: Path, count: int = 10, **features) -> Config:
    """Return a configuration for `count` new images in ``images`` and the tiny image encoder."""
    (folder / "images" / "more").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        subfolder = folder / "images" / ("more" if number % 3 == 2 else "")
        random_image(number, 40 + 7 * number).save(subfolder / f"COCO_{number:03d}.{'png' if number % 2 else 'jpg'}")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    save_file(tiny_weights(), folder / "tiny.safetensors")
    return Config.model_validate(
        {
            "data_dir": folder,
            "vision": {
                "model": str(folder / "tiny.json"),
                "pretrained": str(folder / "tiny.safetensors"),
                "image_size": SIDE,
            },
            "features": {"store": "features.h5", "images": ["images"], "batch_size": 4, **features},
        }
    )
