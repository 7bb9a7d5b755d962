"""How far did training move each bottleneck: Frobenius norms of the change of W_down and W_up, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from multitask_vl.methods.sites import EVERY_TASK
from multitask_vl.models.seq2seq import VLSeq2Seq

PARTS = {"down": "W_down", "A": "W_down", "up": "W_up", "B": "W_up"}
"""A segment of a parameter's name -> what the papers call the map that it belongs to."""


def initial_values(model: VLSeq2Seq) -> dict[str, torch.Tensor]:
    """Copies of all that is trained; taken of a model just built, they are what training began at."""
    return {name: parameter.detach().clone() for name, parameter in model.trainable().items()}


def norm_changes(model: VLSeq2Seq, initial: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """What training changed at each site of the language model.

    Tensors of one part are taken together: the norm of all their changes. Where a method makes its maps of factors
    (compacter), it is the factors that are measured. Vectors count only where a site trains nothing else (BitFit).

    Args:
        initial: see `initial_values`.

    Returns:
        a row for each site, part and task (None: shared by all): ``stack``, ``layer`` from 0, ``sublayer``, ``role``,
        ``part``, ``task``, ``change`` (norm of the difference) and ``initial`` (norm at the start).
    """
    layout = model.family.layout(model.lm)
    now = model.trainable()
    rows = []
    for site in layout.sites:
        inside = f"lm.{site.name}."
        found = {name.removeprefix(inside): name for name in now if name.startswith(inside)}
        matrices = {short: name for short, name in found.items() if now[name].dim() > 1}
        sums: dict[tuple[str, str | None], list[float]] = {}
        for short, name in (matrices or found).items():
            words = short.split(".")
            task = next((word for word in words if word in model.config.tasks), None)
            before, after = initial[name].double(), now[name].detach().double()
            squares = sums.setdefault((_part(words), task), [0.0, 0.0])
            squares[0] += (after - before.to(after.device)).square().sum().item()
            squares[1] += before.square().sum().item()
        about = {"stack": site.stack, "layer": site.layer, "sublayer": site.sublayer, "role": site.role}
        for (part, task), (change, start) in sums.items():
            rows.append({**about, "part": part, "task": task, "change": math.sqrt(change), "initial": math.sqrt(start)})
    return rows


def _part(words: list[str]) -> str:
    if "gate" in words:
        return "gate"
    named = next((PARTS[word] for word in words if word in PARTS), None)
    return named or next(word for word in reversed(words) if word != EVERY_TASK)
