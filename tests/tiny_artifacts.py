"""Models that can be rebuilt from a saved folder: tiny ones whose configuration names a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multitask_vl.config.schema import Config
from multitask_vl.errors import InputError
from multitask_vl.models.build import build_model, load_tokenizer
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.synthetic.tokenizer import build_tokenizer, save_tokenizer
from tests.tiny_models import perturb, tiny_config


def write_tokenizer(folder: Path) -> Path:
    """Write a tokenizer and return its folder."""
    save_tokenizer(build_tokenizer(["red", "blue"]), folder)
    return folder


def artifact_config(
    tokenizer: Path, method: str = "lora", routing: dict[str, Any] | None = None, family: str = "bart", **settings: Any
) -> Config:
    """`tiny_config` with the tokenizer in a folder and an embedding table of its size."""
    config = tiny_config(method, routing, family, **settings)
    sizes = {key: value for key, value in config.backbone.config.items() if key != "vocab_size"}
    backbone = {"config": sizes, "tokenizer": str(tokenizer), "extra_tokens": 200}
    return config.model_copy(update={"backbone": config.backbone.model_copy(update=backbone)})


def build_from_config(config: Config) -> VLSeq2Seq:
    """The model of a configuration that names a tokenizer, in eval mode."""
    return build_model(config, load_tokenizer(config.backbone)).eval()


def artifact_model(tokenizer: Path, *args: Any, **settings: Any) -> VLSeq2Seq:
    """A perturbed model of `artifact_config`."""
    return perturb(build_from_config(artifact_config(tokenizer, *args, **settings)))


def assert_input_error(call: Callable[[], object], *parts: str) -> None:
    """Assert that ``call`` raises an InputError that contains each of ``parts``, one line per problem."""
    with pytest.raises(InputError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)
    assert all("\n" not in problem for problem in caught.value.problems)
