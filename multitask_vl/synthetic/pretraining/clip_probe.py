"""Can one grid cell of the tiny CLIP be read: linear probes of attributes, presence and place on fresh scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP

from multitask_vl.synthetic.pretraining.clip_data import cell_values
from multitask_vl.synthetic.pretraining.clip_model import SHIPPED, grid, load_clip, pixels_of
from multitask_vl.synthetic.pretraining.thresholds import Gate
from multitask_vl.synthetic.render import render
from multitask_vl.synthetic.scenes import ALL, ATTRIBUTES, VALUES, Scene, compose, sample_scene, stream

TARGETS = {"color": 95.0, "pattern": 95.0, "shape": 95.0, "size": 90.0, "presence": 96.0, "which_cell": 96.0}


def gates(
    seed: int = 0, folder: Path = SHIPPED, num_fit: int = 1400, num_test: int = 500, num_lone: int = 300
) -> list[Gate]:
    """Probe the weights in ``folder``; scenes are drawn anew for every ``seed``, none of them seen in pretraining.

    One linear map a skill, from the 512 channels of a single cell. Attributes are read from the cell that holds an
    object's centre; presence from every cell; which cell holds a lone object by the largest presence score.
    """
    model = load_clip(folder)
    fit = _scenes(seed, "fit", num_fit)
    test = _scenes(seed, "test", num_test)
    lone = _scenes(seed, "lone", num_lone, count=1)
    features = {name: _cells(model, scenes) for name, scenes in (("fit", fit), ("test", test), ("lone", lone))}
    flat = features["fit"].flatten(0, 1)
    mean, std = flat.mean(0), flat.std(0) + 1e-3
    features = {name: (value - mean) / std for name, value in features.items()}
    known, asked = cell_values(fit), cell_values(test)
    found = []
    for name in ATTRIBUTES:
        full, checked = known[name] >= 0, asked[name] >= 0
        head = fit_linear(features["fit"][full], known[name][full], len(VALUES[name]))
        right = head(features["test"][checked]).argmax(-1) == asked[name][checked]
        found.append(_gate(name, right))
    here, there = known["shape"] >= 0, asked["shape"] >= 0
    head = fit_linear(features["fit"].flatten(0, 1), here.flatten().long(), 2)
    found.append(_gate("presence", head(features["test"]).argmax(-1) == there.long()))
    scores = head(features["lone"])
    places = torch.tensor([scene.objects[0].cell for scene in lone])
    found.append(_gate("which_cell", (scores[..., 1] - scores[..., 0]).argmax(-1) == places))
    return found


def fit_linear(x: torch.Tensor, y: torch.Tensor, classes: int, decay: float = 1e-3) -> torch.nn.Linear:
    """Logistic regression from x [N, D] to y [N] by L-BFGS from zero: no draw, no learning rate to choose."""
    head = torch.nn.Linear(x.shape[-1], classes)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(x), y) + decay * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head.requires_grad_(False)


def _gate(name: str, right: torch.Tensor) -> Gate:
    return Gate(f"clip/{name}", 100 * right.float().mean().item(), TARGETS[name], right.numel())


def _scenes(seed: int, part: str, number: int, count: int | None = None) -> list[Scene]:
    """Scenes of 2-5 objects (or ``count``), half of them from a small palette, all 180 looks allowed."""
    drawn = []
    for index in range(number):
        rng = stream("probe", "clip", seed, part, index)
        objects = count or rng.randint(2, 5)
        mixed = rng.random() < 0.5
        looks = [rng.choice(ALL) for _ in range(objects)]
        drawn.append(compose(looks, rng) if mixed else sample_scene(rng, ALL, objects))
    return drawn


@torch.no_grad()
def _cells(model: CLIP, scenes: Sequence[Scene], batch_size: int = 64) -> torch.Tensor:
    """Grid features [scenes, cells, channels], rounded to float16 as the feature store does."""
    found = []
    for start in range(0, len(scenes), batch_size):
        pictures = np.stack([render(scene) for scene in scenes[start : start + batch_size]])
        found.append(grid(model, pixels_of(pictures)).flatten(2).transpose(1, 2).half().float())
    return torch.cat(found)
