"""Load a model from a saved adapter, given its folder or its name on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from multitask_vl.config import config_from
from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.adapter_io import CONFIG_FILE, find_adapter, load_adapter, read_record
from multitask_vl.methods.artifact.hub import resolve_artifact
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
    """Load the model (in eval mode) and the tokenizer of an adapter. Imports the modules it lists as plugins.

    Args:
        name: folder, or name on the Hugging Face hub, of an adapter written by `VLSeq2Seq.save_pretrained`,
            `VLSeq2Seq.save_merged` or a training run (its ``adapter/`` or the run folder itself).
        device: where to put the model.
        backbone: hub name or folder of the frozen weights, if they have moved. They are checked.
        tokenizer: hub name or folder of the tokenizer, if it has moved. None: the adapter's setting, usually the
            folder of the weights.
        revision, token: passed to the hub.

    Raises:
        InputError: no adapter there, an unsupported format, or a backbone other than the adapter's.
    """
    folder = find_adapter(resolve_artifact(name, revision, token))
    record = read_record(folder)
    if "config" not in record:
        raise InputError(
            f"{folder / CONFIG_FILE}: format_version {record['format_version']} does not contain the model's "
            "configuration. Build the model from the run's resolved.yaml (multitask_vl.models.build.build_model), load "
            "the adapter with multitask_vl.methods.artifact.adapter_io.load_adapter and save it again with "
            "model.save_pretrained(FOLDER)"
        )
    config = config_from(record["config"], str(folder / CONFIG_FILE))
    changes: dict[str, Any] = {"pretrained": str(folder.parent)} if record["merged"] else {}
    if backbone is not None:
        changes = {"pretrained": backbone, "config": {}}
    if tokenizer is not None:
        changes["tokenizer"] = tokenizer
    config = config.model_copy(update={"backbone": config.backbone.model_copy(update=changes)})
    loaded_tokenizer = load_tokenizer(config.backbone)
    model = build_model(config, loaded_tokenizer, device)
    load_adapter(model, folder)
    return model.eval(), loaded_tokenizer
