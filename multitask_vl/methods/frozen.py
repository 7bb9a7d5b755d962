"""What is trained when nothing of the language model is: the visual embedding alone."""

from __future__ import annotations

from multitask_vl.methods.base import Method
from multitask_vl.registry import METHODS


@METHODS.register("frozen")
class Frozen(Method):
    """The language model stays as it is."""

    alone = True

    def cannot_merge(self) -> None:
        """It can: nothing was added, so nothing is left to fold."""
