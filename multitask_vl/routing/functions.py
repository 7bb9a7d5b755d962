"""Routing functions: pure, parameter-free combinations of text and image values in a bottleneck.

Every function takes ``x_t`` [B, T, r], the hidden states after W_down, and ``x_v`` [B, S, r], the routing features
after the same W_down. It returns the [B, T, r] that replaces ``x_t`` before the non-linearity. With S = 1, the only
case in the published results, each costs O(T r). Source: "routing functions" paper (ECCV 2024), Section 3, Table 6.
"""

from __future__ import annotations

import torch

from multitask_vl.errors import InputError
from multitask_vl.registry import ROUTING


@ROUTING.register("none")
def none(x_t: torch.Tensor, x_v: torch.Tensor) -> torch.Tensor:
    """No routing: ``x_t`` unchanged."""
    return x_t


@ROUTING.register("mul")
def mul(x_t: torch.Tensor, x_v: torch.Tensor) -> torch.Tensor:
    """Element-wise product with the single routing row."""
    return x_t * _single_row("mul", x_v)


@ROUTING.register("add")
def add(x_t: torch.Tensor, x_v: torch.Tensor) -> torch.Tensor:
    """Sum with the single routing row."""
    return x_t + _single_row("add", x_v)


@ROUTING.register("mm1")
def mm1(x_t: torch.Tensor, x_v: torch.Tensor) -> torch.Tensor:
    """``x_t x_v^T x_v``: each token's projections onto the routing rows, summed back up. Defined for any S."""
    return _project(x_t, x_v, x_v)


@ROUTING.register("mm2")
def mm2(x_t: torch.Tensor, x_v: torch.Tensor) -> torch.Tensor:
    """``x_t X`` where each of the r rows of X is the routing row: the token's sum times that row."""
    return x_t.sum(-1, keepdim=True) * _single_row("mm2", x_v)


@ROUTING.register("mm1_relu")
def mm1_relu(x_t: torch.Tensor, x_v: torch.Tensor) -> torch.Tensor:
    """``ReLU(x_t) ReLU(x_v)^T x_v``: `mm1` with non-negative weights; no ReLU on the last factor."""
    return _project(torch.relu(x_t), torch.relu(x_v), x_v)


@ROUTING.register("mm1_ones")
def mm1_ones(x_t: torch.Tensor, x_v: torch.Tensor) -> torch.Tensor:
    """``x_t x_v^T 1``: `mm1` with ones as its last factor, so each token keeps one number (published code only)."""
    return _project(x_t, x_v, torch.ones_like(x_v))


@ROUTING.register("mm1_legacy_reshape")
def mm1_legacy_reshape(x_t: torch.Tensor, x_v: torch.Tensor) -> torch.Tensor:
    """`mm1` as the published code computes it: reshapes the S x r matrix to r x S instead of transposing it.

    Equals `mm1` for one row. For several rows it mixes rows and features and depends on the amount of padding. For
    parity with published runs over all rows only.
    """
    batch, rows, rank = x_v.shape
    return (x_t @ x_v.reshape(batch, rank, rows)) @ x_v


def _project(x_t: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``x_t keys^T values`` in the cheapest order: one scalar per token for one row, never more than r x r between."""
    rows, rank = keys.shape[1], keys.shape[2]
    if rows == 1:
        return (x_t * keys).sum(-1, keepdim=True) * values
    if rows > rank:
        return x_t @ (keys.transpose(1, 2) @ values)
    return (x_t @ keys.transpose(1, 2)) @ values


def _single_row(name: str, x_v: torch.Tensor) -> torch.Tensor:
    if x_v.shape[1] != 1:
        raise InputError(
            f'routing.function: "{name}" is defined for one routing row, not for {x_v.shape[1]}; '
            'set routing.pooling to mean or use "mm1"'
        )
    return x_v
