"""Does our CLIP ResNet give the recorded grid: a small trunk by OpenAI's names, from pixels to cells."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from feature_extraction.encoder import GridTrunk
from feature_extraction.weights import load_trunk
from multitask_vl.config.schema import ClipConfig
from tests.golden.fixture import Fixture, NotUnderstood, Report

PIXELS = "input/images_uint8"
POOLED = 6
"""Cells a side after pooling, where 36 features are recorded."""


@torch.no_grad()
def run_trunk(fixture: Fixture) -> Report:
    """The last layer's output as a grid, row by row, and pooled."""
    sizes = fixture.meta["config"]
    with tempfile.TemporaryDirectory() as folder:
        model, weights = Path(folder) / "trunk.json", Path(folder) / "trunk.safetensors"
        # one head: the attention pool, which has the heads, is never built into a trunk
        vision = {"layers": list(sizes["layers"]), "width": sizes["width"], "head_width": 32 * sizes["width"]}
        model.write_text(json.dumps({"embed_dim": 8, "vision_cfg": {"image_size": 224, **vision}}))
        save_file({name: value.contiguous() for name, value in fixture.weights.items()}, weights)
        trunk = load_trunk(ClipConfig(model=str(model), pretrained=str(weights)))
    pixels = fixture.tensors[PIXELS]
    if pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    cells = GridTrunk(trunk.visual, trunk.mean, trunk.std)(pixels)
    side = round(cells.shape[1] ** 0.5)
    grid = cells.transpose(1, 2).unflatten(2, (side, side))
    found = {
        "grid": grid,
        f"features{side**2}": cells,
        f"features{POOLED**2}": F.adaptive_max_pool2d(grid, POOLED).flatten(2).transpose(1, 2),
    }
    report = Report()
    for name, value in fixture.under("output").items():
        if name not in found:
            raise NotUnderstood(f"output {name}")
        report.close(name, found[name], value)
    return report
