"""How does a configuration become a model and a tokenizer: seeded, frozen where it should be, methods installed."""

from __future__ import annotations

import json
import zlib
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from multitask_vl.config.schema import BackboneConfig, Config
from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.adapter_io import settings_that_decide
from multitask_vl.methods.base import refuse_combination
from multitask_vl.models.backbones.base import Backbone, fingerprint
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.models.visual import VisualEmbedding
from multitask_vl.registry import BACKBONES, METHODS
from multitask_vl.routing.context import Context


def load_tokenizer(config: BackboneConfig) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer with ``extra_tokens`` appended (none twice, where it has them already).

    The order makes ``<vis_extra_id_i>`` the row V - 1 - i that the visual embedding uses for cell i.

    Raises:
        InputError: no tokenizer there.
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
                f"{first_cell}; the folder holds a tokenizer with other tokens added after it"
            )
    return tokenizer


def build_model(
    config: Config, tokenizer: PreTrainedTokenizerBase | None = None, device: torch.device | str = "cpu"
) -> VLSeq2Seq:
    """The model of a configuration. Initial values depend on ``config.seed`` alone, not on torch's generator.

    Args:
        tokenizer: decides the rows of the word table and, with random weights, the special ids. None: the sizes'
            own vocabulary plus ``extra_tokens``.
        device: where to put it. ``meta`` builds shapes without values, for counting.

    Raises:
        InputError: unknown family, method or routing function, sizes or special tokens that do not fit.
    """
    family: Backbone = BACKBONES.get(config.backbone.family)()
    if not config.method:
        raise InputError('method: none given; say "frozen" to train the visual embedding alone')
    names = [one.name for one in config.method]
    refuse_combination([METHODS.get(name) for name in names], names)
    on_meta = torch.device(device).type == "meta"
    with torch.random.fork_rng(devices=[]), torch.device("meta" if on_meta else "cpu"):
        torch.manual_seed(config.seed)
        lm = _language_model(family, config.backbone, tokenizer, on_meta)
        layout = family.layout(lm)
        width = lm.get_input_embeddings().embedding_dim
        visual = VisualEmbedding(
            config.visual, width, family.norm, layout.init_std, cell_rows=config.backbone.extra_tokens // 2
        )
        description = describe(config, lm, None if on_meta else fingerprint(lm))
        lm.requires_grad_(False)
        context = Context(tuple(config.tasks), config.routing, config.seed)
        methods = [METHODS.get(one.name)(one, context, layout) for one in config.method]
        if context.routed and not any(method.routable for method in methods):
            names = ", ".join(method.config.name for method in methods)
            raise InputError(f"routing.function: method {names} has no bottleneck in which to route; use none")
        for method in methods:
            method.install()
    return VLSeq2Seq(family, lm, visual, context, methods, description, config).to(device)


def describe(config: Config, lm: PreTrainedModel, weights: str | None) -> dict[str, Any]:
    """What a saved adapter depends on besides its own tensors; JSON-able.

    Args:
        weights: `fingerprint` of ``lm`` before methods are installed.
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
        **settings_that_decide(config),
    }


def _language_model(
    family: Backbone, config: BackboneConfig, tokenizer: PreTrainedTokenizerBase | None, on_meta: bool
) -> PreTrainedModel:
    sizes = family.sizes(config)
    random_weights = config.pretrained is None
    if tokenizer is None:
        rows = sizes.vocab_size + config.extra_tokens
    else:
        rows = len(tokenizer)
        _agree(sizes, tokenizer, may_change=random_weights, said=config.config)
        if random_weights and "vocab_size" not in config.config:
            sizes.vocab_size = max(1, rows - config.extra_tokens)
    said = not random_weights or "decoder_start_token_id" in config.config
    if not said or getattr(sizes, "decoder_start_token_id", None) is None:
        sizes.decoder_start_token_id = family.start_token(sizes)
    lm = family.random(sizes) if on_meta else family.load(config, sizes)
    if lm.get_input_embeddings().num_embeddings != rows:
        family.resize(lm, rows)
    lm.generation_config = GenerationConfig()
    return lm


def _agree(sizes, tokenizer: PreTrainedTokenizerBase, may_change: bool, said: dict[str, Any]) -> None:
    """Special ids of model and tokenizer must be the same; a model with random weights takes the tokenizer's."""
    problems = []
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        # a family may have no such token (T5 has no bos)
        own, other = getattr(sizes, key, None), getattr(tokenizer, key)
        if other is None or own == other:
            continue
        if may_change and key not in said:
            setattr(sizes, key, other)
        else:
            problems.append(f"backbone: {key} is {own} in the model but {other} in the tokenizer; they must agree")
    if may_change and said.get("vocab_size", 0) > len(tokenizer):
        problems.append(
            f"backbone.config.vocab_size: {said['vocab_size']}, but the tokenizer has {len(tokenizer)} tokens in all"
        )
    if problems:
        raise InputError(problems)
