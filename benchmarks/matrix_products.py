"""Time of the matrix products of a computation alone: recorded by shape, stride and dtype, then repeated."""

from __future__ import annotations

import time
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multitask_vl.models.kernels.cpu_precision import SLOW_THRESHOLD, low_precision_speedup

aten = torch.ops.aten
OUT_VARIANTS = {
    aten.mm.default: aten.mm.out,
    aten.mm.out: aten.mm.out,
    aten.bmm.default: aten.bmm.out,
    aten.addmm.default: aten.addmm.out,
    aten.baddbmm.default: aten.baddbmm.out,
}
"""Operation -> its variant that writes to an existing tensor."""


class ProductRecorder(TorchDispatchMode):
    """Context manager that counts matrix products by their operands, including those of backward passes."""

    def __init__(self):
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in OUT_VARIANTS:
            tensors = tuple((tuple(x.shape), x.stride(), x.dtype) for x in args if isinstance(x, torch.Tensor))
            self.counts[OUT_VARIANTS[func], tensors, (tuple(result.shape), result.dtype)] += 1
        return result

    def seconds(self, repeats: int = 3) -> float:
        """Total seconds of the recorded products, each at the fastest of several repeats."""
        total = 0.0
        for (operation, tensors, (shape, dtype)), count in self.counts.items():
            args = [_random_like(*one) for one in tensors]
            out = torch.empty(shape, dtype=dtype)
            times = []
            for _ in range(repeats + 1):
                started = time.perf_counter()
                operation(*args, out=out)
                times.append(time.perf_counter() - started)
            total += count * min(times[1:])
        return total


def slow_products_note() -> list[str]:
    """A note for tables in bfloat16 if this processor multiplies bfloat16 more slowly than float32, else []."""
    speedup = low_precision_speedup(torch.bfloat16)
    if speedup > SLOW_THRESHOLD:
        return []
    return [
        f"On this processor bfloat16 products run at {speedup:.2g} times the speed of float32 ones: compare rows in "
        "bf16 with each other, not with fp32."
    ]


def _random_like(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A random tensor of this layout, including overlapping rows."""
    numel = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return torch.randn(numel).to(dtype).as_strided(shape, stride)
