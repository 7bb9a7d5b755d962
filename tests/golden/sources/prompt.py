"""Prompts: a dictionary of tasks in the encoder, each an embedding and the two layers of its MLP."""

from __future__ import annotations

import re
from collections.abc import Iterator

from multitask_vl.methods.prompt import PromptConfig
from multitask_vl.methods.sites import EVERY_TASK
from tests.golden.fixture import Fixture

NAME = re.compile(
    r"(?:model\.)?(?:encoder\.)?prompt_modules\.prompts\.(?P<task>\w+)\.prefix_embedding\.(?P<part>[013]\.(?:weight|bias))"
)


def found(fixture: Fixture) -> PromptConfig | None:
    """The configuration that the tensors imply: number of tokens, width and sharing."""
    stored = {match["part"]: name for name in fixture.weights if (match := NAME.fullmatch(name))}
    if not stored:
        return None
    tasks = {match["task"] for name in fixture.weights if (match := NAME.fullmatch(name))}
    return PromptConfig(
        name="prompt",
        num_tokens=len(fixture.weights[stored["0.weight"]]),
        hidden_dim=len(fixture.weights[stored["1.weight"]]) if "1.weight" in stored else 1,
        sharing="per_task" if len(tasks) > 1 else "single",
        reparameterize="1.weight" in stored,
    )


def names(name: str) -> Iterator[str]:
    """Our candidate names of a tensor in the method's shared module."""
    if match := NAME.fullmatch(name):
        yield from (f"shared_modules.prompt.{one}.{match['part']}" for one in (match["task"], EVERY_TASK))


def task(name: str) -> str | None:
    """The task in a prompt's name."""
    match = NAME.fullmatch(name)
    return match["task"] if match else None
