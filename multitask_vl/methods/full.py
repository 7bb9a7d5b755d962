"""What does full fine-tuning train: everything, the tied word table once."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from multitask_vl.methods.base import Method
from multitask_vl.registry import METHODS


@METHODS.register("full")
class Full(Method):
    """Every parameter of the language model (and, as always, the visual embedding)."""

    alone = True

    def trains(self) -> Iterable[nn.Parameter]:
        """All of the language model."""
        return self.layout.lm.parameters()

    def cannot_merge(self) -> None:
        """It can: nothing was added, so nothing is left to fold."""
