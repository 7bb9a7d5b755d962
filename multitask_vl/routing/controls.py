"""Replacements of x_R in control runs: noise or ones (routing paper, Table B2)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch


def control_x_r(
    control: str, ids: Sequence[str], rows: int, width: int, like: torch.Tensor, training: bool, seed: int
) -> torch.Tensor:
    """The x_R of a control run [B, rows, width], on the device and in the dtype of ``like``.

    Args:
        control: ``noise`` (standard normal) or ``ones``.
        ids: example ids of the batch, length B.
        training: draw new noise at every step, from torch's generator, which a run seeds by step. Otherwise noise is a
            function of ``seed`` and the example's id, independent of batching and of the number of processes.
    """
    if control == "ones":
        return torch.ones(len(ids), rows, width, device=like.device, dtype=like.dtype)
    if control != "noise":
        raise ValueError(f"unknown control {control!r}; use noise or ones")
    if training:
        return torch.randn(len(ids), rows, width, device=like.device, dtype=like.dtype)
    noise = [
        torch.randn(rows, width, generator=torch.Generator().manual_seed(zlib.crc32(f"{seed}/{id_}".encode())))
        for id_ in ids
    ]
    return torch.stack(noise).to(like)
