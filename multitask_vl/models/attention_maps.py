"""What weights does the decoder's cross-attention give to each position: recorded while a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from multitask_vl.models.seq2seq import VLSeq2Seq


def cross_attentions(model: VLSeq2Seq) -> list[nn.Module]:
    """The decoder's cross-attention modules, layer by layer."""
    layout = model.family.layout(model.lm)
    names = [site.name.rpartition(".")[0] for site in layout.sites if site.sublayer == "cross_attn"]
    return [model.lm.get_submodule(name) for name in dict.fromkeys(names)]


@contextmanager
def eager(lm: nn.Module) -> Iterator[None]:
    """Attention that computes its weights one by one, since faster kernels keep them to themselves."""
    before = lm.config._attn_implementation
    lm.set_attn_implementation("eager")
    try:
        yield
    finally:
        lm.set_attn_implementation(before)


@contextmanager
def recorded(modules: Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """What attention modules give as their weights [B, heads, T, S], which is the last thing they return."""
    seen: list[torch.Tensor] = []
    handles = [one.register_forward_hook(lambda _, __, out: seen.append(out[-1])) for one in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
