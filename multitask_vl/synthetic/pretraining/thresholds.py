"""Required accuracy of the bundled backbones' skills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Threshold:
    """Measured accuracy of a skill and its required minimum.

    Attributes:
        name: backbone and skill, e.g. ``"clip/shape"``.
        value: accuracy in percent.
        target: minimum accuracy in percent. None: published, not required.
        count: number of examples ``value`` is averaged over.
    """

    name: str
    value: float
    target: float | None
    count: int

    @property
    def passed(self) -> bool:
        """Whether the accuracy reaches the target, or none is required."""
        return self.target is None or self.value >= self.target

    def line(self) -> str:
        """Format as one line of a table."""
        required = "not required" if self.target is None else f"at least {self.target:g}"
        mark = "     " if self.target is None else "ok   " if self.passed else "MISS "
        return f"{mark} {self.name:32} {self.value:6.1f}  ({required}; {self.count} examples)"


def format_thresholds(thresholds: Sequence[Threshold]) -> str:
    """Table with one line per threshold and the number passed at the end."""
    num_missed = sum(not each.passed for each in thresholds)
    num_required = sum(each.target is not None for each in thresholds)
    return "\n".join(
        [*(each.line() for each in thresholds), f"{num_required - num_missed} of {num_required} thresholds passed"]
    )
