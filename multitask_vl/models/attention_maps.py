"""Cross-attention weights of the decoder, recorded while a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from multitask_vl.models.seq2seq import VLSeq2Seq


def cross_attention_modules(model: VLSeq2Seq) -> list[nn.Module]:
    """The decoder's cross-attention modules, in layer order."""
    site_index = model.backbone.sites(model.lm)
    names = [site.name.rpartition(".")[0] for site in site_index.sites if site.sublayer == "cross_attn"]
    return [model.lm.get_submodule(name) for name in dict.fromkeys(names)]


@contextmanager
def eager_attention(lm: nn.Module) -> Iterator[None]:
    """Use eager attention inside the context: fused kernels do not return their weights."""
    previous = lm.config._attn_implementation
    lm.set_attn_implementation("eager")
    try:
        yield
    finally:
        lm.set_attn_implementation(previous)


@contextmanager
def record_attention(modules: Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Collect the attention weights [B, heads, T, S] of ``modules``, the last output of each."""
    weights: list[torch.Tensor] = []
    handles = [module.register_forward_hook(lambda _, __, out: weights.append(out[-1])) for module in modules]
    try:
        yield weights
    finally:
        for handle in handles:
            handle.remove()
