"""HyperFormer: task embeddings outside the stacks, and in each stack layer embeddings and generator heads."""

from __future__ import annotations

import re
from collections.abc import Iterator

from multitask_vl.methods.hyperformer import HyperformerConfig
from tests.golden.fixture import Fixture

VECTOR = re.compile(r"(?:\w+\.)*task_to_embeddings\.(?P<task>\w+)")
STACK = re.compile(r"(?:model\.)?(?P<stack>encoder|decoder)\.adapter_layers_hyper_net\.(?P<rest>.+)")
HEAD = re.compile(
    r"(?:(?P<block>feed_forward|self_attention|cross_attention)_)?"
    r"(?:(?P<half>down|up)_sampler|(?P<norm>pre|post)_layer_?norm)_?hyper_?net\."
    r"(?P<what>weight|bias)_generator(?:\.0)?\.(?P<kind>weight|bias)"
)
BLOCKS = {"feed_forward": "ffn", "self_attention": "self_attn", "cross_attention": "cross_attn", None: "every_block"}
NARROW = re.compile(r"task_hypernet\.task_embedd?ing_generator\.(?P<part>[02]\.(?:weight|bias))")
PARTS = {
    "layer_id_embeddings.weight": "layers.weight",
    "adapters_block_type.weight": "kinds.weight",
    "LayerNorm.weight": "project.3.weight",
    "LayerNorm.bias": "project.3.bias",
}
"""Other tensors of a stack's generator: name in the source -> ours."""


def found(fixture: Fixture) -> HyperformerConfig | None:
    """The configuration that the tensors imply: sizes and kind of generator."""
    stack = {
        own: value
        for name, value in fixture.weights.items()
        if (match := STACK.fullmatch(name)) and match["stack"] == "encoder" and (own := _part(match["rest"]))
    }
    if not stack:
        return None
    efficient = "kinds.weight" in stack
    heads = f"heads.{'every_block' if efficient else 'ffn'}"
    return HyperformerConfig(
        name="hyperformer",
        rank=len(stack[f"{heads}.down_bias.weight"]),
        generator="efficient" if efficient else "unique",
        task_dim=stack["layers.weight"].shape[1],
        hidden_dim=len(stack["project.0.weight"]),
        projected_dim=len(stack["project.2.weight"]),
        train_layer_norms=fixture.trained_norms,
        pre_norm=f"{heads}.pre_weight.weight" in stack,
        post_norm=f"{heads}.post_weight.weight" in stack,
    )


def names(name: str) -> Iterator[str]:
    """Our candidate names of a tensor in the method's shared module."""
    if match := VECTOR.fullmatch(name):
        yield f"shared_modules.hyperformer.tasks.{match['task']}"
    elif (match := STACK.fullmatch(name)) and (part := _part(match["rest"])):
        yield f"shared_modules.hyperformer.{match['stack']}.{part}"


def unused(name: str) -> bool:
    """Whether a tensor is unused: the encoder has heads for cross-attention adapters, which it lacks."""
    match = STACK.fullmatch(name)
    return bool(match) and match["stack"] == "encoder" and match["rest"].startswith("cross_attention_")


def task(name: str) -> str | None:
    """The task of a task embedding."""
    match = VECTOR.fullmatch(name)
    return match["task"] if match else None


def _part(rest: str) -> str | None:
    """Our name of a tensor in a stack's generator."""
    if match := HEAD.fullmatch(rest):
        return f"heads.{BLOCKS[match['block']]}.{match['half'] or match['norm']}_{match['what']}.{match['kind']}"
    if match := NARROW.fullmatch(rest):
        return f"project.{match['part']}"
    return PARTS.get(rest)
