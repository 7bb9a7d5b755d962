"""BitFit: train every bias of the language model, including those of layer norms (Ben Zaken et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from multitask_vl.methods.base import Method
from multitask_vl.registry import METHODS


@METHODS.register("bitfit")
class BitFit(Method):
    """All biases are trained, and the visual embedding as with every method. Compared in VL-PET's Table 2."""

    def trainable_base_parameters(self) -> Iterable[nn.Parameter]:
        """Every bias."""
        return self.site_index.biases()

    def merge_blocker(self) -> None:
        """None: there are no new parameters to merge."""
