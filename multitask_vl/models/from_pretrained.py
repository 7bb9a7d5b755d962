"""How does a saved adapter become a model again: from its folder or its name on the hub, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from multitask_vl.config import config_from
from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.adapter_io import CONFIG_FILE, find_adapter, load_adapter, read_record
from multitask_vl.methods.artifact.hub import fetch
from multitask_vl.models.build import build_model, load_tokenizer
from multitask_vl.models.seq2seq import VLSeq2Seq


def from_pretrained(
    name: str | Path,
    *,
    device: torch.device | str = "cpu",
    backbone: str | None = None,
    tokenizer: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> tuple[VLSeq2Seq, PreTrainedTokenizerBase]:
    """Model (in eval mode) and tokenizer of an adapter; the modules that it names as plugins are imported.

    Args:
        name: folder, or name on the Hugging Face hub, of what `VLSeq2Seq.save_pretrained`, `save_merged` or a training
            run has written (its ``adapter/``, or the run's folder itself).
        device: where to put the model.
        backbone: hub name or folder of the frozen weights, where they are not where they were. They are checked.
        tokenizer: hub name or folder of the tokenizer, likewise. None: the adapter's own setting, which is mostly that
            it lies beside the weights.
        revision, token: of the hub.

    Raises:
        InputError: no adapter there, one that this program cannot read, or a backbone that is not the adapter's.
    """
    folder = find_adapter(fetch(name, revision, token))
    record = read_record(folder)
    if "config" not in record:
        raise InputError(
            f"{folder / CONFIG_FILE}: format_version {record['format_version']} does not hold the configuration of its "
            "model. Build that from the run's resolved.yaml (multitask_vl.models.build.build_model), load the adapter "
            "by multitask_vl.methods.artifact.adapter_io.load_adapter and save it again by model.save_pretrained(FOLDER)"
        )
    config = config_from(record["config"], str(folder / CONFIG_FILE))
    moved: dict[str, Any] = {"pretrained": str(folder.parent)} if record["merged"] else {}
    if backbone is not None:
        moved = {"pretrained": backbone, "config": {}}
    if tokenizer is not None:
        moved["tokenizer"] = tokenizer
    config = config.model_copy(update={"backbone": config.backbone.model_copy(update=moved)})
    words = load_tokenizer(config.backbone)
    model = build_model(config, words, device)
    load_adapter(model, folder)
    return model.eval(), words
