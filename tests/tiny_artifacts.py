"""Models that a folder can bring back: tiny ones whose configuration names all that they are made of."""

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
from tests.tiny_models import shaken, tiny_config


def write_words(folder: Path) -> Path:
    """Write a tokenizer; returns its folder."""
    save_tokenizer(build_tokenizer(["red", "blue"]), folder)
    return folder


def whole_config(
    words: Path, method: str = "lora", routing: dict[str, Any] | None = None, family: str = "bart", **settings: Any
) -> Config:
    """As `tiny_config`, with the tokenizer in folder ``words`` and the rows that it needs."""
    config = tiny_config(method, routing, family, **settings)
    sizes = {key: value for key, value in config.backbone.config.items() if key != "vocab_size"}
    backbone = {"config": sizes, "tokenizer": str(words), "extra_tokens": 200}
    return config.model_copy(update={"backbone": config.backbone.model_copy(update=backbone)})


def built(config: Config) -> VLSeq2Seq:
    """The model of a configuration that names a tokenizer, in eval mode."""
    return build_model(config, load_tokenizer(config.backbone)).eval()


def whole_model(words: Path, *args: Any, **settings: Any) -> VLSeq2Seq:
    """A model of `whole_config`, away from its initial values."""
    return shaken(built(whole_config(words, *args, **settings)))


def refused(call: Callable[[], object], *parts: str) -> None:
    """``call`` says each of ``parts``, one line a problem."""
    with pytest.raises(InputError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)
    assert all("\n" not in problem for problem in caught.value.problems)
