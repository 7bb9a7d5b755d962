"""What is in a picture of the embedded world: objects with four attributes and a place, and how scenes are sampled."""

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
"""Also the order in which English puts them: "large striped red star"."""

CANVAS = 128
"""Side of a picture in pixels."""
CELL = 32
"""Side of a grid cell of the trunk in pixels; a picture has GRID x GRID of them."""
GRID = CANVAS // CELL
MARGIN = 4
"""Centres keep so many pixels from the lines between cells: nearer ones cannot be told apart at the trunk's grid."""
RADII = {"small": (13.0, 15.0), "large": (21.0, 25.0)}
APART = 0.8
"""Two centres are at least this share of r1 + r2 apart, so that one object hides only a little of another."""
FEWEST, MOST = 2, 5
"""Objects in a scene."""


class Look(NamedTuple):
    """What an object looks like: one value of each attribute."""

    size: str
    pattern: str
    color: str
    shape: str


ALL = tuple(Look(s, p, c, f) for s in SIZES for p in PATTERNS for c in COLORS for f in SHAPES)
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
"""Colour and shape never seen together in train, tune and report: neither drawn nor named."""
HELD_OUT = tuple(look for look in ALL if (look.color, look.shape) in HELD_OUT_PAIRS)
SEEN = tuple(look for look in ALL if (look.color, look.shape) not in HELD_OUT_PAIRS)


@dataclass(frozen=True, slots=True)
class Filter:
    """A description that objects match or not; None leaves an attribute open.

    ``Filter(color="red", shape="star")`` is "red star"; ``Filter(color="red")`` is "red thing".
    """

    size: str | None = None
    pattern: str | None = None
    color: str | None = None
    shape: str | None = None

    @classmethod
    def of(cls, look: Look | Object, attributes: Iterable[str]) -> Filter:
        """The filter that names these attributes of ``look``."""
        return cls(**{name: getattr(look, name) for name in attributes})

    @property
    def named(self) -> tuple[str, ...]:
        """Attributes it names, in the order of `ATTRIBUTES`."""
        return tuple(name for name in ATTRIBUTES if getattr(self, name) is not None)

    @property
    def names_held_out(self) -> bool:
        """Whether it names a held-out pair of colour and shape."""
        return (self.color, self.shape) in HELD_OUT_PAIRS

    def matches(self, look: Look | Object) -> bool:
        """Whether ``look`` has every value named."""
        return (
            (self.size is None or self.size == look.size)
            and (self.pattern is None or self.pattern == look.pattern)
            and (self.color is None or self.color == look.color)
            and (self.shape is None or self.shape == look.shape)
        )

    def count(self, looks: Iterable[Look | Object]) -> int:
        """How many match."""
        return sum(map(self.matches, looks))


@dataclass(frozen=True, slots=True)
class Object:
    """One thing in a picture: a look, a centre in pixels (x to the right, y down) and a radius."""

    size: str
    pattern: str
    color: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def look(self) -> Look:
        return Look(self.size, self.pattern, self.color, self.shape)

    @property
    def column(self) -> int:
        """Column of its centre's grid cell, 0 (left) to GRID - 1."""
        return int(self.x // CELL)

    @property
    def row(self) -> int:
        """Row of its centre's grid cell, 0 (top) to GRID - 1."""
        return int(self.y // CELL)

    @property
    def cell(self) -> int:
        """Row-major number of its centre's cell, 0 to GRID^2 - 1; no two objects of a scene share one."""
        return self.row * GRID + self.column

    @property
    def place(self) -> str:
        """The quarter of the picture that holds its centre: ``"top left"`` and so on."""
        return f"{'top' if self.row < GRID // 2 else 'bottom'} {'left' if self.column < GRID // 2 else 'right'}"


PLACES = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture before it is drawn.

    Attributes:
        objects: FEWEST to MOST of them (1 in pretraining), later ones in front.
        style: seed of everything that carries no meaning: background, clutter, noise, shades, tilts.
    """

    objects: tuple[Object, ...]
    style: int = 0


RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def holds(relation: str, one: Object, other: Object) -> bool:
    """Whether ``one`` is ``relation`` ``other``: decided by columns or rows, so by 2 * MARGIN pixels at least."""
    if relation == "left of":
        return one.column < other.column
    if relation == "right of":
        return one.column > other.column
    if relation == "above":
        return one.row < other.row
    if relation == "below":
        return one.row > other.row
    raise ValueError(f"no relation {relation!r}")


def stream(*names: object) -> random.Random:
    """A generator of its own for whatever ``names`` say, e.g. ``stream(seed, "vqa", "train")``.

    Python's generator seeded by a string gives the same numbers on every machine and in every process.
    """
    return random.Random("/".join(map(str, names)))


def palette(rng: random.Random, pool: Sequence[Look]) -> list[Look]:
    """Looks of 2-4 colours, 2-4 shapes and 1-3 patterns out of ``pool``.

    A scene drawn from few values has things to count, to compare and to confuse; one drawn from all has none.
    """
    while True:
        colors = rng.sample(COLORS, rng.randint(2, 4))
        shapes = rng.sample(SHAPES, rng.randint(2, 4))
        patterns = rng.sample(PATTERNS, rng.randint(1, 3))
        looks = [k for k in pool if k.color in colors and k.shape in shapes and k.pattern in patterns]
        if looks:
            return looks


def layout(sizes: Sequence[str], rng: random.Random) -> list[tuple[float, float, float]]:
    """Centres and radii (x, y, r) in pixels for objects of these sizes: one centre a cell, MARGIN from its lines."""
    while True:
        placed: list[tuple[float, float, float]] = []
        taken: set[tuple[int, int]] = set()
        for size in sizes:
            radius = rng.uniform(*RADII[size])
            edge = 0.8 * radius  # at most a sliver of an object is cut off by the picture's edge
            for _ in range(30):
                x, y = rng.uniform(edge, CANVAS - edge), rng.uniform(edge, CANVAS - edge)
                cell = (int(x // CELL), int(y // CELL))
                near_line = not (MARGIN <= x % CELL <= CELL - MARGIN and MARGIN <= y % CELL <= CELL - MARGIN)
                if near_line or cell in taken:
                    continue
                if any((x - u) ** 2 + (y - v) ** 2 < (APART * (radius + r)) ** 2 for u, v, r in placed):
                    continue
                placed.append((x, y, radius))
                taken.add(cell)
                break
            else:
                break
        if len(placed) == len(sizes):
            return placed


def compose(looks: Sequence[Look], rng: random.Random) -> Scene:
    """A scene of exactly these looks at random places, in random drawing order."""
    looks = list(looks)
    rng.shuffle(looks)
    places = layout([look.size for look in looks], rng)
    return Scene(
        tuple(Object(*look, x, y, r) for look, (x, y, r) in zip(looks, places, strict=True)), rng.getrandbits(32)
    )


def sample_scene(rng: random.Random, pool: Sequence[Look] = SEEN, count: int | None = None) -> Scene:
    """A scene of ``count`` (default FEWEST to MOST) objects out of a palette of ``pool``, built for no question."""
    looks = palette(rng, pool)
    return compose([rng.choice(looks) for _ in range(count or rng.randint(FEWEST, MOST))], rng)
