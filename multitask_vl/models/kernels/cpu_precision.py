"""Are 16 bits faster than 32 on this processor? Measured, since some that have instructions for them are slow at it."""

from __future__ import annotations

import time

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SHAPE = (256, 768, 768)
"""Of a product that is timed: rows, and the width of a base-size layer."""
SLOWER = 0.9
"""Up to this rate 16 bits count as slower; nearer to 1 is noise of the clock."""


def slower_than_fp32(setting: str, precision: str | None, device: torch.device | str) -> str | None:
    """What to tell someone who chose 16 bits on a processor that is slower in them; None where there is nothing to say.

    Args:
        setting: the key that chose it, for the message.
        precision: anything but bf16 and fp16 is nothing to talk about.
        device: nothing but a CPU is, either.
    """
    if precision not in DTYPES or torch.device(device).type != "cpu":
        return None
    rate = half_rate(DTYPES[precision])
    if rate > SLOWER:
        return None
    return (
        f"{setting}: {precision} saves memory, and takes longer than float32 on this processor: matrix products run at "
        f"{rate:.2g} times the speed ({torch.backends.cpu.get_cpu_capability()}, just measured)"
    )


def half_rate(dtype: torch.dtype, repeats: int = 5) -> float:
    """Speed of a matrix product in ``dtype`` over that in float32: each at its fastest of some, taken in turns."""
    rows, inner, columns = SHAPE
    fastest = {torch.float32: float("inf"), dtype: float("inf")}
    operands = {kind: (torch.ones(rows, inner, dtype=kind), torch.ones(columns, inner, dtype=kind)) for kind in fastest}
    for _ in range(repeats):
        for kind, (states, weight) in operands.items():
            started = time.perf_counter()
            torch.nn.functional.linear(states, weight)
            fastest[kind] = min(fastest[kind], time.perf_counter() - started)
    return fastest[torch.float32] / fastest[dtype]
