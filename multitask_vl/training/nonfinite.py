"""Steps whose loss or gradient is not finite: detection, description, and how many may be skipped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from multitask_vl.config.schema import TrainingConfig
from multitask_vl.data.batch import Batch
from multitask_vl.data.schedule import StepPlan
from multitask_vl.errors import InputError

MAX_IDS_SHOWN = 10


@dataclass
class SkipCounter:
    """Number of steps skipped because their loss or gradient was not finite.

    Attributes:
        total: in the run so far.
        in_a_row: consecutive ones up to the last step.
    """

    total: int = 0
    in_a_row: int = 0

    @classmethod
    def from_checkpoint(cls, record: Mapping[str, object]) -> SkipCounter:
        """Restore the counter kept in a checkpoint's record, zero if there is none."""
        return cls(**record.get("skips", {}))

    def reset(self) -> None:
        """Count a completed step, which ends a row of skipped ones."""
        self.in_a_row = 0

    def record(self, description: str, settings: TrainingConfig) -> None:
        """Count a skipped step.

        Raises:
            InputError: ``on_nonfinite`` is raise, or ``max_consecutive_skips`` is reached.
        """
        self.total += 1
        self.in_a_row += 1
        if settings.on_nonfinite == "raise":
            raise InputError(
                f"{description}. Lower training.lr or training.max_grad_norm, or inspect these examples; resume from "
                f"the last checkpoint with training.resume=auto, or skip such steps with training.on_nonfinite=skip"
            )
        if self.in_a_row >= settings.max_consecutive_skips:
            raise InputError(
                f"{description}; {self.in_a_row} steps in a row were skipped (training.max_consecutive_skips). Either "
                f"the weights are not finite or every example is bad: start from scratch with a lower training.lr, or "
                f"inspect features and examples"
            )


def is_finite(loss: float, norm: float, accelerator: Accelerator) -> bool:
    """Return whether a step may update the weights.

    With fp16 the scaler skips steps whose scaled gradient overflows and lowers its scale. Once the scale is below 1,
    the gradient overflows without it.
    """
    scaler = accelerator.scaler
    return math.isfinite(loss) and (math.isfinite(norm) or (scaler is not None and scaler.get_scale() >= 1))


def nonfinite_example_ids(
    micro_batches: Sequence[Batch], token_losses: Sequence[torch.Tensor], has_rows: bool, accelerator: Accelerator
) -> list[str]:
    """Return the ids of examples whose loss is not finite, over all processes; called on every one of them.

    Args:
        micro_batches: of this process.
        token_losses: losses [b, T] of each of them.
        has_rows: whether this process has rows of the batch.
    """
    ids = [id_ for micro_batch in micro_batches for id_ in micro_batch.ids]
    nonfinite = torch.cat([~torch.isfinite(losses).all(1) for losses in token_losses]).tolist()
    found = [id_ for id_, is_nonfinite in zip(ids, nonfinite, strict=True) if is_nonfinite and has_rows]
    return gather_object(found) if accelerator.num_processes > 1 else found


def describe_step(plan: StepPlan, loss: float, norm: float, ids: Sequence[str]) -> str:
    """Describe a non-finite step in one line."""
    shown = ", ".join(ids[:MAX_IDS_SHOWN]) + (f", ... ({len(ids)} in total)" if len(ids) > MAX_IDS_SHOWN else "")
    examples = f"examples {shown}" if ids else f"each of its {len(plan.rows)} examples has a finite loss"
    return f"step {plan.step}: loss {loss:.4g} and gradient norm {norm:.4g} on task {plan.task}: {examples}"
