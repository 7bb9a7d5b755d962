"""Frozen language model: only the visual embedding is trained."""

from __future__ import annotations

from multitask_vl.methods.base import Method
from multitask_vl.registry import METHODS


@METHODS.register("frozen")
class Frozen(Method):
    """No parameter of the language model is trained."""

    exclusive = True

    def merge_blocker(self) -> None:
        """None: there are no new parameters to merge."""
