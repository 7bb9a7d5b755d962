"""Comparison of image encoders: the grid of CLIP's ResNet, its 49 row-major cells, and 36 after pooling."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from feature_extraction.encoder import load_encoder
from multitask_vl.config.schema import VisionConfig, VisualConfig
from multitask_vl.models.visual import VisualEmbedding
from tests.golden.fixture import Fixture, Report

PIXELS = "input/images_uint8"


def run_encoder(fixture: Fixture) -> Report:
    """Encode the recorded images with the recorded weights, loaded as feature extraction loads them."""
    outputs, pixels = fixture.under("output"), fixture.tensors[PIXELS].to(torch.uint8)
    if pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    pixels = pixels.contiguous()
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        vision = _as_files(fixture, Path(folder), pixels.shape[-1])
        with torch.inference_mode():
            cells = load_encoder(vision, device="cpu").model(pixels)
            pooled = load_encoder(vision.model_copy(update={"pool": (6, 6)}), device="cpu").model(pixels)
    computed = {
        "grid": cells.permute(0, 3, 1, 2),
        "features49": cells.flatten(1, 2),
        "features36": pooled.flatten(1, 2),
    }
    for name, recorded in outputs.items():
        if name in computed:
            report.close(name, computed[name], recorded)
        else:
            report.ignored.append(f"output/{name}")
    if "features36" in outputs:
        embedding = VisualEmbedding(
            VisualConfig(feature_dim=cells.shape[-1], pool=(6, 6)), 8, torch.nn.LayerNorm, None, 36
        )
        for stored in ("features49", "features36"):
            in_model = embedding.max_pool_grid(computed[stored][:, None])[:, 0]
            report.close(f"{stored} pooled in the model", in_model, outputs["features36"])
    return report


def _as_files(fixture: Fixture, folder: Path, side: int) -> VisionConfig:
    """Write the recorded weights as a user would provide them: the model's JSON and a file of tensors."""
    config = fixture.meta["config"]
    vision = {"layers": list(config["layers"]), "width": config["width"], "image_size": side, "patch_size": None}
    text = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}
    (folder / "recorded.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}))
    weights = {name: value.contiguous() for name, value in fixture.weights.items()}
    save_file(weights, folder / "recorded.safetensors")
    return VisionConfig(
        model=str(folder / "recorded.json"), pretrained=str(folder / "recorded.safetensors"), image_size=side
    )
