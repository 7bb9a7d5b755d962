"""Export a merged model as a transformers checkpoint plus its visual embedding."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from multitask_vl.methods.artifact.adapter_io import (
    ADAPTER_FOLDER,
    CARD_FILE,
    compatibility_settings,
    require_empty_dir,
    save_adapter,
)
from multitask_vl.methods.frozen import Frozen
from multitask_vl.models.backbones.base import weights_checksum
from multitask_vl.storage.atomic import atomic_write


def save_merged(model: Any, folder: Path) -> None:
    """Save a folder that transformers loads as a language model and `from_pretrained` as a `VLSeq2Seq`.

    The visual embedding is saved in ``adapter/`` as an adapter of the method ``frozen`` whose backbone is the parent
    folder. (Next to the weights, transformers would mistake its adapter_config.json for peft's.)

    Args:
        model: a `VLSeq2Seq`; not modified.
        folder: new or empty.

    Raises:
        InputError: a method cannot be merged, or ``folder`` is not empty.
    """
    folder = require_empty_dir(folder)
    merged = copy.deepcopy(model).cpu()
    merged.merge()
    merged.lm.requires_grad_(False)
    # decoding defaults for use with transformers alone; this project passes its settings with every call
    merged.lm.generation_config = GenerationConfig.from_model_config(merged.lm.config)
    merged.lm.save_pretrained(folder)
    backbone = model.config.backbone
    if backbone.tokenizer or backbone.pretrained:
        merged.backbone.tokenizer(backbone).save_pretrained(folder)
    config = model.config.model_copy(
        update={
            "backbone": backbone.model_copy(update={"pretrained": ".", "config": {}, "tokenizer": None}),
            "method": [Frozen.Config(name="frozen")],
        }
    )
    weights = {**model.compatibility["backbone"], "weights": weights_checksum(merged.lm)}
    merged.compatibility = {**model.compatibility, **compatibility_settings(config), "backbone": weights}
    merged_from = {"pretrained": backbone.pretrained, "method": [method.config.name for method in model.methods]}
    save_adapter(merged, folder / ADAPTER_FOLDER, config, merged=merged_from)
    atomic_write(folder / CARD_FILE, (folder / ADAPTER_FOLDER / CARD_FILE).read_bytes())
