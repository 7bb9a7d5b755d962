"""BART: sites and norms, joint encoder, special tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration, BartTokenizer
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput

from multitask_vl.config.schema import BackboneConfig
from multitask_vl.methods.sites import Site, SiteIndex
from multitask_vl.models.backbones.base import Backbone
from multitask_vl.models.kernels.chunked_cross_entropy import LMHead
from multitask_vl.registry import BACKBONES

ATTENTION_ROLES = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
SUBLAYERS = {
    "encoder": {"self_attn": "self_attn"},
    "decoder": {"self_attn": "self_attn", "encoder_attn": "cross_attn"},
}


@BACKBONES.register("bart")
class Bart(Backbone):
    """BART (Lewis et al. 2020): post-norm, learned positions on text only, a norm on the text embeddings."""

    model_class = BartForConditionalGeneration
    config_class = BartConfig
    norm = nn.LayerNorm

    def config_overrides(self, config: BackboneConfig) -> dict[str, Any]:
        """A single dropout rate, no layerdrop."""
        rate = config.dropout
        rates = {"dropout": rate, "attention_dropout": rate, "activation_dropout": rate}
        return rates | {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}

    def _tokenizer(self, path: str):
        folder = Path(path)
        if folder.is_dir() and not (folder / "tokenizer.json").exists() and (folder / "vocab.json").exists():
            # AutoTokenizer needs a config.json; `vocab_file=` would silently give five tokens
            return BartTokenizer.from_pretrained(path)
        return AutoTokenizer.from_pretrained(path)

    def sites(self, lm: BartForConditionalGeneration) -> SiteIndex:
        """Every linear layer and every layer norm of both stacks."""
        return SiteIndex(lm, list(_sites(lm.config)), list(_norms(lm.config)), init_std=lm.config.init_std)

    def decoder(self, lm: BartForConditionalGeneration) -> nn.Module:
        """``model.decoder``."""
        return lm.model.decoder

    def max_positions(self, lm: BartForConditionalGeneration) -> int:
        """Size of the position tables."""
        return lm.config.max_position_embeddings

    def encode(
        self,
        lm: BartForConditionalGeneration,
        input_ids: torch.Tensor,
        visual: torch.Tensor,
        mask: torch.Tensor,
        prompt: torch.Tensor,
    ) -> torch.Tensor:
        """Joint encoder: positions on text, embedding norm on prompt and text, then visual tokens, then dropout."""
        encoder = lm.model.encoder
        text = encoder.embed_tokens(input_ids) + encoder.embed_positions(input_ids)
        text = torch.cat([prompt.to(text.dtype).expand(len(text), -1, -1), text], 1)
        text = encoder.layernorm_embedding(text)
        hidden = torch.cat([text, visual.to(text.dtype)], 1)
        hidden = F.dropout(hidden, encoder.dropout, encoder.training)
        # bool, float, block mask or None, depending on the attention implementation: passed through unread
        attention_mask = create_bidirectional_mask(config=encoder.config, inputs_embeds=hidden, attention_mask=mask)
        for layer in encoder.layers:
            hidden = layer(hidden, attention_mask)
        return hidden

    def decode(
        self,
        lm: BartForConditionalGeneration,
        decoder_input_ids: torch.Tensor,
        hidden_states: torch.Tensor,
        token_types: torch.Tensor,
    ) -> torch.Tensor:
        """Decoder of the transformers model. Padded targets are excluded from the loss, not from attention."""
        return lm.model(
            decoder_input_ids=decoder_input_ids,
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden_states),
            attention_mask=token_types,
            use_cache=False,
        ).last_hidden_state

    def lm_head(self, lm: BartForConditionalGeneration) -> LMHead:
        """The tied head with its (zero) bias buffer."""
        return LMHead(lm.lm_head.weight, lm.final_logits_bias[0])

    def choice_prefix_ids(self, lm: BartForConditionalGeneration) -> Sequence[int]:
        """``</s> <s>``: BART's targets start with ``<s>``."""
        return lm.config.decoder_start_token_id, lm.config.bos_token_id

    def beam_search_kwargs(self, lm: BartForConditionalGeneration) -> dict[str, Any]:
        """Force the end token at the maximum length (bart-base's own setting)."""
        return {"forced_eos_token_id": lm.config.eos_token_id}


def _sites(config: BartConfig) -> Iterator[Site]:
    width = config.d_model
    depths = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    inner = {"encoder": config.encoder_ffn_dim, "decoder": config.decoder_ffn_dim}
    for stack, depth in depths.items():
        for layer in range(depth):
            prefix = f"model.{stack}.layers.{layer}"
            for attention, sublayer in SUBLAYERS[stack].items():
                for leaf, role in ATTENTION_ROLES.items():
                    yield Site(f"{prefix}.{attention}.{leaf}", stack, layer, sublayer, role, width, width)
            yield Site(f"{prefix}.fc1", stack, layer, "ffn", "ffn_in", width, inner[stack])
            yield Site(f"{prefix}.fc2", stack, layer, "ffn", "ffn_out", inner[stack], width)


def _norms(config: BartConfig) -> Iterator[Site]:
    width = config.d_model
    for stack, depth in {"encoder": config.encoder_layers, "decoder": config.decoder_layers}.items():
        yield Site(f"model.{stack}.layernorm_embedding", stack, -1, "embedding", "norm", width, width)
        for layer in range(depth):
            prefix = f"model.{stack}.layers.{layer}"
            for attention, sublayer in SUBLAYERS[stack].items():
                yield Site(f"{prefix}.{attention}_layer_norm", stack, layer, sublayer, "norm", width, width)
            yield Site(f"{prefix}.final_layer_norm", stack, layer, "ffn", "norm", width, width)
