"""Full fine-tuning that combines with adapters, unlike `full`.

Used by this study only: `plugins=[studies.synthetic_world.full_plus_adapter]` and
`method=[{name: adapter}, {name: full_plus_adapter}]`.
"""

from __future__ import annotations

from multitask_vl.methods.full import Full
from multitask_vl.registry import METHODS


@METHODS.register("full_plus_adapter")
class FullPlusAdapter(Full):
    """`full` without its exclusion of other methods."""

    exclusive = False
