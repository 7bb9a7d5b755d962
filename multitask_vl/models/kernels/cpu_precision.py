"""Measured speed of 16-bit matrix products on a CPU: some processors with 16-bit instructions are slow at them."""

from __future__ import annotations

import time

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SHAPE = (256, 768, 768)
"""Shape of the timed product: rows, and the width of a base-size layer."""
SLOW_THRESHOLD = 0.9
"""Relative speed up to which 16 bits count as slower; values nearer to 1 are timer noise."""


def slow_precision_warning(setting: str, precision: str | None, device: torch.device | str) -> str | None:
    """Warning that the chosen precision is slower than float32 on this processor, or None.

    Args:
        setting: configuration key that chose the precision, for the message.
        precision: only bf16 and fp16 are measured.
        device: only a CPU is measured.
    """
    if precision not in DTYPES or torch.device(device).type != "cpu":
        return None
    speedup = low_precision_speedup(DTYPES[precision])
    if speedup > SLOW_THRESHOLD:
        return None
    return (
        f"{setting}: {precision} saves memory but is slower than float32 on this processor: matrix products run at "
        f"{speedup:.2g} times the speed ({torch.backends.cpu.get_cpu_capability()}, just measured)"
    )


def low_precision_speedup(dtype: torch.dtype, repeats: int = 5) -> float:
    """Speed of a matrix product in ``dtype`` relative to float32: best of ``repeats``, measured alternately."""
    rows, inner, columns = SHAPE
    fastest = {torch.float32: float("inf"), dtype: float("inf")}
    operands = {kind: (torch.ones(rows, inner, dtype=kind), torch.ones(columns, inner, dtype=kind)) for kind in fastest}
    for _ in range(repeats):
        for kind, (hidden, weight) in operands.items():
            start = time.perf_counter()
            torch.nn.functional.linear(hidden, weight)
            fastest[kind] = min(fastest[kind], time.perf_counter() - start)
    return fastest[torch.float32] / fastest[dtype]
