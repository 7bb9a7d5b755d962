"""How are prompts named: a dictionary of tasks in the encoder, each a table and the two maps of its MLP."""

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
    """Length, width and sharing, read off the tensors."""
    stored = {match["part"]: name for name in fixture.weights if (match := NAME.fullmatch(name))}
    if not stored:
        return None
    tasks = {match["task"] for name in fixture.weights if (match := NAME.fullmatch(name))}
    return PromptConfig(
        name="prompt",
        length=len(fixture.weights[stored["0.weight"]]),
        mid=len(fixture.weights[stored["1.weight"]]) if "1.weight" in stored else 1,
        sharing="per_task" if len(tasks) > 1 else "single",
        reparametrize="1.weight" in stored,
    )


def names(name: str) -> Iterator[str]:
    """The same part of the method's own module."""
    if match := NAME.fullmatch(name):
        yield from (f"beside.prompt.{one}.{match['part']}" for one in (match["task"], EVERY_TASK))


def task(name: str) -> str | None:
    """The task in a prompt's name."""
    match = NAME.fullmatch(name)
    return match["task"] if match else None
