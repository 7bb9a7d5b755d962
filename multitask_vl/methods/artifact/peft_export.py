"""How does a plain LoRA leave for peft: its tensors under peft's names, beside the configuration that peft reads.

peft (0.21.2 was tried, with transformers 5.23) knows language models alone. So what it loads is the update of the
language model with the biases trained beside it; the visual embedding lies in a file that peft does not look at.
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
from multitask_vl.methods.artifact.adapter_io import CARD_FILE, CONFIG_FILE, TENSOR_FILE, refuse_occupied
from multitask_vl.methods.artifact.card import hub_name
from multitask_vl.methods.base import Method
from multitask_vl.methods.lora import Lora, LoraSite
from multitask_vl.methods.sites import EVERY_TASK
from multitask_vl.storage.atomic import write_whole

VISUAL_FILE = "visual_embedding.safetensors"
PREFIX = "base_model.model."
BIAS = {"all": "all", "targets": "lora_only", "none": "none"}
"""peft's word for the biases that are trained."""


class Exported(Protocol):
    """What the export asks of a model; `VLSeq2Seq` has it."""

    lm: nn.Module
    visual: nn.Module
    methods: list[Method]
    config: Config


def export_peft(model: Exported, folder: Path) -> None:
    """Write what ``peft.PeftModel.from_pretrained`` loads on the library's own model of the same weights.

    Args:
        folder: new or empty.

    Raises:
        InputError: a method other than LoRA, a LoRA whose update is no one weight matrix a map, or maps that are no
            ``nn.Linear``; or ``folder`` holds something.
    """
    method = _plain_lora(model)
    layout, config = method.layout, method.config
    sites = [site for site in layout.sites if isinstance(layout.module(site), LoraSite)]
    odd = [site.name for site in sites if not isinstance(layout.module(site).base, nn.Linear)]
    if odd:
        raise InputError(
            f"peft export: {len(odd)} of {len(sites)} maps are not of the kind nn.Linear (first: {odd[0]})"
        )
    folder = refuse_occupied(folder)
    tensors = {}
    for site in sites:
        module = layout.module(site)
        tensors[f"{PREFIX}{site.name}.lora_A.weight"] = module.A[EVERY_TASK].weight
        tensors[f"{PREFIX}{site.name}.lora_B.weight"] = module.B[EVERY_TASK].weight
    # what is trained of the backbone itself; peft calls the map that it wraps base_layer, we call it base
    wrapped = {f"{site.name}.base": f"{site.name}.base_layer" for site in sites}
    added = {id(parameter) for parameter in method.added}
    for name, parameter in model.lm.named_parameters():
        if parameter.requires_grad and id(parameter) not in added:
            owner, _, leaf = name.rpartition(".")
            tensors[f"{PREFIX}{wrapped.get(owner, owner)}.{leaf}"] = parameter
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": model.config.backbone.pretrained,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted({site.name.rpartition(".")[2] for site in sites}),
        "bias": BIAS[config.biases],
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_whole(folder / TENSOR_FILE, _bytes(tensors))
    write_whole(folder / VISUAL_FILE, _bytes(model.visual.state_dict()))
    write_whole(folder / CARD_FILE, _card(model.config, settings))
    write_whole(folder / CONFIG_FILE, json.dumps(settings, indent=2) + "\n")


def _plain_lora(model: Exported) -> Lora:
    """The model's LoRA, if it is all there is and its update is one matrix a map."""
    names = [method.config.name for method in model.methods]
    if len(model.methods) != 1 or not isinstance(model.methods[0], Lora):
        raise InputError(f"peft export: it is for the method lora alone, this model has {', '.join(names)}")
    reason = model.methods[0].cannot_merge()
    if reason:
        raise InputError(f"peft export: peft's LoRA is one update a map for every sample and task, but {reason}")
    return model.methods[0]


def _bytes(tensors: dict[str, Tensor]) -> bytes:
    return save({k: value.detach().cpu().contiguous() for k, value in tensors.items()}, metadata={"format": "pt"})


def _card(config: Config, settings: dict[str, Any]) -> str:
    backbone = config.backbone.pretrained
    data = ModelCardData(library_name="peft", base_model=hub_name(backbone), tags=["lora", "vision-language"])
    return (
        f"---\n{data.to_yaml().strip()}\n---\n\n"
        f"# LoRA for {', '.join(config.tasks)}, in peft's layout\n\n"
        f"Rank {settings['r']}, alpha {settings['lora_alpha']:g}, on {', '.join(settings['target_modules'])} of "
        f"{backbone or 'a model with random weights'}; biases trained beside it: {settings['bias']}.\n\n"
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForSeq2SeqLM\n\n"
        f'base = AutoModelForSeq2SeqLM.from_pretrained("{backbone or "BACKBONE"}")\n'
        'model = PeftModel.from_pretrained(base, "FOLDER_OR_HUB_NAME")\n```\n\n'
        f"It was trained as a part of a vision-language model. The embedding of pictures is in `{VISUAL_FILE}`, "
        "which peft does not load; the adapter that this was made from has the whole model.\n"
    )
