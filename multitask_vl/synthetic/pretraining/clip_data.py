"""Batches of the CLIP pretraining, as functions of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from multitask_vl.synthetic.pretraining.clip_captions import VALUE_CAPTIONS, full_caption, quadrant_caption
from multitask_vl.synthetic.render import render
from multitask_vl.synthetic.scenes import (
    ALL_APPEARANCES,
    ATTRIBUTES,
    GRID,
    RADII,
    VALUES,
    Object,
    Scene,
    compose_scene,
    rng_for,
    sample_scene,
)

SMALL_CANVAS = 64
"""Side of the first stage's images in pixels."""


@dataclass(frozen=True)
class SingleObjectBatch:
    """Images of one object on a small canvas.

    Attributes:
        images: uint8 [B, 64, 64, 3].
        captions: full descriptions, one per image.
        values: attribute -> index of the object's value [B].
    """

    images: np.ndarray
    captions: list[str]
    values: dict[str, torch.Tensor]


@dataclass(frozen=True)
class MultiObjectBatch:
    """Images of several objects.

    Attributes:
        images: uint8 [B, 128, 128, 3].
        captions: one object with its quadrant, one caption per image.
        matches: whether caption j is true of image i, bool [B, B].
        values: attribute -> index of the value of the object in each cell, -1 where the cell is empty [B, 16].
    """

    images: np.ndarray
    captions: list[str]
    matches: torch.Tensor
    values: dict[str, torch.Tensor]


def single_object_batch(seed: int, step: int, batch_size: int) -> SingleObjectBatch:
    """Batch of the first stage: all 180 appearances with equal probability."""
    rng = rng_for("pretrain", "clip", "single", seed, step)
    scenes = []
    for _ in range(batch_size):
        appearance = rng.choice(ALL_APPEARANCES)
        radius = rng.uniform(*RADII[appearance.size])
        x, y = (rng.uniform(min(radius, 31), SMALL_CANVAS - min(radius, 31)) for _ in range(2))
        scenes.append(Scene((Object(*appearance, x, y, radius),), rng.getrandbits(32)))
    appearances = [scene.objects[0].appearance for scene in scenes]
    return SingleObjectBatch(
        np.stack([render(scene, SMALL_CANVAS) for scene in scenes]),
        [full_caption(each) for each in appearances],
        {
            name: torch.tensor([VALUES[name].index(getattr(each, name)) for each in appearances])
            for name in VALUE_CAPTIONS
        },
    )


def multi_object_batch(seed: int, step: int, batch_size: int, max_objects: int) -> MultiObjectBatch:
    """Batch of the second stage: 1 to ``max_objects`` objects per image, half of the scenes from a small palette."""
    rng = rng_for("pretrain", "clip", "crowd", seed, step)  # part of the seed: another word gives other batches
    scenes = [sample_mixed_scene(rng, rng.randint(1, max_objects)) for _ in range(batch_size)]
    true_captions = [{quadrant_caption(thing) for thing in scene.objects} for scene in scenes]
    captions = [quadrant_caption(rng.choice(scene.objects)) for scene in scenes]
    matches = torch.tensor([[caption in known for caption in captions] for known in true_captions])
    return MultiObjectBatch(np.stack([render(scene) for scene in scenes]), captions, matches, cell_values(scenes))


def sample_mixed_scene(rng, count: int) -> Scene:
    """Scene of ``count`` objects: any of the 180 appearances, or with probability 0.5 from a small palette."""
    if rng.random() < 0.5:
        return compose_scene([rng.choice(ALL_APPEARANCES) for _ in range(count)], rng)
    return sample_scene(rng, ALL_APPEARANCES, count)


def cell_values(scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """Attribute -> index of the value of the object whose center is in each cell, -1 for none [scenes, cells]."""
    table = {name: torch.full((len(scenes), GRID * GRID), -1) for name in ATTRIBUTES}
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            for name in ATTRIBUTES:
                table[name][row, thing.cell] = VALUES[name].index(getattr(thing, name))
    return table
