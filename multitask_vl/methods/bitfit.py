"""What does BitFit train: every bias of the language model, layer norms' included (VL-PET Table 2; Ben Zaken 2022)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from multitask_vl.methods.base import Method
from multitask_vl.registry import METHODS


@METHODS.register("bitfit")
class BitFit(Method):
    """Biases only (and, as always, the visual embedding)."""

    def trains(self) -> Iterable[nn.Parameter]:
        """Every bias."""
        return self.layout.biases()

    def cannot_merge(self) -> None:
        """It can: nothing was added, so nothing is left to fold."""
