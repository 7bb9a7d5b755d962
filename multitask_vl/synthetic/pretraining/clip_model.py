"""Tiny CLIP: open_clip's ModifiedResNet and text transformer at small sizes, with saving and loading."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file

from multitask_vl.config.resources import WEIGHTS_DIR
from multitask_vl.errors import InputError
from multitask_vl.synthetic.pretraining.clip_captions import CONTEXT_LENGTH, VOCABULARY
from multitask_vl.synthetic.scenes import CANVAS, CELL

CONFIG_NAME = "tiny_clip.json"
WEIGHTS_NAME = "model.safetensors"
BUNDLED_CLIP = WEIGHTS_DIR / "clip"


def tiny_config(image_size: int = CANVAS) -> dict:
    """Model configuration in open_clip's format; ``head_width`` gives the attention pool 16 heads."""
    return {
        "embed_dim": 256,
        "vision_cfg": {"image_size": image_size, "layers": [1, 2, 2, 1], "width": 16, "head_width": 32},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": len(VOCABULARY),
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    }


def init_clip(seed: int, image_size: int) -> CLIP:
    """Tiny CLIP with random weights.

    open_clip initializes the last BatchNorm scale of every block to zero, which makes stages of 1-2 blocks start as
    pooling filters. Here these scales start at one.
    """
    torch.manual_seed(seed)
    model = CLIP(**tiny_config(image_size))
    for stage in (model.visual.layer1, model.visual.layer2, model.visual.layer3, model.visual.layer4):
        for block in stage:
            torch.nn.init.ones_(block.bn3.weight)
    return model.to(memory_format=torch.channels_last)


def enlarge_clip(small: CLIP, image_size: int = CANVAS) -> CLIP:
    """Same weights for larger images: the attention pool's position embedding is interpolated bilinearly."""
    large = CLIP(**tiny_config(image_size))
    state = small.state_dict()
    key = "visual.attnpool.positional_embedding"
    mean, cells = state[key][:1], state[key][1:]
    old, new = round(len(cells) ** 0.5), image_size // CELL
    square = cells.T.reshape(1, -1, old, old)
    resized = F.interpolate(square, size=(new, new), mode="bilinear", align_corners=False)
    state[key] = torch.cat([mean, resized.flatten(2)[0].T])
    large.load_state_dict(state)
    return large.to(memory_format=torch.channels_last)


def normalize_pixels(images: np.ndarray) -> torch.Tensor:
    """Normalize uint8 images [B, H, W, 3] as CLIP does: float32 [B, 3, H, W] in channels-last memory."""
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN) * 255
    std = torch.tensor(open_clip.OPENAI_DATASET_STD) * 255
    return ((torch.from_numpy(images).float() - mean) / std).permute(0, 3, 1, 2)


def grid_features(model: CLIP, pixels: torch.Tensor) -> torch.Tensor:
    """Output of the image encoder before the attention pool [B, 512, H/32, W/32], as in the feature store."""
    visual = model.visual
    x = visual.stem(pixels)
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = stage(x)
    return x


def cell_embeddings(model: CLIP, grid: torch.Tensor) -> torch.Tensor:
    """Unit-length embedding of each grid cell in the space of captions [B, cells, 256].

    Cells of ``grid`` [B, 512, H/32, W/32] pass through the attention pool's value and output projections.
    """
    pool = model.visual.attnpool
    return F.normalize(pool.c_proj(pool.v_proj(grid.flatten(2).transpose(1, 2))), dim=-1)


def save_clip(model: CLIP, folder: Path, metadata: dict[str, str]) -> None:
    """Write the configuration and the float16 weights with ``metadata`` in the safetensors header."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps(tiny_config(), indent=2) + "\n")
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    partial = folder / f".{WEIGHTS_NAME}.partial"
    save_file(state, partial, metadata=metadata)
    partial.chmod(0o644)  # safetensors creates files that only their owner can read
    partial.replace(folder / WEIGHTS_NAME)


def load_clip(folder: Path = BUNDLED_CLIP) -> CLIP:
    """Load a CLIP written by `save_clip`, in float32 and evaluation mode.

    Raises:
        InputError: a file is missing.
    """
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder}: no {' and no '.join(missing)}; "
            f"to create them: python -m multitask_vl.synthetic.pretraining clip --out {folder}"
        )
    model = CLIP(**json.loads((folder / CONFIG_NAME).read_text()))
    model.load_state_dict(load_file(folder / WEIGHTS_NAME))
    return model.to(memory_format=torch.channels_last).eval()
