"""What is a gate: a measured skill of a shipped backbone, and the least that it must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """One skill as measured.

    Attributes:
        name: which backbone and skill, e.g. ``"clip/shape"``.
        value: accuracy in percent.
        target: the least that passes, in percent. None: published, not required.
        count: items the value is a mean over.
    """

    name: str
    value: float
    target: float | None
    count: int

    @property
    def passed(self) -> bool:
        return self.target is None or self.value >= self.target

    def line(self) -> str:
        """One line for people."""
        asked = "not required" if self.target is None else f"at least {self.target:g}"
        mark = "     " if self.target is None else "ok   " if self.passed else "MISS "
        return f"{mark} {self.name:32} {self.value:6.1f}  ({asked}; {self.count} items)"


def table(gates: Sequence[Gate]) -> str:
    """All lines, and a last one that counts the misses."""
    missed = sum(not gate.passed for gate in gates)
    required = sum(gate.target is not None for gate in gates)
    return "\n".join([*(gate.line() for gate in gates), f"{required - missed} of {required} required gates passed"])
