"""How is every weight of the language model trained beside adapters: `full`, which else tolerates no other method.

For the embedded study alone: `plugins=[studies.synthetic_world.full_plus_adapter]`, `method=[{name: adapter}, {name: full_beside}]`.
"""

from __future__ import annotations

from multitask_vl.methods.full import Full
from multitask_vl.registry import METHODS


@METHODS.register("full_beside")
class FullBeside(Full):
    """All that `full` trains, and what the other methods add."""

    alone = False
