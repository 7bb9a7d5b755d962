"""Frobenius norms of the weight changes of each bottleneck during training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from multitask_vl.methods.sites import EVERY_TASK
from multitask_vl.models.seq2seq import VLSeq2Seq

PARTS = {"down": "W_down", "A": "W_down", "up": "W_up", "B": "W_up"}
"""Segment of a parameter name -> symbol of the projection in the papers."""


def initial_values(model: VLSeq2Seq) -> dict[str, torch.Tensor]:
    """Copies of all trainable parameters; call it right after building the model to get the values before training."""
    return {name: parameter.detach().clone() for name, parameter in model.trainable_parameters().items()}


def norm_changes(model: VLSeq2Seq, initial: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Norms of the weight changes at each site of the language model.

    The norm of a part is taken over all its tensors together. For methods with factorized projections (Compacter), it
    is taken over the factors. Vectors count only at sites that train no matrix (BitFit).

    Args:
        model: the trained model.
        initial: from `initial_values`.

    Returns:
        one dict per site, part and task (None: shared by all): ``stack``, ``layer`` from 0, ``sublayer``, ``role``,
        ``part``, ``task``, ``change`` (norm of the difference) and ``initial`` (norm before training).
    """
    site_index = model.backbone.sites(model.lm)
    trained = model.trainable_parameters()
    rows = []
    for site in site_index.sites:
        prefix = f"lm.{site.name}."
        names = {name.removeprefix(prefix): name for name in trained if name.startswith(prefix)}
        matrices = {short: name for short, name in names.items() if trained[name].dim() > 1}
        sums: dict[tuple[str, str | None], list[float]] = {}
        for short, name in (matrices or names).items():
            segments = short.split(".")
            task = next((segment for segment in segments if segment in model.config.tasks), None)
            before, after = initial[name].double(), trained[name].detach().double()
            squares = sums.setdefault((_part(segments), task), [0.0, 0.0])
            squares[0] += (after - before.to(after.device)).square().sum().item()
            squares[1] += before.square().sum().item()
        location = {"stack": site.stack, "layer": site.layer, "sublayer": site.sublayer, "role": site.role}
        for (part, task), (change, start) in sums.items():
            norms = {"change": math.sqrt(change), "initial": math.sqrt(start)}
            rows.append({**location, "part": part, "task": task, **norms})
    return rows


def _part(segments: list[str]) -> str:
    if "gate" in segments:
        return "gate"
    known = next((PARTS[segment] for segment in segments if segment in PARTS), None)
    return known or next(segment for segment in reversed(segments) if segment != EVERY_TASK)
