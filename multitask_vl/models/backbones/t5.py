"""T5: sites and norms, joint encoder with relative positions, special tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.t5.modeling_t5 import T5LayerNorm

from multitask_vl.config.schema import BackboneConfig
from multitask_vl.errors import InputError
from multitask_vl.methods.sites import Site, SiteIndex
from multitask_vl.models.backbones.base import Backbone
from multitask_vl.models.kernels.chunked_cross_entropy import LMHead
from multitask_vl.registry import BACKBONES

ATTENTION_ROLES = {"q": "query", "k": "key", "v": "value", "o": "output"}
ATTENTION_MODULES = {
    "encoder": (("self_attn", "SelfAttention"),),
    "decoder": (("self_attn", "SelfAttention"), ("cross_attn", "EncDecAttention")),
}
"""Attention modules of a block in order: sublayer -> name in transformers. The feed-forward sublayer follows them."""
RELATIVE_BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
"""Relative position biases of a stack, held by its first block and shared by all."""


@BACKBONES.register("t5")
class T5(Backbone):
    """T5 (Raffel et al. 2020), including 1.1 and Flan: pre-norm, no biases, relative positions as attention biases."""

    model_class = T5ForConditionalGeneration
    config_class = T5Config
    norm = T5LayerNorm

    def config_overrides(self, config: BackboneConfig) -> dict[str, Any]:
        """A single dropout rate."""
        return {"dropout_rate": config.dropout}

    def hf_config(self, config: BackboneConfig) -> T5Config:
        """The transformers configuration.

        Raises:
            InputError: also if the decoder is deeper than the encoder.
        """
        hf_config = super().hf_config(config)
        if hf_config.num_decoder_layers > hf_config.num_layers:
            raise InputError(
                f"backbone: the decoder has {hf_config.num_decoder_layers} layers and the encoder "
                f"{hf_config.num_layers}; transformers sizes T5's generation cache by the encoder's depth, so set "
                "num_decoder_layers to at most num_layers"
            )
        return hf_config

    def load(self, config: BackboneConfig, hf_config: T5Config) -> T5ForConditionalGeneration:
        """The model in float32. An untied head (T5 1.1, Flan) stays untied."""
        lm = super().load(config, hf_config)
        # the configuration claims tied weights even then, and resizing would tie them
        lm.config.tie_word_embeddings = lm.lm_head.weight is lm.shared.weight
        return lm

    def resize_token_embeddings(self, lm: T5ForConditionalGeneration, rows: int) -> None:
        """Resize as the base class; new rows of an untied head are the mean of the others."""
        known = lm.shared.num_embeddings
        super().resize_token_embeddings(lm, rows)
        if not lm.config.tie_word_embeddings:
            with torch.no_grad():
                lm.lm_head.weight[known:] = lm.lm_head.weight[:known].mean(0)

    def decoder_start_token_id(self, hf_config: T5Config) -> int:
        """The padding token."""
        return hf_config.pad_token_id

    def _tokenizer(self, path: str) -> PreTrainedTokenizerBase:
        """The tokenizer, set to end texts with ``</s>`` and to prepend nothing, as T5 expects."""
        tokenizer = super()._tokenizer(path)
        if tokenizer("").input_ids == [tokenizer.eos_token_id]:
            return tokenizer
        if tokenizer.eos_token is None or not tokenizer.is_fast:
            raise InputError(
                f"backbone.tokenizer: {path} does not only append its end token to a text, as T5 needs, and cannot be "
                "configured to; use T5's own tokenizer or one with a tokenizer.json and an end token"
            )
        end = tokenizer.eos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, tokenizer.eos_token_id)]
        )
        tokenizer.bos_token = None
        return tokenizer

    def sites(self, lm: T5ForConditionalGeneration) -> SiteIndex:
        """Every linear layer, every norm, and the relative position biases, which published runs train as biases.

        New layers keep torch's default initialization, as in the published T5 code.
        """
        tables = [f"{stack}.{RELATIVE_BIAS}" for stack in ATTENTION_MODULES]
        sites, norms = list(_sites(lm.config)), list(_norms(lm.config))
        return SiteIndex(lm, sites, norms, init_std=None, pre_norm=True, bias_tables=tables)

    def decoder(self, lm: T5ForConditionalGeneration) -> nn.Module:
        """``decoder``."""
        return lm.decoder

    def encode(
        self,
        lm: T5ForConditionalGeneration,
        input_ids: torch.Tensor,
        visual: torch.Tensor,
        mask: torch.Tensor,
        prompt: torch.Tensor,
    ) -> torch.Tensor:
        """Joint encoder. Prompt and text share one position count; pairs that include a visual token have bias zero."""
        encoder = lm.encoder
        text = encoder.embed_tokens(input_ids)
        text = torch.cat([prompt.to(text.dtype).expand(len(text), -1, -1), text], 1)
        hidden = encoder.dropout(torch.cat([text, visual.to(text.dtype)], 1))
        # bool, float, block mask or None, depending on the attention implementation: passed through unread
        attention_mask = create_bidirectional_mask(config=encoder.config, inputs_embeds=hidden, attention_mask=mask)
        text_length, num_visual = text.shape[1], visual.shape[1]
        bias = encoder.block[0].layer[0].SelfAttention.compute_bias(text_length, text_length)
        bias = F.pad(bias, (0, num_visual, 0, num_visual))
        for block in encoder.block:
            hidden, *_ = block(hidden, attention_mask, bias)
        return encoder.dropout(encoder.final_layer_norm(hidden))

    def decode(
        self,
        lm: T5ForConditionalGeneration,
        decoder_input_ids: torch.Tensor,
        hidden_states: torch.Tensor,
        token_types: torch.Tensor,
    ) -> torch.Tensor:
        """The decoder stack including its final norm. Padded targets are excluded from the loss, not from attention."""
        return lm.decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=hidden_states,
            encoder_attention_mask=token_types,
            use_cache=False,
        ).last_hidden_state

    def lm_head(self, lm: T5ForConditionalGeneration) -> LMHead:
        """The head. A tied head scales its input by d^-1/2; the untied heads of T5 1.1 and Flan do not."""
        scale = lm.config.d_model**-0.5 if lm.config.scale_decoder_outputs else 1.0
        return LMHead(lm.lm_head.weight, scale=scale)

    def choice_prefix_ids(self, lm: T5ForConditionalGeneration) -> Sequence[int]:
        """The start token alone: T5's targets start with their first token."""
        return (lm.config.decoder_start_token_id,)


