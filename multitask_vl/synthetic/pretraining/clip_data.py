"""Which pictures and captions does a step of CLIP's pretraining see, as a function of (seed, stage, step)?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from multitask_vl.synthetic.pretraining.clip_captions import VALUE_CAPTIONS, full_caption, placed_caption
from multitask_vl.synthetic.render import render
from multitask_vl.synthetic.scenes import (
    ALL,
    ATTRIBUTES,
    GRID,
    RADII,
    VALUES,
    Object,
    Scene,
    compose,
    sample_scene,
    stream,
)

SMALL_CANVAS = 64
"""Side of the first stage's pictures."""


@dataclass(frozen=True)
class Singles:
    """One object a picture on a small canvas.

    Attributes:
        pictures: uint8 [B, 64, 64, 3].
        captions: full descriptions, one a picture.
        values: attribute -> index of the object's value [B].
    """

    pictures: np.ndarray
    captions: list[str]
    values: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Crowds:
    """Several objects a picture.

    Attributes:
        pictures: uint8 [B, 128, 128, 3].
        captions: of one object with its place, one a picture.
        truth: whether caption j is true of picture i [B, B], bool.
        values: attribute -> index of the value of the object in each cell, -1 where the cell is empty [B, 16].
    """

    pictures: np.ndarray
    captions: list[str]
    truth: torch.Tensor
    values: dict[str, torch.Tensor]


def singles(seed: int, step: int, batch_size: int) -> Singles:
    """The first stage's batch at a step: all 180 looks alike."""
    rng = stream("pretrain", "clip", "single", seed, step)
    scenes = []
    for _ in range(batch_size):
        look = rng.choice(ALL)
        radius = rng.uniform(*RADII[look.size])
        x, y = (rng.uniform(min(radius, 31), SMALL_CANVAS - min(radius, 31)) for _ in range(2))
        scenes.append(Scene((Object(*look, x, y, radius),), rng.getrandbits(32)))
    looks = [scene.objects[0].look for scene in scenes]
    return Singles(
        np.stack([render(scene, SMALL_CANVAS) for scene in scenes]),
        [full_caption(look) for look in looks],
        {name: torch.tensor([VALUES[name].index(getattr(look, name)) for look in looks]) for name in VALUE_CAPTIONS},
    )


def crowds(seed: int, step: int, batch_size: int, most: int) -> Crowds:
    """The second stage's batch at a step: 1 to ``most`` objects a picture, half of the scenes from a small palette."""
    rng = stream("pretrain", "clip", "crowd", seed, step)
    scenes = []
    for _ in range(batch_size):
        count = rng.randint(1, most)
        mixed = rng.random() < 0.5
        scenes.append(compose([rng.choice(ALL) for _ in range(count)], rng) if mixed else sample_scene(rng, ALL, count))
    facts = [{placed_caption(thing) for thing in scene.objects} for scene in scenes]
    captions = [placed_caption(rng.choice(scene.objects)) for scene in scenes]
    truth = torch.tensor([[caption in known for caption in captions] for known in facts])
    return Crowds(np.stack([render(scene) for scene in scenes]), captions, truth, cell_values(scenes))


def cell_values(scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """Attribute -> index of the value of the object whose centre is in each cell, -1 for none [scenes, cells]."""
    table = {name: torch.full((len(scenes), GRID * GRID), -1) for name in ATTRIBUTES}
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            for name in ATTRIBUTES:
                table[name][row, thing.cell] = VALUES[name].index(getattr(thing, name))
    return table
