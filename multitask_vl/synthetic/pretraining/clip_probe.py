"""Linear probes of single grid cells of the tiny CLIP: attributes, presence and position on new scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP

from multitask_vl.synthetic.pretraining.clip_data import cell_values
from multitask_vl.synthetic.pretraining.clip_model import BUNDLED_CLIP, grid_features, load_clip, normalize_pixels
from multitask_vl.synthetic.pretraining.thresholds import Threshold
from multitask_vl.synthetic.render import render
from multitask_vl.synthetic.scenes import (
    ALL_APPEARANCES,
    ATTRIBUTES,
    VALUES,
    Scene,
    compose_scene,
    rng_for,
    sample_scene,
)

REQUIRED_ACCURACY = {
    "color": 95.0,
    "pattern": 95.0,
    "shape": 95.0,
    "size": 90.0,
    "presence": 96.0,
    "which_cell": 96.0,
}


def check_thresholds(
    seed: int = 0, folder: Path = BUNDLED_CLIP, num_fit: int = 1400, num_test: int = 500, num_single: int = 300
) -> list[Threshold]:
    """Probe the weights in ``folder`` on scenes that depend on ``seed`` and do not occur in pretraining.

    One linear classifier per skill on the 512 channels of a single cell. Attributes are read from the cell that
    contains an object's center, presence from every cell; ``which_cell`` locates a single object by the largest
    presence score.

    Args:
        seed: seed of the scenes.
        folder: folder written by `save_clip`.
        num_fit: scenes to fit the classifiers on.
        num_test: scenes to test them on.
        num_single: scenes of one object for ``which_cell``.
    """
    model = load_clip(folder)
    fit = _sample_scenes(seed, "fit", num_fit)
    test = _sample_scenes(seed, "test", num_test)
    single = _sample_scenes(seed, "lone", num_single, count=1)  # part of the seed: another word gives other scenes
    features = {name: _features(model, scenes) for name, scenes in (("fit", fit), ("test", test), ("single", single))}
    flat = features["fit"].flatten(0, 1)
    mean, std = flat.mean(0), flat.std(0) + 1e-3
    features = {name: (value - mean) / std for name, value in features.items()}
    fit_values, test_values = cell_values(fit), cell_values(test)
    results = []
    for name in ATTRIBUTES:
        fit_cells, test_cells = fit_values[name] >= 0, test_values[name] >= 0
        head = fit_linear(features["fit"][fit_cells], fit_values[name][fit_cells], len(VALUES[name]))
        predicted = head(features["test"][test_cells]).argmax(-1)
        results.append(_threshold(name, predicted == test_values[name][test_cells]))
    fit_present, test_present = fit_values["shape"] >= 0, test_values["shape"] >= 0
    head = fit_linear(features["fit"].flatten(0, 1), fit_present.flatten().long(), 2)
    results.append(_threshold("presence", head(features["test"]).argmax(-1) == test_present.long()))
    scores = head(features["single"])
    cells = torch.tensor([scene.objects[0].cell for scene in single])
    results.append(_threshold("which_cell", (scores[..., 1] - scores[..., 0]).argmax(-1) == cells))
    return results


def fit_linear(x: torch.Tensor, y: torch.Tensor, num_classes: int, weight_decay: float = 1e-3) -> torch.nn.Linear:
    """Logistic regression from x [N, D] to y [N] by L-BFGS, initialized to zero: deterministic, no learning rate."""
    head = torch.nn.Linear(x.shape[-1], num_classes)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(x), y) + weight_decay * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head.requires_grad_(False)


def _threshold(name: str, correct: torch.Tensor) -> Threshold:
    return Threshold(f"clip/{name}", 100 * correct.float().mean().item(), REQUIRED_ACCURACY[name], correct.numel())


def _sample_scenes(seed: int, part: str, number: int, count: int | None = None) -> list[Scene]:
    """Scenes of 2-5 objects (or ``count``), half of them from a small palette, of all 180 appearances."""
    scenes = []
    for index in range(number):
        rng = rng_for("probe", "clip", seed, part, index)
        num_objects = count or rng.randint(2, 5)
        from_all = rng.random() < 0.5
        appearances = [rng.choice(ALL_APPEARANCES) for _ in range(num_objects)]
        scenes.append(compose_scene(appearances, rng) if from_all else sample_scene(rng, ALL_APPEARANCES, num_objects))
    return scenes


@torch.no_grad()
def _features(model: CLIP, scenes: Sequence[Scene], batch_size: int = 64) -> torch.Tensor:
    """Grid features [scenes, cells, channels], rounded to float16 as in the feature store."""
    batches = []
    for start in range(0, len(scenes), batch_size):
        images = np.stack([render(scene) for scene in scenes[start : start + batch_size]])
        grid = grid_features(model, normalize_pixels(images))
        batches.append(grid.flatten(2).transpose(1, 2).half().float())
    return torch.cat(batches)
