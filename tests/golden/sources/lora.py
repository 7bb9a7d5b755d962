"""LoRA: two dictionaries of tasks in a projection."""

from __future__ import annotations

import re
from collections.abc import Iterator

from multitask_vl.methods.lora import LoraConfig
from multitask_vl.methods.sites import EVERY_TASK
from tests.golden.fixture import Fixture

NAME = re.compile(r"(?P<site>(?:model\.)?(?:encoder|decoder)\..*\.\w+)\.lora_(?P<half>A|B)s\.(?P<task>\w+)")


def found(fixture: Fixture) -> LoraConfig | None:
    """The configuration: rank and sharing from the tensors, alpha from the arguments."""
    downs = [name for name in fixture.weights if ".lora_As." in name]
    if not downs:
        return None
    flag = re.search(r"--lora_alpha[ =]([\d.]+)", fixture.meta.get("flags", ""))
    return LoraConfig(
        name="lora",
        rank=fixture.weights[downs[0]].shape[0],
        alpha=float(fixture.argument("lora_alpha", flag[1] if flag else 32)),
        sharing="per_task" if len({task(name) for name in downs}) > 1 else "single",
        biases="all" if fixture.trained_biases else "none",
    )


def names(name: str) -> Iterator[str]:
    """Our candidate names of a site's A or B."""
    if match := NAME.fullmatch(name):
        yield from (f"lm.{match['site']}.{match['half']}.{one}.weight" for one in (match["task"], EVERY_TASK))


def task(name: str) -> str | None:
    """The task in a LoRA tensor's name."""
    match = NAME.fullmatch(name)
    return match["task"] if match else None
