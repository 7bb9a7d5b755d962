"""Configuration files and a plugin (task, methods, routing function) for the configuration tests."""

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


class ColorConfig(TaskConfig):
    splits: dict[str, Files] = {}
    style: Literal["short", "long"] = "short"


@TASKS.register("colors")
class Colors:
    Config = ColorConfig


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
plugins: [color_plugin]
tasks:
  colors:
    prompt: "color: "
    splits: {train: {questions: a.json, keys: [1, 2]}, test: {questions: b.json}}
  shades:
    type: colors
    splits: {train: {questions: c.json}}
method: {name: thin, rank: 8}
routing:
  function: {colors: swirl, shades: none}
evaluation: {eval_splits: [], final_splits: [test]}
"""

BASE = """\
seed: 9595
training:
  lr: 1e-3
  max_steps: 100
method: {name: thin, scale: 0.5}
"""


def config_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder with run.yaml, base.yaml and the plugin; it is on sys.path and is the working directory."""
    for name, text in {"color_plugin.py": PLUGIN, "run.yaml": RUN, "base.yaml": BASE}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    # registries are global: other tests iterate over their names
    for registry, names in ((TASKS, ["colors"]), (METHODS, ["thin", "thick"]), (ROUTING, ["swirl"])):
        for name in names:
            registry._entries.pop(name, None)
    sys.modules.pop("color_plugin", None)


def problems_of(*args) -> list[str]:
    """The problems that `load` reports."""
    from multitask_vl.config import load

    with pytest.raises(InputError) as caught:
        load(*args)
    return caught.value.problems
