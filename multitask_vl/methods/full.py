"""Full fine-tuning: train every parameter; the tied word embedding counts once."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from multitask_vl.methods.base import Method
from multitask_vl.registry import METHODS


@METHODS.register("full")
class Full(Method):
    """Every parameter of the language model is trained, and the visual embedding as with every method."""

    exclusive = True

    def trainable_base_parameters(self) -> Iterable[nn.Parameter]:
        """All parameters of the language model."""
        return self.site_index.lm.parameters()

    def merge_blocker(self) -> None:
        """None: there are no new parameters to merge."""
