"""Multitask vision-language fine-tuning with parameter-efficient methods and routing functions in their bottlenecks.

    import multitask_vl as mvl

    config = mvl.load_config("configs/examples/quickstart.yaml", ["training.lr=3e-4"])
    model = mvl.build_model(config)
    model, tokenizer = mvl.from_pretrained("runs/quickstart")
    pipeline = mvl.Pipeline.from_pretrained("runs/quickstart")
    mvl.METHODS.names()

Names are imported on first use (PEP 562): importing the package itself loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multitask_vl.config import load_config
    from multitask_vl.inference import Pipeline
    from multitask_vl.models.build import build_model
    from multitask_vl.models.from_pretrained import from_pretrained
    from multitask_vl.registry import BACKBONES, METHODS, ROUTING, TASKS

__version__ = "0.1.0"
__all__ = ["BACKBONES", "METHODS", "ROUTING", "TASKS", "Pipeline", "build_model", "from_pretrained", "load_config"]

_MODULES = {
    "load_config": "multitask_vl.config",
    "build_model": "multitask_vl.models.build",
    "from_pretrained": "multitask_vl.models.from_pretrained",
    "Pipeline": "multitask_vl.inference",
    "METHODS": "multitask_vl.registry",
    "TASKS": "multitask_vl.registry",
    "ROUTING": "multitask_vl.registry",
    "BACKBONES": "multitask_vl.registry",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
