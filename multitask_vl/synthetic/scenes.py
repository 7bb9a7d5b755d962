"""Scenes of the synthetic world: objects with four attributes and a position, and how scenes are sampled."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SIZES = ("small", "large")
PATTERNS = ("solid", "striped", "dotted")
COLORS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross")
VALUES = {"size": SIZES, "pattern": PATTERNS, "color": COLORS, "shape": SHAPES}
ATTRIBUTES = tuple(VALUES)
"""Names of the attributes, in the order of English adjectives: "large striped red star"."""

SPLITS = ("train", "val", "test", "ood")
"""val chooses settings, test reports, ood holds attribute combinations that no other split shows."""
STREAM_KEYS = {"train": "train", "val": "tune", "test": "report", "ood": "heldout"}
"""Split -> its part of the strings that seed random streams. Other strings would draw another world."""

CANVAS = 128
"""Side of an image in pixels."""
CELL = 32
"""Side of a grid cell of the vision encoder in pixels; an image has GRID x GRID cells."""
GRID = CANVAS // CELL
MARGIN = 4
"""Minimum distance in pixels of an object's center from the lines between cells: closer ones would be ambiguous."""
RADII = {"small": (13.0, 15.0), "large": (21.0, 25.0)}
"""Size -> minimum and maximum radius in pixels."""
MIN_SEPARATION = 0.8
"""Minimum distance of two centers relative to r1 + r2, so that one object hides only a little of another."""
MIN_OBJECTS, MAX_OBJECTS = 2, 5
"""Number of objects in a scene."""


class Appearance(NamedTuple):
    """One value of each attribute."""

    size: str
    pattern: str
    color: str
    shape: str


ALL_APPEARANCES = tuple(Appearance(s, p, c, f) for s in SIZES for p in PATTERNS for c in COLORS for f in SHAPES)
HELD_OUT_PAIRS = frozenset(
    {
        ("red", "star"),
        ("green", "circle"),
        ("blue", "square"),
        ("yellow", "triangle"),
        ("purple", "cross"),
        ("white", "star"),
    }
)
"""Pairs of color and shape that occur only in the ood split, neither drawn nor named in the others."""
HELD_OUT = tuple(each for each in ALL_APPEARANCES if (each.color, each.shape) in HELD_OUT_PAIRS)
SEEN = tuple(each for each in ALL_APPEARANCES if (each.color, each.shape) not in HELD_OUT_PAIRS)


@dataclass(frozen=True, slots=True)
class Filter:
    """Description that objects match or not; None leaves an attribute open.

    ``Filter(color="red", shape="star")`` is "red star"; ``Filter(color="red")`` is "red thing".
    """

    size: str | None = None
    pattern: str | None = None
    color: str | None = None
    shape: str | None = None

    @classmethod
    def from_appearance(cls, appearance: Appearance | Object, attributes: Iterable[str]) -> Filter:
        """Filter that requires the values ``appearance`` has in these attributes."""
        return cls(**{name: getattr(appearance, name) for name in attributes})

    @property
    def attributes(self) -> tuple[str, ...]:
        """Attributes with a required value, in the order of `ATTRIBUTES`."""
        return tuple(name for name in ATTRIBUTES if getattr(self, name) is not None)

    @property
    def names_held_out_pair(self) -> bool:
        """Whether it requires a held-out pair of color and shape."""
        return (self.color, self.shape) in HELD_OUT_PAIRS

    def matches(self, appearance: Appearance | Object) -> bool:
        """Whether ``appearance`` has every required value."""
        return (
            (self.size is None or self.size == appearance.size)
            and (self.pattern is None or self.pattern == appearance.pattern)
            and (self.color is None or self.color == appearance.color)
            and (self.shape is None or self.shape == appearance.shape)
        )

    def count(self, appearances: Iterable[Appearance | Object]) -> int:
        """Number of matches."""
        return sum(map(self.matches, appearances))


