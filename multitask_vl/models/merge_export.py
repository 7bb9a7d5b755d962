"""How does a merged model leave the house: as the library's own language model, with our visual embedding inside."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from multitask_vl.methods.artifact.adapter_io import (
    ADAPTER_FOLDER,
    CARD_FILE,
    refuse_occupied,
    save_adapter,
    settings_that_decide,
)
from multitask_vl.methods.frozen import Frozen
from multitask_vl.models.backbones.base import fingerprint
from multitask_vl.storage.atomic import write_whole


def write_merged(model: Any, folder: Path) -> None:
    """Write a folder that the library reads as a language model, and `from_pretrained` as a model of ours.

    What remains of ours is the visual embedding: an adapter of the method ``frozen``, in ``adapter/``, whose backbone
    is the folder around it. (Beside the weights, the library would take its adapter_config.json for peft's.)

    Args:
        model: a `VLSeq2Seq`; it stays as it is.
        folder: new or empty.

    Raises:
        InputError: a method that cannot be merged, and why; or ``folder`` holds something.
    """
    folder = refuse_occupied(folder)
    merged = copy.deepcopy(model).cpu()
    merged.merge()
    merged.lm.requires_grad_(False)
    # its own settings of decoding, for those who use it without us; ours are said with every call
    merged.lm.generation_config = GenerationConfig.from_model_config(merged.lm.config)
    merged.lm.save_pretrained(folder)
    backbone = model.config.backbone
    if backbone.tokenizer or backbone.pretrained:
        merged.family.tokenizer(backbone).save_pretrained(folder)
    config = model.config.model_copy(
        update={
            "backbone": backbone.model_copy(update={"pretrained": ".", "config": {}, "tokenizer": None}),
            "method": [Frozen.Config(name="frozen")],
        }
    )
    weights = {**model.description["backbone"], "weights": fingerprint(merged.lm)}
    merged.description = {**model.description, **settings_that_decide(config), "backbone": weights}
    made_of = {"pretrained": backbone.pretrained, "method": [method.config.name for method in model.methods]}
    save_adapter(merged, folder / ADAPTER_FOLDER, config, merged=made_of)
    write_whole(folder / CARD_FILE, (folder / ADAPTER_FOLDER / CARD_FILE).read_bytes())
