"""Does the runner understand a file of a small CLIP ResNet? One is recorded here, by formulas of its own."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tests.golden.__main__ import main, run

LAYERS, WIDTH = [2, 1, 1, 1], 4
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def tensors_of() -> dict[str, torch.Tensor]:
    """Random tensors by OpenAI's names."""
    generator, made = torch.Generator().manual_seed(5), {}

    def conv(name: str, d_in: int, d_out: int, size: int) -> None:
        spread = (2 / (d_in * size * size)) ** 0.5
        made[f"{name}.weight"] = spread * torch.randn(d_out, d_in, size, size, generator=generator)

    def norm(name: str, width: int) -> None:
        for kind, around in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            made[f"{name}.{kind}"] = around + 0.2 * torch.rand(width, generator=generator)
        made[f"{name}.num_batches_tracked"] = torch.tensor(7)

    half = WIDTH // 2
    for i, (d_in, d_out) in enumerate([(3, half), (half, half), (half, WIDTH)], 1):
        conv(f"conv{i}", d_in, d_out, 3)
        norm(f"bn{i}", d_out)
    d_in = WIDTH
    for layer, blocks in enumerate(LAYERS, 1):
        inner = WIDTH * 2 ** (layer - 1)
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            for i, (first, last, size) in enumerate([(d_in, inner, 1), (inner, inner, 3), (inner, 4 * inner, 1)], 1):
                conv(f"{name}.conv{i}", first, last, size)
                norm(f"{name}.bn{i}", last)
            if block == 0:
                conv(f"{name}.downsample.0", d_in, 4 * inner, 1)
                norm(f"{name}.downsample.1", 4 * inner)
            d_in = 4 * inner
    return {name: value.half() if value.is_floating_point() else value for name, value in made.items()}


def grid_of(tensors: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """Output of the last layer [B, D, 7, 7]: strides are average pools, in the branch and beside it."""
    get = {name: value.float() for name, value in tensors.items()}

    def conv(name: str, norm: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = get[f"{name}.weight"]
        y = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, var, gain, shift = (
            get[f"{norm}.{kind}"][:, None, None] for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 1e-5).sqrt() * gain + shift

    x = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    for i in (1, 2, 3):
        x = conv(f"conv{i}", f"bn{i}", x, stride=2 if i == 1 else 1).relu()
    x = F.avg_pool2d(x, 2)
    for layer, blocks in enumerate(LAYERS, 1):
        for block in range(blocks):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = conv(f"{name}.conv1", f"{name}.bn1", x).relu()
            y = F.avg_pool2d(conv(f"{name}.conv2", f"{name}.bn2", y).relu(), stride)
            y = conv(f"{name}.conv3", f"{name}.bn3", y)
            if block == 0:
                x = conv(f"{name}.downsample.0", f"{name}.downsample.1", F.avg_pool2d(x, stride))
            x = (x + y).relu()
    return x


def recorded(folder: Path, prefix: str) -> Path:
    """A file with weights under ``prefix``."""
    tensors = tensors_of()
    pixels = torch.randint(0, 256, (2, 224, 224, 3), generator=torch.Generator().manual_seed(6), dtype=torch.uint8)
    grid = grid_of(tensors, pixels)
    made = {f"weight/{prefix}{name}": value for name, value in tensors.items()} | {"input/images_uint8": pixels}
    made["output/grid"] = grid
    made["output/features49"] = grid.flatten(2).transpose(1, 2)
    made["output/features36"] = F.max_pool2d(grid, 2, 1).flatten(2).transpose(1, 2)
    path = folder / "clip.safetensors"
    made = {name: value.contiguous() for name, value in made.items()}
    save_file(made, path, {"json": json.dumps({"config": {"layers": LAYERS, "width": WIDTH}})})
    return path


def test_a_trunk_by_openais_names_is_understood(tmp_path):
    for prefix in ("", "visual."):
        report = run(recorded(tmp_path, prefix))
        assert report.failures == []
        assert report.compared == 3
        assert report.worst < 5e-5


def test_a_wrong_trunk_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(globals(), "STD", (0.25, 0.25, 0.25))
    assert main([str(recorded(tmp_path, ""))]) == 1
    assert "off by 1.5 (3 in all)" in capsys.readouterr().out
