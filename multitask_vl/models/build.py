"""Build a model and its tokenizer from a configuration: seeded, frozen, with methods installed."""

from __future__ import annotations

import json
import zlib
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from multitask_vl.config.schema import BackboneConfig, Config
from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.adapter_io import compatibility_settings
from multitask_vl.methods.base import check_method_combination
from multitask_vl.models.backbones.base import Backbone, weights_checksum
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.models.visual import VisualEmbedding
from multitask_vl.registry import BACKBONES, METHODS
from multitask_vl.routing.context import Context


def load_tokenizer(config: BackboneConfig) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer with ``extra_tokens`` appended; tokens it already has are not added again.

    Their order makes ``<vis_extra_id_i>`` row V - 1 - i, which the visual embedding uses for grid cell i.

    Raises:
        InputError: no tokenizer there, or one whose last token is not ``<vis_extra_id_0>``.
    """
    tokenizer = BACKBONES.get(config.family)().tokenizer(config)
    half = config.extra_tokens // 2
    extra = [f"<{kind}_{i}>" for kind in ("extra_id", "vis_extra_id") for i in reversed(range(half))]
    if extra:
        tokenizer.add_tokens(extra, special_tokens=True)
        first_cell, last = tokenizer.convert_tokens_to_ids("<vis_extra_id_0>"), len(tokenizer) - 1
        if first_cell != last:
            raise InputError(
                f"backbone.tokenizer: <vis_extra_id_0> must be the last of the {last + 1} tokens, but has id "
                f"{first_cell}; use a tokenizer to which no tokens were added after it"
            )
    return tokenizer


def build_model(
    config: Config, tokenizer: PreTrainedTokenizerBase | None = None, device: torch.device | str = "cpu"
) -> VLSeq2Seq:
    """Build the model of a configuration. Initial values depend on ``config.seed`` only, not on torch's generator.

    Args:
        config: validated configuration.
        tokenizer: sets the number of token embeddings and, with random weights, the special ids. None: the vocabulary
            size of the backbone plus ``extra_tokens``.
        device: where to put the model. ``meta`` builds shapes without values, for counting parameters.

    Raises:
        InputError: an unknown family, method or routing function, or sizes or special tokens that do not fit.
    """
    backbone: Backbone = BACKBONES.get(config.backbone.family)()
    if not config.method:
        raise InputError('method: none given; use "frozen" to train only the visual embedding')
    names = [method.name for method in config.method]
    check_method_combination([METHODS.get(name) for name in names], names)
    on_meta = torch.device(device).type == "meta"
    with torch.random.fork_rng(devices=[]), torch.device("meta" if on_meta else "cpu"):
        torch.manual_seed(config.seed)
        lm = _language_model(backbone, config.backbone, tokenizer, on_meta)
        site_index = backbone.sites(lm)
        width = lm.get_input_embeddings().embedding_dim
        visual = VisualEmbedding(
            config.visual, width, backbone.norm, site_index.init_std, num_order_tokens=config.backbone.extra_tokens // 2
        )
        compatibility = compatibility_record(config, lm, None if on_meta else weights_checksum(lm))
        lm.requires_grad_(False)
        context = Context(tuple(config.tasks), config.routing, config.seed)
        methods = [METHODS.get(method.name)(method, context, site_index) for method in config.method]
        if context.routed and not any(method.routable for method in methods):
            names = ", ".join(method.config.name for method in methods)
            raise InputError(f"routing.function: method {names} has no bottleneck to route; set it to none")
        for method in methods:
            method.install()
    return VLSeq2Seq(backbone, lm, visual, context, methods, compatibility, config).to(device)


def compatibility_record(config: Config, lm: PreTrainedModel, weights: str | None) -> dict[str, Any]:
    """JSON-able record of everything a saved adapter depends on other than its own tensors.

    Args:
        config: configuration of the model.
        lm: the language model, before methods are installed.
        weights: `weights_checksum` of ``lm``; None on the meta device.
    """
    shapes = {name: list(parameter.shape) for name, parameter in lm.named_parameters()}
    return {
        "backbone": {
            "family": config.backbone.family,
            "width": lm.get_input_embeddings().embedding_dim,
            "rows": lm.get_input_embeddings().num_embeddings,
            "tensors": len(shapes),
            "shapes": f"{zlib.crc32(json.dumps(shapes).encode()):08x}",
            "weights": weights,
        },
        "tasks": list(config.tasks),
        **compatibility_settings(config),
    }


def _language_model(
    backbone: Backbone, config: BackboneConfig, tokenizer: PreTrainedTokenizerBase | None, on_meta: bool
) -> PreTrainedModel:
    hf_config = backbone.hf_config(config)
    random_weights = config.pretrained is None
    if tokenizer is None:
        rows = hf_config.vocab_size + config.extra_tokens
    else:
        rows = len(tokenizer)
        _check_special_tokens(hf_config, tokenizer, random_weights, config.config)
        if random_weights and "vocab_size" not in config.config:
            hf_config.vocab_size = max(1, rows - config.extra_tokens)
    start_token_given = not random_weights or "decoder_start_token_id" in config.config
    if not start_token_given or getattr(hf_config, "decoder_start_token_id", None) is None:
        hf_config.decoder_start_token_id = backbone.decoder_start_token_id(hf_config)
    lm = backbone.from_config(hf_config) if on_meta else backbone.load(config, hf_config)
    if lm.get_input_embeddings().num_embeddings != rows:
        backbone.resize_token_embeddings(lm, rows)
    lm.generation_config = GenerationConfig()
    return lm


def _check_special_tokens(
    hf_config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    random_weights: bool,
    explicit_config: dict[str, Any],
) -> None:
    """Require equal special ids in model and tokenizer. Random weights adopt the tokenizer's unless set explicitly."""
    problems = []
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        # a family may lack a token (T5 has no bos)
        own, other = getattr(hf_config, key, None), getattr(tokenizer, key)
        if other is None or own == other:
            continue
        if random_weights and key not in explicit_config:
            setattr(hf_config, key, other)
        else:
            problems.append(f"backbone: {key} is {own} in the model but {other} in the tokenizer; they must agree")
    if random_weights and explicit_config.get("vocab_size", 0) > len(tokenizer):
        problems.append(
            f"backbone.config.vocab_size: {explicit_config['vocab_size']}, but the tokenizer has only "
            f"{len(tokenizer)} tokens"
        )
    if problems:
        raise InputError(problems)
