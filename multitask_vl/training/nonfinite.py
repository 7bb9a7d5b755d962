"""What if a loss or a gradient is not a number: which task, step and examples, and whether the run goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from multitask_vl.config.schema import TrainingConfig
from multitask_vl.data.batch import Batch
from multitask_vl.data.schedule import Draw
from multitask_vl.errors import InputError

NAMED = 10
"""Examples that are named; more are counted."""


@dataclass
class Skips:
    """How many steps were left out because their loss or gradient was not finite.

    Attributes:
        total: in the whole run.
        in_a_row: up to the last step.
    """

    total: int = 0
    in_a_row: int = 0

    @classmethod
    def of(cls, state: Mapping[str, object]) -> Skips:
        """As kept with a checkpoint; none were before this was kept."""
        return cls(**state.get("skips", {}))

    def taken(self) -> None:
        """A step was taken."""
        self.in_a_row = 0

    def left_out(self, what: str, settings: TrainingConfig) -> None:
        """A step is to be left out, or the run ends here.

        Raises:
            InputError: ``on_nonfinite`` is stop, or as many steps in a row were left out as may be.
        """
        self.total += 1
        self.in_a_row += 1
        if settings.on_nonfinite == "stop":
            raise InputError(
                f"{what}. Lower training.lr or training.clip_norm, or look at these examples; go on from the last "
                f"checkpoint with training.resume=auto, or leave such steps out by training.on_nonfinite=skip as well"
            )
        if self.in_a_row >= settings.max_skips:
            raise InputError(
                f"{what}; with it {self.in_a_row} steps in a row were left out (training.max_skips). The weights "
                f"themselves are broken, or every example is: lower training.lr and start afresh, or look at the "
                f"features and examples"
            )


def is_finite(loss: float, norm: float, accelerator: Accelerator) -> bool:
    """Whether a step may be taken.

    With fp16 the scaler itself leaves out steps whose scaled gradient overflows, and scales by less the next time. Once
    it scales nothing up any more, the gradient overflows by itself.
    """
    scaler = accelerator.scaler
    return math.isfinite(loss) and (math.isfinite(norm) or (scaler is not None and scaler.get_scale() >= 1))


def guilty_ids(
    pieces: Sequence[Batch], losses: Sequence[torch.Tensor], counted: bool, accelerator: Accelerator
) -> list[str]:
    """Examples of a step whose loss is not finite, over all processes; called on every one of them. [] if all are.

    Args:
        pieces: micro-batches of this process.
        losses: per-token losses [b, T] of each of them.
        counted: whether this process's rows are of the step at all.
    """
    ids = [id_ for piece in pieces for id_ in piece.ids]
    bad = torch.cat([~torch.isfinite(piece).all(1) for piece in losses]).tolist()
    found = [id_ for id_, is_bad in zip(ids, bad, strict=True) if is_bad and counted]
    return gather_object(found) if accelerator.num_processes > 1 else found


def told(draw: Draw, loss: float, norm: float, ids: Sequence[str]) -> str:
    """What is wrong with a step, in a line."""
    named = ", ".join(ids[:NAMED]) + (f", ... ({len(ids)} in all)" if len(ids) > NAMED else "")
    who = f"examples {named}" if ids else f"each of its {len(draw.rows)} examples has a finite loss"
    return f"step {draw.step}: loss {loss:.4g} and gradient norm {norm:.4g} on task {draw.task}: {who}"
