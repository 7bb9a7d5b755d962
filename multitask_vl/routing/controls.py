"""What stands in for x_R in a control run: noise or ones (routing paper, Table B2)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch


def replacement(
    control: str, ids: Sequence[str], rows: int, width: int, like: torch.Tensor, training: bool, seed: int
) -> torch.Tensor:
    """The x_R of a control run, [B, rows, width], on the device and in the dtype of ``like``.

    Args:
        control: ``noise`` (standard normal) or ``ones``.
        ids: example ids of the batch, length B.
        training: noise is drawn afresh at every visit, from torch's generator (which a run seeds by step). Otherwise it
            is a function of ``seed`` and the example's id: neither batching nor the number of processes matters.
    """
    if control == "ones":
        return torch.ones(len(ids), rows, width, device=like.device, dtype=like.dtype)
    if control != "noise":
        raise ValueError(f"no such control: {control!r}")
    if training:
        return torch.randn(len(ids), rows, width, device=like.device, dtype=like.dtype)
    drawn = [
        torch.randn(rows, width, generator=torch.Generator().manual_seed(zlib.crc32(f"{seed}/{id_}".encode())))
        for id_ in ids
    ]
    return torch.stack(drawn).to(like)