@dataclass(frozen=True, slots=True)
class Object:
    """Object in an image: an appearance, a center in pixels (x to the right, y down) and a radius in pixels."""

    size: str
    pattern: str
    color: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def appearance(self) -> Appearance:
        """Its four attributes."""
        return Appearance(self.size, self.pattern, self.color, self.shape)

    @property
    def column(self) -> int:
        """Column of its center's grid cell, 0 (left) to GRID - 1."""
        return int(self.x // CELL)

    @property
    def row(self) -> int:
        """Row of its center's grid cell, 0 (top) to GRID - 1."""
        return int(self.y // CELL)

    @property
    def cell(self) -> int:
        """Row-major index of its center's cell, 0 to GRID^2 - 1; no two objects of a scene share one."""
        return self.row * GRID + self.column

    @property
    def quadrant(self) -> str:
        """Quarter of the image that contains its center: ``"top left"`` and so on."""
        return f"{'top' if self.row < GRID // 2 else 'bottom'} {'left' if self.column < GRID // 2 else 'right'}"


QUADRANTS = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True, slots=True)
class Scene:
    """Content of an image.

    Attributes:
        objects: MIN_OBJECTS to MAX_OBJECTS of them (1 in pretraining); later ones are drawn in front.
        style: seed of everything that carries no meaning: background, clutter, noise, shades, tilts.
    """

    objects: tuple[Object, ...]
    style: int = 0


RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def relation_holds(relation: str, subject: Object, anchor: Object) -> bool:
    """Whether ``subject`` is ``relation`` ``anchor``, by grid column or row: a gap of at least 2 * MARGIN pixels.

    Raises:
        ValueError: the relation is unknown.
    """
    if relation == "left of":
        return subject.column < anchor.column
    if relation == "right of":
        return subject.column > anchor.column
    if relation == "above":
        return subject.row < anchor.row
    if relation == "below":
        return subject.row > anchor.row
    raise ValueError(f"unknown relation {relation!r}")


def rng_for(*key: object) -> random.Random:
    """Random generator seeded by ``key``, e.g. ``rng_for("world", seed, "captions", image_id)``.

    Python's generator seeded by a string gives the same numbers on every machine and in every process.
    """
    return random.Random("/".join(map(str, key)))


def split_rng(seed: int, purpose: str, split: str, index: int) -> random.Random:
    """Random generator of one item of a split for one purpose, such as ``"scene"`` or ``"vqa"``."""
    return rng_for("world", seed, purpose, STREAM_KEYS[split], index)


def sample_palette(rng: random.Random, pool: Sequence[Appearance]) -> list[Appearance]:
    """Appearances of ``pool`` within 2-4 sampled colors, 2-4 shapes and 1-3 patterns.

    A scene drawn from few values has objects to count, to compare and to confuse; one drawn from all values has none.
    """
    while True:
        colors = rng.sample(COLORS, rng.randint(2, 4))
        shapes = rng.sample(SHAPES, rng.randint(2, 4))
        patterns = rng.sample(PATTERNS, rng.randint(1, 3))
        kept = [k for k in pool if k.color in colors and k.shape in shapes and k.pattern in patterns]
        if kept:
            return kept


def sample_layout(sizes: Sequence[str], rng: random.Random) -> list[tuple[float, float, float]]:
    """Centers and radii (x, y, r) in pixels for objects of these sizes: one center per cell, MARGIN from its lines."""
    while True:
        placed: list[tuple[float, float, float]] = []
        occupied: set[tuple[int, int]] = set()
        for size in sizes:
            radius = rng.uniform(*RADII[size])
            edge = 0.8 * radius  # the image border may cut off a sliver of an object, not more
            for _ in range(30):
                x, y = rng.uniform(edge, CANVAS - edge), rng.uniform(edge, CANVAS - edge)
                cell = (int(x // CELL), int(y // CELL))
                near_line = not (MARGIN <= x % CELL <= CELL - MARGIN and MARGIN <= y % CELL <= CELL - MARGIN)
                if near_line or cell in occupied:
                    continue
                if any((x - u) ** 2 + (y - v) ** 2 < (MIN_SEPARATION * (radius + r)) ** 2 for u, v, r in placed):
                    continue
                placed.append((x, y, radius))
                occupied.add(cell)
                break
            else:
                break
        if len(placed) == len(sizes):
            return placed


def compose_scene(appearances: Sequence[Appearance], rng: random.Random) -> Scene:
    """Scene of exactly these appearances at random positions, in random drawing order."""
    appearances = list(appearances)
    rng.shuffle(appearances)
    layout = sample_layout([each.size for each in appearances], rng)
    objects = tuple(Object(*each, x, y, r) for each, (x, y, r) in zip(appearances, layout, strict=True))
    return Scene(objects, rng.getrandbits(32))


def sample_scene(rng: random.Random, pool: Sequence[Appearance] = SEEN, count: int | None = None) -> Scene:
    """Scene of ``count`` objects (default MIN_OBJECTS to MAX_OBJECTS) from a palette of ``pool``."""
    palette = sample_palette(rng, pool)
    return compose_scene([rng.choice(palette) for _ in range(count or rng.randint(MIN_OBJECTS, MAX_OBJECTS))], rng)
