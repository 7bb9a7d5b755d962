"""How does prompt tuning work: learned embeddings before every text, made by an MLP from a table of the same length.

Lester et al. (2021) with the reparametrisation of prefix tuning (Li and Liang 2021), as VL-Adapter runs it: 40 prompts,
``W_2 tanh(W_1 e + b_1) + b_2``. They have no positions of their own; BART's norm of the embeddings is theirs as well.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from multitask_vl.config.schema import MethodConfig, Positive
from multitask_vl.methods.base import Method
from multitask_vl.methods.sites import Layout, PerTask
from multitask_vl.registry import METHODS
from multitask_vl.routing.context import Context


class PromptConfig(MethodConfig):
    """Keys of ``method: {name: prompt, ...}``."""

    length: Positive = 40
    """Embeddings before every text, P."""
    mid: Positive = 800
    """Width of the MLP's hidden layer; without `reparametrize` it plays no part."""
    sharing: Literal["single", "per_task"] = "single"
    """The same prompts for all tasks, or prompts for each."""
    reparametrize: bool = True
    """Whether the MLP makes the prompts of the table (published); if not, they are the table."""


@METHODS.register("prompt")
class Prompt(Method[PromptConfig]):
    """Prompts before the encoder's text. Nothing of the language model is trained, its norms included."""

    Config = PromptConfig
    # attention to even a zero prompt takes its share from the words
    identity = None
    variants = ({"reparametrize": False},)

    def __init__(self, config: PromptConfig, context: Context, layout: Layout):
        super().__init__(config, context, layout)
        self.module = PerTask(self._make, context.tasks if config.sharing == "per_task" else None)

    def _make(self) -> nn.Sequential:
        length, mid, width = self.config.length, self.config.mid, self.layout.width
        table = self.layout.embedding(length, width)
        if not self.config.reparametrize:
            return nn.Sequential(table)
        return nn.Sequential(table, self.layout.linear(width, mid), nn.Tanh(), self.layout.linear(mid, width))

    def prompt(self, task: str) -> torch.Tensor:
        """[P, d]."""
        table, *mlp = self.module.of(task)
        prompts = table.weight
        for part in mlp:
            prompts = part(prompts)
        return prompts
