"""Export plain LoRA to the format of the library peft.

peft (tested: 0.21.2 with transformers 5.23) handles language models only. What it loads is the update of the language
model and the biases trained with it; the visual embedding is saved in a separate file that peft ignores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import ModelCardData
from safetensors.torch import save
from torch import Tensor, nn

from multitask_vl.config.schema import Config
from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.adapter_io import CARD_FILE, CONFIG_FILE, TENSOR_FILE, require_empty_dir
from multitask_vl.methods.artifact.card import hub_name
from multitask_vl.methods.base import Method
from multitask_vl.methods.lora import Lora, LoraSite
from multitask_vl.methods.sites import EVERY_TASK
from multitask_vl.storage.atomic import atomic_write

VISUAL_FILE = "visual_embedding.safetensors"
PREFIX = "base_model.model."
BIAS = {"all": "all", "targets": "lora_only", "none": "none"}
"""Value of our key ``biases`` -> value of peft's ``bias``."""


class ExportableModel(Protocol):
    """Interface of a model that can be exported, implemented by `VLSeq2Seq`."""

    lm: nn.Module
    visual: nn.Module
    methods: list[Method]
    config: Config


def export_peft(model: ExportableModel, folder: Path) -> None:
    """Save what ``peft.PeftModel.from_pretrained`` loads on transformers' model of the same base weights.

    Args:
        model: the model.
        folder: new or empty.

    Raises:
        InputError: the method is not LoRA, its update is not one matrix per linear layer, a wrapped layer is not
            ``nn.Linear``, or ``folder`` is not empty.
    """
    method = _plain_lora(model)
    config = method.config
    wrappers = {
        site.name: module
        for site in method.site_index.sites
        if isinstance(module := method.site_index.module(site), LoraSite)
    }
    unsupported = [name for name, wrapper in wrappers.items() if not isinstance(wrapper.base, nn.Linear)]
    if unsupported:
        raise InputError(
            f"peft export: {len(unsupported)} of {len(wrappers)} layers are not nn.Linear (first: {unsupported[0]})"
        )
    folder = require_empty_dir(folder)
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": model.config.backbone.pretrained,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted({name.rpartition(".")[2] for name in wrappers}),
        "bias": BIAS[config.biases],
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    atomic_write(folder / TENSOR_FILE, _serialize(_peft_tensors(model.lm, method, wrappers)))
    atomic_write(folder / VISUAL_FILE, _serialize(model.visual.state_dict()))
    atomic_write(folder / CARD_FILE, _card(model.config, settings))
    atomic_write(folder / CONFIG_FILE, json.dumps(settings, indent=2) + "\n")


def _peft_tensors(lm: nn.Module, method: Lora, wrappers: dict[str, LoraSite]) -> dict[str, Tensor]:
    """The trained tensors of the language model under peft's names."""
    tensors = {}
    for name, wrapper in wrappers.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = wrapper.A[EVERY_TASK].weight
        tensors[f"{PREFIX}{name}.lora_B.weight"] = wrapper.B[EVERY_TASK].weight
    # trained parameters of the backbone; the wrapped layer is `base_layer` in peft and `base` here
    owners = {f"{name}.base": f"{name}.base_layer" for name in wrappers}
    new = {id(parameter) for parameter in method.new_parameters}
    for name, parameter in lm.named_parameters():
        if parameter.requires_grad and id(parameter) not in new:
            owner, _, leaf = name.rpartition(".")
            tensors[f"{PREFIX}{owners.get(owner, owner)}.{leaf}"] = parameter
    return tensors


def _plain_lora(model: ExportableModel) -> Lora:
    """The model's LoRA, if it is the only method and its update is one matrix per linear layer."""
    names = [method.config.name for method in model.methods]
    if len(model.methods) != 1 or not isinstance(model.methods[0], Lora):
        raise InputError(f"peft export: only the method lora can be exported, this model has {', '.join(names)}")
    reason = model.methods[0].merge_blocker()
    if reason:
        raise InputError(f"peft export: in peft, LoRA is one update for all samples and tasks, but {reason}")
    return model.methods[0]


def _serialize(tensors: dict[str, Tensor]) -> bytes:
    return save({k: value.detach().cpu().contiguous() for k, value in tensors.items()}, metadata={"format": "pt"})


def _card(config: Config, settings: dict[str, Any]) -> str:
    backbone = config.backbone.pretrained
    data = ModelCardData(library_name="peft", base_model=hub_name(backbone), tags=["lora", "vision-language"])
    return (
        f"---\n{data.to_yaml().strip()}\n---\n\n"
        f"# LoRA for {', '.join(config.tasks)}, in the format of peft\n\n"
        f"Rank {settings['r']}, alpha {settings['lora_alpha']:g}, on {', '.join(settings['target_modules'])} of "
        f"{backbone or 'a model with random weights'}. Biases trained: {settings['bias']}.\n\n"
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForSeq2SeqLM\n\n"
        f'base = AutoModelForSeq2SeqLM.from_pretrained("{backbone or "BACKBONE"}")\n'
        'model = PeftModel.from_pretrained(base, "FOLDER_OR_HUB_NAME")\n```\n\n'
        f"It was trained as part of a vision-language model. The image embedding is in `{VISUAL_FILE}`, which peft "
        "does not load; the original multitask-vl adapter contains the complete model.\n"
    )
