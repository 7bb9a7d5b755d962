"""Training steps on random batches."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from multitask_vl.config.schema import Config
from multitask_vl.data.batch import Batch
from multitask_vl.data.schedule import Schedule
from multitask_vl.models.build import build_model
from multitask_vl.training.state import TrainState
from multitask_vl.training.step import train_step

VISUAL_TOKENS = 49


class MeanLoss:
    """The part of a task that a step uses: the mean loss of all target tokens."""

    def reduce(
        self, token_loss: torch.Tensor, valid: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return numerator and denominator, scalars."""
        return token_loss.sum(), valid.sum()


class RandomSteps:
    """A model and one random batch per task, trained in turns.

    Args:
        config: of model and training; its weights are random.
        rows, input_tokens, target_tokens: size of a batch.
        vocabulary: token ids are drawn below it.
    """

    def __init__(self, config: Config, rows: int, input_tokens: int, target_tokens: int, vocabulary: int = 1000):
        names = list(config.tasks)
        self.schedule = Schedule(dict.fromkeys(names, rows), dict.fromkeys(names, rows), config.sampling, config.seed)
        self.model = build_model(config)
        tasks = {name: MeanLoss() for name in names}
        self.state = TrainState.create(self.model, tasks, self.schedule, config, Accelerator(cpu=True))
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(10, vocabulary, (rows, input_tokens), generator=generator)
        self.batches = {
            name: Batch(
                task=name,
                ids=[str(row) for row in range(rows)],
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                features=torch.randn(rows, 1, VISUAL_TOKENS, config.visual.feature_dim, generator=generator).half(),
                labels=torch.randint(10, vocabulary, (rows, target_tokens), generator=generator),
                weights=torch.ones(rows),
            )
            for name in names
        }

    def step(self) -> None:
        """Train one step."""
        plan = self.schedule.plan(self.state.step)
        train_step(self.state, plan, self.batches[plan.task])
