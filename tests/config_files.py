"""What do the configuration tests load: a plugin with a task, methods and a routing function, and YAMLs that use it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multitask_vl.errors import InputError
from multitask_vl.registry import METHODS, ROUTING, TASKS

PLUGIN = """
from typing import Literal

from multitask_vl.config.schema import MethodConfig, Section, TaskConfig
from multitask_vl.registry import METHODS, ROUTING, TASKS


class Files(Section):
    questions: str
    keys: list[int] = []


class ColourConfig(TaskConfig):
    splits: dict[str, Files] = {}
    style: Literal["short", "long"] = "short"


@TASKS.register("colours")
class Colours:
    Config = ColourConfig


class ThinConfig(MethodConfig):
    rank: int = 4
    scale: float = 1.0


@METHODS.register("thin")
class Thin:
    Config = ThinConfig


class ThickConfig(MethodConfig):
    depth: int = 2


@METHODS.register("thick")
class Thick:
    Config = ThickConfig


@ROUTING.register("swirl")
def swirl(x_t, x_v):
    return x_t
"""

RUN = """\
compose: [base.yaml]
plugins: [colour_plugin]
tasks:
  colours:
    prompt: "colour: "
    splits: {train: {questions: a.json, keys: [1, 2]}, report: {questions: b.json}}
  shades:
    type: colours
    splits: {train: {questions: c.json}}
method: {name: thin, rank: 8}
routing:
  function: {colours: swirl, shades: none}
evaluation: {during: [], final: [report]}
"""

BASE = """\
seed: 9595
training:
  lr: 1e-3
  steps: 100
method: {name: thin, scale: 0.5}
"""


def config_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with run.yaml, base.yaml and the plugin on the path; it is the current folder, so paths stay short."""
    for name, text in {"colour_plugin.py": PLUGIN, "run.yaml": RUN, "base.yaml": BASE}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    # The registries belong to the whole process: other tests go through all their names.
    for registry, names in ((TASKS, ["colours"]), (METHODS, ["thin", "thick"]), (ROUTING, ["swirl"])):
        for name in names:
            registry._entries.pop(name, None)
    sys.modules.pop("colour_plugin", None)


def problems_of(*args) -> list[str]:
    """What `load` complains about."""
    from multitask_vl.config import load

    with pytest.raises(InputError) as caught:
        load(*args)
    return caught.value.problems
