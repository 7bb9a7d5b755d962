"""What do the formulas of the published VL-T5 give: the second implementation of `tests.published`, for T5."""

from __future__ import annotations

import math

import torch

from tests.published import Published
from tests.published_methods import Tensors

ATTENTIONS = {"encoder": ("SelfAttention",), "decoder": ("SelfAttention", "EncDecAttention")}
ADAPTERS = {"SelfAttention": "attn_adapter", "EncDecAttention": "enc_attn_adapter"}
PROMPTS = "encoder.prompt_modules.prompts"


class PublishedT5(Published):
    """The source's T5 as formulas; names lack the ``model.`` that BART's have."""

    start, pad, end = 0, 0, 1

    def get(self, name: str) -> torch.Tensor | None:
        """A tensor by any of its names."""
        return super().get(name.removeprefix("model."))

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Root mean square norm."""
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.get(f"{name}.weight")

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scaled before the tied head."""
        return super().head(hidden * hidden.shape[-1] ** -0.5)

    def bias(self, stack: str, length: int) -> torch.Tensor:
        """What the distance from query to key adds to the scores [1, H, L, L]; far distances share a number."""
        table = self.get(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
        far, buckets = self.config["relative_attention_max_distance"], len(table)
        places = buckets // 2 if stack == "encoder" else buckets
        exact = places // 2
        rows = torch.empty(length, length, dtype=torch.long)
        for query in range(length):
            for key in range(length):
                distance = abs(key - query) if stack == "encoder" else max(query - key, 0)
                if distance >= exact:
                    share = math.log(distance / exact) / math.log(far / exact)
                    distance = min(places - 1, exact + int(share * (places - exact)))
                rows[query, key] = distance + (places if stack == "encoder" and key > query else 0)
        return table[rows].permute(2, 0, 1)[None]

    def attend(self, name: str, x: torch.Tensor, source: torch.Tensor, bias: torch.Tensor, task: str) -> torch.Tensor:
        """Multi-head attention of unscaled scores plus ``bias``, minus infinity where nothing may be seen."""
        q, k, v = (
            self.linear(f"{name}.{part}", states, task).unflatten(-1, (self.config["num_heads"], -1)).transpose(1, 2)
            for part, states in (("q", x), ("k", source), ("v", source))
        )
        mixed = (q @ k.transpose(2, 3) + bias).softmax(-1) @ v
        return self.linear(f"{name}.o", mixed.transpose(1, 2).flatten(2), task)

    def stack(self, stack: str, x: torch.Tensor, biases: dict, memory: torch.Tensor | None, task: str) -> torch.Tensor:
        """All blocks and the last norm; ``biases`` by attention."""
        depth = self.config["num_layers" if stack == "encoder" else "num_decoder_layers"]
        for i in range(depth):
            for place, attention in enumerate(ATTENTIONS[stack]):
                holder = f"{stack}.block.{i}.layer.{place}"
                y = self.norm(f"{holder}.layer_norm", x)
                source = y if memory is None or attention == "SelfAttention" else memory
                y = self.attend(f"{holder}.{attention}", y, source, biases[attention], task)
                x = x + self.adapter(f"{holder}.{ADAPTERS[attention]}", y, task)
            holder = f"{stack}.block.{i}.layer.{len(ATTENTIONS[stack])}"
            y = self.linear(f"{holder}.DenseReluDense.wi", self.norm(f"{holder}.layer_norm", x), task).clamp(min=0)
            x = x + self.adapter(f"{holder}.ff_adapter", self.linear(f"{holder}.DenseReluDense.wo", y, task), task)
        return self.norm(f"{stack}.final_layer_norm", x)

    def encode(self, inputs: dict[str, torch.Tensor], task: str) -> tuple[torch.Tensor, torch.Tensor]:
        """States of prompts, text and cells, and what may be seen as a bias of cross-attention."""
        ids, cells = inputs["input_ids"], self.visual(inputs)
        text, name = self.get("shared.weight")[ids], f"{PROMPTS}.{task}.prefix_embedding"
        table = self.get(f"{name}.0.weight")
        prompts = text.new_zeros(0, text.shape[-1])
        if table is not None:
            prompts = self.linear(f"{name}.3", torch.tanh(self.linear(f"{name}.1", table, task)), task)
        x = torch.cat([prompts.expand(len(ids), -1, -1), text, cells], 1)
        words = x.shape[1] - cells.shape[1]
        seen = torch.ones(x.shape[:2], dtype=torch.bool)
        seen[:, len(prompts) : words] = ids != self.pad
        hidden = torch.zeros(seen.shape).masked_fill(~seen, -math.inf)[:, None, None]
        between = torch.zeros(1, self.config["num_heads"], x.shape[1], x.shape[1])
        between[..., :words, :words] = self.bias("encoder", words)
        return self.stack("encoder", x, {"SelfAttention": between + hidden}, None, task), hidden

    def decode(self, ids: torch.Tensor, memory: torch.Tensor, seen: torch.Tensor, task: str) -> torch.Tensor:
        """Decoder states [B, T, d], last norm included."""
        length = ids.shape[1]
        future = torch.full((length, length), -math.inf).triu(1)
        biases = {"SelfAttention": self.bias("decoder", length) + future, "EncDecAttention": seen}
        return self.stack("decoder", self.get("shared.weight")[ids], biases, memory, task)


def tensors_of(config: dict, method: str, own: bool) -> Tensors:
    """Random tensors by the source's names.

    Args:
        method: adapter, lora, prompt or none.
        own: whether every task has its own.
    """
    made, width, inner = Tensors(), config["d_model"], config["num_heads"] * config["d_kv"]

    def per_task(pattern: str, sizes: dict[str, tuple[int, ...]]) -> None:
        for part, shape in sizes.items():
            made.per_task(f"{pattern}.{part}", own, *shape)

    def adapter(name: str) -> None:
        if method == "adapter":
            sizes = {"down_sampler.weight": (5, width), "down_sampler.bias": (5,), "up_sampler.weight": (width, 5)}
            per_task(f"{name}.adapters.{{}}", sizes | {"up_sampler.bias": (width,)})

    made.add("shared.weight", config["vocab_size"], width, spread=1.0)
    made.aliases |= dict.fromkeys(("lm_head.weight", "encoder.embed_tokens.weight"), "shared.weight")
    for part, d_in in (("feat_embedding", config["feat_dim"]), ("absolute_vis_pos_embedding", 5)):
        made.linear(f"encoder.visual_embedding.{part}.0", d_in, width)
        made.add(f"encoder.visual_embedding.{part}.1.weight", width, around=1.0)
    made.add("encoder.visual_embedding.img_order_embedding.weight", config["n_images"], width)
    if method == "prompt":
        sizes = {"0.weight": (4, width), "1.weight": (9, width), "1.bias": (9,), "3.weight": (width, 9)}
        per_task(f"{PROMPTS}.{{}}.prefix_embedding", sizes | {"3.bias": (width,)})
    for stack, attentions in ATTENTIONS.items():
        made.add(
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            config["relative_attention_num_buckets"], config["num_heads"], spread=0.5,
        )  # fmt: skip
        made.add(f"{stack}.final_layer_norm.weight", width, around=1.0)
        for i in range(config["num_layers" if stack == "encoder" else "num_decoder_layers"]):
            for place, attention in enumerate((*attentions, "ff")):
                holder = f"{stack}.block.{i}.layer.{place}"
                made.add(f"{holder}.layer_norm.weight", width, around=1.0)
                adapter(f"{holder}.{ADAPTERS.get(attention, 'ff_adapter')}")
                if attention == "ff":
                    made.add(f"{holder}.DenseReluDense.wi.weight", config["d_ff"], width)
                    made.add(f"{holder}.DenseReluDense.wo.weight", width, config["d_ff"])
                    continue
                for part in "qkv":
                    made.add(f"{holder}.{attention}.{part}.weight", inner, width)
                    if method == "lora" and part != "k":
                        per_task(f"{holder}.{attention}.{part}", {"lora_As.{}": (5, width), "lora_Bs.{}": (inner, 5)})
                made.add(f"{holder}.{attention}.o.weight", width, inner)
    return made