def _sites(config: T5Config) -> Iterator[Site]:
    width, attention_dim = config.d_model, config.num_heads * config.d_kv
    ffn_in_projections = {"wi_0": "ffn_in", "wi_1": "ffn_gate"} if config.is_gated_act else {"wi": "ffn_in"}
    for stack, layer, sublayer, prefix in _sublayers(config):
        if sublayer == "ffn":
            prefix = f"{prefix}.DenseReluDense"
            for leaf, role in ffn_in_projections.items():
                yield Site(f"{prefix}.{leaf}", stack, layer, sublayer, role, width, config.d_ff)
            yield Site(f"{prefix}.wo", stack, layer, sublayer, "ffn_out", config.d_ff, width)
            continue
        for leaf, role in ATTENTION_ROLES.items():
            name = f"{prefix}.{dict(ATTENTION_MODULES[stack])[sublayer]}.{leaf}"
            widths = (attention_dim, width) if role == "output" else (width, attention_dim)
            yield Site(name, stack, layer, sublayer, role, *widths)


def _norms(config: T5Config) -> Iterator[Site]:
    width = config.d_model
    for stack, layer, sublayer, prefix in _sublayers(config):
        yield Site(f"{prefix}.layer_norm", stack, layer, sublayer, "norm", width, width)
    for stack in ATTENTION_MODULES:
        yield Site(f"{stack}.final_layer_norm", stack, -1, "final", "norm", width, width)


def _sublayers(config: T5Config) -> Iterator[tuple[str, int, str, str]]:
    """Stack, layer, sublayer, and the name of the module that holds the sublayer and its norm."""
    for stack, depth in {"encoder": config.num_layers, "decoder": config.num_decoder_layers}.items():
        for layer in range(depth):
            for index, sublayer in enumerate((*dict(ATTENTION_MODULES[stack]), "ffn")):
                yield stack, layer, sublayer, f"{stack}.block.{layer}.layer.{index}"
