"""Rendering: antialiased shapes with a pattern on a shaded, cluttered, noisy background."""

from __future__ import annotations

import math
import random
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from multitask_vl.synthetic.scenes import CANVAS, Object, Scene, rng_for, sample_scene

RGB = {
    "red": (214, 44, 44),
    "green": (46, 166, 66),
    "blue": (52, 86, 224),
    "yellow": (236, 206, 44),
    "purple": (158, 62, 196),
    "white": (240, 240, 240),
}
PERIOD = 8.0
"""Pixels between stripes or rows of dots, the same for small and large objects: a pattern must not reveal the size."""
DARK = 0.3
"""Brightness of stripes and dots relative to the object's color."""
LEVELS = 8
"""Brightness is rounded to multiples of this: the noise hides it, and PNG files are a quarter smaller."""


def render(scene: Scene, canvas: int = CANVAS) -> np.ndarray:
    """Draw a scene.

    Args:
        canvas: side of the square image in pixels; coordinates of objects are in its pixels.

    Returns:
        RGB, uint8 [canvas, canvas, 3]; the same bytes for the same scene.
    """
    rng = random.Random(scene.style)
    image = _background(rng, canvas)
    for thing in scene.objects:
        _draw(image, thing, rng)
    image += _noise(rng, canvas)[..., None] * rng.uniform(2.0, 7.0)
    return (np.clip(image, 0, 255) / LEVELS).round().clip(0, 255 // LEVELS).astype(np.uint8) * LEVELS


def save_scene(path: Path | str, seed: int = 0) -> Scene:
    """Draw a random scene, write it as an image file and return it, so that answers about it can be checked.

    Args:
        path: image file; its extension decides the format.
        seed: seed of the scene.
    """
    scene = sample_scene(rng_for("example", seed))
    Image.fromarray(render(scene)).save(path)
    return scene


def _background(rng: random.Random, canvas: int) -> np.ndarray:
    """Gray gradient in any direction with up to three thin lines, float32 [canvas, canvas, 3]."""
    angle = rng.uniform(0, 2 * math.pi)
    ramp = _axis(canvas)
    slope = (math.cos(angle) * ramp[None, :] + math.sin(angle) * ramp[:, None]) * rng.uniform(0, 22)
    tint = np.array([rng.uniform(-8, 8) for _ in range(3)], dtype=np.float32)
    image = (slope + rng.uniform(85, 130)).astype(np.float32)[..., None] + tint
    for _ in range(rng.randint(0, 3)):
        angle, offset, shade = rng.uniform(0, math.pi), rng.uniform(-0.7, 0.7), rng.choice((-34, 34))
        distance = np.abs(math.cos(angle) * ramp[None, :] + math.sin(angle) * ramp[:, None] - offset) * (canvas / 2)
        image += (np.clip(1.5 - distance, 0, 1) * shade)[..., None]
    return image


@cache
def _axis(canvas: int) -> np.ndarray:
    return np.linspace(-1, 1, canvas, dtype=np.float32)


@cache
def _noise_tile() -> np.ndarray:
    return np.random.RandomState(7).standard_normal((256, 256)).astype(np.float32)


def _noise(rng: random.Random, canvas: int) -> np.ndarray:
    """Noise of unit variance [canvas, canvas], cropped from one fixed tile at a random position."""
    top, left = rng.randint(0, 256 - canvas), rng.randint(0, 256 - canvas)
    return _noise_tile()[top : top + canvas, left : left + canvas]


def _draw(image: np.ndarray, thing: Object, rng: random.Random) -> None:
    """Draw one object into ``image`` in place."""
    canvas = len(image)
    reach = 1.25 * thing.radius + 2
    left, top = max(0, int(thing.x - reach)), max(0, int(thing.y - reach))
    right, bottom = min(canvas, int(thing.x + reach) + 2), min(canvas, int(thing.y + reach) + 2)
    u = np.arange(left, right, dtype=np.float32)[None, :] + (0.5 - thing.x)
    v = np.arange(top, bottom, dtype=np.float32)[:, None] + (0.5 - thing.y)
    tilt = rng.uniform(-0.2, 0.2)
    cos, sin = math.cos(tilt), math.sin(tilt)
    depth = _depth_inside(thing.shape, cos * u + sin * v, cos * v - sin * u, thing.radius)
    light = rng.uniform(0.88, 1.0)
    color = np.array([min(255.0, channel * light + rng.uniform(-8, 8)) for channel in RGB[thing.color]], np.float32)
    shade = 1 - (1 - DARK) * _pattern_coverage(thing.pattern, u, v, rng)
    shade = shade * (0.45 + 0.55 * np.clip(depth - 0.7, 0, 1))  # a thin dark rim separates objects of one color
    patch = image[top:bottom, left:right]
    coverage = np.clip(depth + 0.5, 0, 1)[..., None]
    patch += coverage * (shade[..., None] * color - patch)


def _depth_inside(shape: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Distance in pixels from the outline of points (u, v) relative to the center; negative outside."""
    if shape == "circle":
        return radius - np.sqrt(u * u + v * v)
    if shape == "square":
        return 0.86 * radius - np.maximum(np.abs(u), np.abs(v))
    if shape == "triangle":  # three half-planes, one corner up
        lines = [math.sin(t) * u - math.cos(t) * v for t in (math.pi / 3, math.pi, 5 * math.pi / 3)]
        return 0.58 * radius - np.maximum(np.maximum(*lines[:2]), lines[2])
    if shape == "star":  # a point of a pentagram is on the inner side of at least four of its five lines
        lines = np.stack([np.sin(t) * u - np.cos(t) * v for t in (0.2 * math.pi * (2 * k + 1) for k in range(5))])
        return np.partition(0.40 * radius - lines, 1, axis=0)[1]
    if shape == "cross":
        arm, width = radius, 0.34 * radius
        horizontal = np.minimum(arm - np.abs(u), width - np.abs(v))
        vertical = np.minimum(arm - np.abs(v), width - np.abs(u))
        return np.maximum(horizontal, vertical)
    raise ValueError(f"unknown shape {shape!r}")


def _pattern_coverage(pattern: str, u: np.ndarray, v: np.ndarray, rng: random.Random) -> np.ndarray:
    """Fraction of each pixel covered by stripes or dots, 0 to 1, in a random direction and phase."""
    angle, phase = rng.uniform(0, math.pi), rng.uniform(0, PERIOD)
    if pattern == "solid":
        return np.zeros((v.shape[0], u.shape[1]), np.float32)
    cos, sin = math.cos(angle), math.sin(angle)
    along = np.abs((cos * u + sin * v + phase) % PERIOD - PERIOD / 2)
    if pattern == "striped":
        return np.clip(along - PERIOD / 4 + 0.5, 0, 1)
    across = np.abs((cos * v - sin * u + phase) % PERIOD - PERIOD / 2)
    return np.clip(2.6 - np.sqrt(along * along + across * across) + 0.5, 0, 1)
