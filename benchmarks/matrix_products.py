"""How long do the matrix products of a piece of work take alone: recorded by shape, stride and type, and redone."""

from __future__ import annotations

import time
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multitask_vl.models.kernels.cpu_precision import SLOWER, half_rate

aten = torch.ops.aten
SEEN = {
    aten.mm.default: aten.mm.out,
    aten.mm.out: aten.mm.out,
    aten.bmm.default: aten.bmm.out,
    aten.addmm.default: aten.addmm.out,
    aten.baddbmm.default: aten.baddbmm.out,
}
"""Operation -> the same one into memory that is there."""


class Products(TorchDispatchMode):
    """While it is entered, matrix products are counted by what they work on; backward passes included."""

    def __init__(self):
        super().__init__()
        self.found: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in SEEN:
            tensors = tuple((tuple(x.shape), x.stride(), x.dtype) for x in args if isinstance(x, torch.Tensor))
            self.found[SEEN[func], tensors, (tuple(result.shape), result.dtype)] += 1
        return result

    def seconds(self, repeats: int = 3) -> float:
        """The fastest of some repeats of each kind, times how often it occurred."""
        total = 0.0
        for (operation, tensors, (shape, dtype)), count in self.found.items():
            args = [_like(*one) for one in tensors]
            out = torch.empty(shape, dtype=dtype)
            times = []
            for _ in range(repeats + 1):
                started = time.perf_counter()
                operation(*args, out=out)
                times.append(time.perf_counter() - started)
            total += count * min(times[1:])
        return total


def slow_products_note() -> list[str]:
    """What a table in bfloat16 must say where its products are slower than float32 ones; [] where they are not."""
    rate = half_rate(torch.bfloat16)
    if rate > SLOWER:
        return []
    return [
        f"On this processor bfloat16 products run at {rate:.2g} times the speed of float32 ones: rows in bf16 tell how "
        "they compare with each other, not with fp32."
    ]


def _like(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Random numbers laid out alike, also where rows share their memory."""
    needed = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return torch.randn(needed).to(dtype).as_strided(shape, stride)
