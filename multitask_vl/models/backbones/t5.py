"""What is particular to T5: its sites and norms, its joint encoder with relative positions, its special tokens."""

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
from multitask_vl.methods.sites import Layout, Site
from multitask_vl.models.backbones.base import Backbone
from multitask_vl.models.kernels.chunked_cross_entropy import Head
from multitask_vl.registry import BACKBONES

ATTENTION_ROLES = {"q": "query", "k": "key", "v": "value", "o": "output"}
ATTENTIONS = {
    "encoder": (("self_attn", "SelfAttention"),),
    "decoder": (("self_attn", "SelfAttention"), ("cross_attn", "EncDecAttention")),
}
"""The attentions of a block in their order, with the library's names; the feed-forward block follows them."""
TABLE = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
"""A stack's relative position table, which its first block holds for all of them."""


@BACKBONES.register("t5")
class T5(Backbone):
    """T5 (Raffel et al. 2020), 1.1 and Flan included: pre-norm, no biases, positions as biases of the attention."""

    model_class = T5ForConditionalGeneration
    config_class = T5Config
    norm = T5LayerNorm

    def settings(self, config: BackboneConfig) -> dict[str, Any]:
        """One dropout rate everywhere."""
        return {"dropout_rate": config.dropout}

    def sizes(self, config: BackboneConfig) -> T5Config:
        """As everywhere. A decoder deeper than the encoder is refused."""
        sizes = super().sizes(config)
        if sizes.num_decoder_layers > sizes.num_layers:
            raise InputError(
                f"backbone: the decoder has {sizes.num_decoder_layers} layers and the encoder {sizes.num_layers}; with "
                "a T5 the library keeps room for as many as the encoder has when it generates, so give no more"
            )
        return sizes

    def load(self, config: BackboneConfig, sizes: T5Config) -> T5ForConditionalGeneration:
        """In float32. A head of the checkpoint's own (T5 1.1, Flan) stays its own."""
        lm = super().load(config, sizes)
        # the library's configuration says "tied" even then, and resizing would tie them
        lm.config.tie_word_embeddings = lm.lm_head.weight is lm.shared.weight
        return lm

    def resize(self, lm: T5ForConditionalGeneration, rows: int) -> None:
        """As everywhere; new rows of a head of its own are the mean of the others, so that none stands out."""
        known = lm.shared.num_embeddings
        super().resize(lm, rows)
        if not lm.config.tie_word_embeddings:
            with torch.no_grad():
                lm.lm_head.weight[known:] = lm.lm_head.weight[:known].mean(0)

    def start_token(self, sizes: T5Config) -> int:
        """Decoding starts with padding."""
        return sizes.pad_token_id

    def _tokenizer(self, path: str) -> PreTrainedTokenizerBase:
        """T5 reads and writes texts that nothing opens and ``</s>`` closes; a tokenizer of another habit is told so."""
        tokenizer = super()._tokenizer(path)
        if tokenizer("").input_ids == [tokenizer.eos_token_id]:
            return tokenizer
        if tokenizer.eos_token is None or not tokenizer.is_fast:
            raise InputError(
                f"backbone.tokenizer: {path} does not close a text with its end token and nothing else, as T5 needs, "
                "and cannot be made to; give T5's own tokenizer or one with a tokenizer.json and an end token"
            )
        end = tokenizer.eos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, tokenizer.eos_token_id)]
        )
        tokenizer.bos_token = None
        return tokenizer

    def layout(self, lm: T5ForConditionalGeneration) -> Layout:
        """Every linear map of every block, every norm, and the position tables, which published runs train as biases.

        New maps keep torch's default values: the published T5 code gives no others.
        """
        tables = [f"{stack}.{TABLE}" for stack in ATTENTIONS]
        sites, norms = list(_sites(lm.config)), list(_norms(lm.config))
        return Layout(lm, sites, norms, init_std=None, pre_norm=True, bias_tables=tables)

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
        """Prompts and words have positions, counted through; a pair that includes a visual token has bias zero."""
        encoder = lm.encoder
        text = encoder.embed_tokens(input_ids)
        text = torch.cat([prompt.to(text.dtype).expand(len(text), -1, -1), text], 1)
        hidden = encoder.dropout(torch.cat([text, visual.to(text.dtype)], 1))
        # a bool, a float, a block mask or None, by attention kernel: passed on, never looked at
        attend = create_bidirectional_mask(config=encoder.config, inputs_embeds=hidden, attention_mask=mask)
        words, cells = text.shape[1], visual.shape[1]
        bias = encoder.block[0].layer[0].SelfAttention.compute_bias(words, words)
        bias = F.pad(bias, (0, cells, 0, cells))
        for block in encoder.block:
            hidden, *_ = block(hidden, attend, bias)
        return encoder.dropout(encoder.final_layer_norm(hidden))

    def decode(
        self,
        lm: T5ForConditionalGeneration,
        decoder_input_ids: torch.Tensor,
        states: torch.Tensor,
        kinds: torch.Tensor,
    ) -> torch.Tensor:
        """The decoder stack, last norm included. Padding is kept out of the loss, not out of attention."""
        return lm.decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=states,
            encoder_attention_mask=kinds,
            use_cache=False,
        ).last_hidden_state

    def head(self, lm: T5ForConditionalGeneration) -> Head:
        """The head; before a tied one states are scaled by d^-1/2 (T5 1.1 and Flan have their own head, unscaled)."""
        scale = lm.config.d_model**-0.5 if lm.config.scale_decoder_outputs else 1.0
        return Head(lm.lm_head.weight, scale=scale)

    def choice_start(self, lm: T5ForConditionalGeneration) -> Sequence[int]:
        """The start token alone: T5's targets open with their first word."""
        return (lm.config.decoder_start_token_id,)


def _sites(config: T5Config) -> Iterator[Site]:
    width, attended = config.d_model, config.num_heads * config.d_kv
    inward = {"wi_0": "ffn_in", "wi_1": "ffn_gate"} if config.is_gated_act else {"wi": "ffn_in"}
    for stack, layer, sublayer, prefix in _sublayers(config):
        if sublayer == "ffn":
            prefix = f"{prefix}.DenseReluDense"
            for leaf, role in inward.items():
                yield Site(f"{prefix}.{leaf}", stack, layer, sublayer, role, width, config.d_ff)
            yield Site(f"{prefix}.wo", stack, layer, sublayer, "ffn_out", config.d_ff, width)
            continue
        for leaf, role in ATTENTION_ROLES.items():
            name = f"{prefix}.{dict(ATTENTIONS[stack])[sublayer]}.{leaf}"
            widths = (attended, width) if role == "output" else (width, attended)
            yield Site(name, stack, layer, sublayer, role, *widths)


def _norms(config: T5Config) -> Iterator[Site]:
    width = config.d_model
    for stack, layer, sublayer, prefix in _sublayers(config):
        yield Site(f"{prefix}.layer_norm", stack, layer, sublayer, "norm", width, width)
    for stack in ATTENTIONS:
        yield Site(f"{stack}.final_layer_norm", stack, -1, "final", "norm", width, width)


def _sublayers(config: T5Config) -> Iterator[tuple[str, int, str, str]]:
    """Stack, layer, sublayer and the name of the module that holds the sublayer and its norm."""
    for stack, depth in {"encoder": config.num_layers, "decoder": config.num_decoder_layers}.items():
        for layer in range(depth):
            for place, sublayer in enumerate((*dict(ATTENTIONS[stack]), "ffn")):
                yield stack, layer, sublayer, f"{stack}.block.{layer}.layer.{place}"
