"""What do the formulas of the published compacters, low-rank adapters, hyperformers and prompts give?

The second implementation of `tests.published`, for the methods that it has not: again functions over tensors by the
source's names, made from formulas, and with random tensors under those names.
"""

from __future__ import annotations

import math

import torch

from tests.published import TASKS, Published

PLACES = {"encoder": ["attn", "ff"], "decoder": ["self_attn", "enc_attn", "ff"]}
BLOCK = {
    "attn": "self_attention",
    "self_attn": "self_attention",
    "enc_attn": "cross_attention",
    "ff": "feed_forward",
}
KIND = {"feed_forward": 0, "self_attention": 1, "cross_attention": 2}
"""Row of the table of sublayers."""
NARROW = "task_hypernet.task_embeding_generator"
PROMPTS = "model.encoder.prompt_modules.prompts"


class PublishedMethods(Published):
    """The source's model with any of these methods, told by its tensors."""

    def adapter(self, name: str, x: torch.Tensor, task: str) -> torch.Tensor:
        """``x + norm(up(gelu_tanh(down(norm(x)))))`` whose maps are given as factors, or generated."""
        head, _, place = name.rpartition(".")
        stack, layer = head.split(".")[1], int(head.split(".")[3])
        if self.get(f"model.{stack}.adapter_layers_hyper_net.layer_id_embeddings.weight") is not None:
            return self.generated(stack, layer, BLOCK[place.removesuffix("_adapter")], x, task)
        own = f"{name}.adapters.{task}"
        if self.get(f"{own}.down_sampler.b") is None:
            return x
        z = x @ self.matrix(f"{own}.down_sampler") + self.get(f"{own}.down_sampler.b")
        return x + gelu(z) @ self.matrix(f"{own}.up_sampler") + self.get(f"{own}.up_sampler.b")

    def matrix(self, name: str) -> torch.Tensor:
        """H [in, out] as it stands in the formula."""
        rule, slices = self.get(f"{name}.phm_rule"), self.get(f"{name}.W")
        if slices is None:
            slices = self.get(f"{name}.W_left") @ self.get(f"{name}.W_right")
        return slices if rule is None else sum(torch.kron(a, w) for a, w in zip(rule, slices, strict=True))

    def generated(self, stack: str, layer: int, block: str, x: torch.Tensor, task: str) -> torch.Tensor:
        """A hyperformer's adapter, every tensor of it computed where it is used."""
        net, width = f"model.{stack}.adapter_layers_hyper_net", x.shape[-1]
        known = [self.get(f"model.shared_task_embed.task_to_embeddings.{task}")]
        known.append(self.get(f"{net}.layer_id_embeddings.weight")[layer])
        kinds = self.get(f"{net}.adapters_block_type.weight")
        if kinds is not None:
            known.append(kinds[KIND[block]])
        c = self.linear(f"{net}.{NARROW}.0", torch.cat(known), task).clamp(min=0)
        c = self.linear(f"{net}.{NARROW}.2", c, task)
        c = (c - c.mean()) / (c.var(unbiased=False) + 1e-6).sqrt()
        c = c * self.get(f"{net}.LayerNorm.weight") + self.get(f"{net}.LayerNorm.bias")
        start = f"{net}." if kinds is not None else f"{net}.{block}_"

        def made(part: str, inner: str = "") -> tuple[torch.Tensor, torch.Tensor]:
            return tuple(self.linear(f"{start}{part}.{kind}_generator{inner}", c, task) for kind in ("weight", "bias"))

        def normed(which: str, y: torch.Tensor) -> torch.Tensor:
            if self.get(f"{start}{which}_layernorm_hypernet.weight_generator.weight") is None:
                return y
            gain, shift = made(f"{which}_layernorm_hypernet")
            y = y - y.mean(-1, keepdim=True)
            return y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain + shift

        down, down_bias = made("down_sampler_hyper_net", ".0")
        up, up_bias = made("up_sampler_hyper_net", ".0")
        z = gelu(normed("pre", x) @ down.view(-1, width).T + down_bias)
        return x + normed("post", z @ up.view(width, -1).T + up_bias)

    def encode(self, inputs: dict[str, torch.Tensor], task: str) -> tuple[torch.Tensor, torch.Tensor]:
        """States of prompts, text and cells. Prompts have no positions, and the norm of the text's embeddings."""
        name = f"{PROMPTS}.{task}.prefix_embedding"
        table = self.get(f"{name}.0.weight")
        if table is None:
            return super().encode(inputs, task)
        prompts = self.linear(f"{name}.3", torch.tanh(self.linear(f"{name}.1", table, task)), task)
        prompts = self.norm("model.encoder.layernorm_embedding", prompts).expand(len(inputs["input_ids"]), -1, -1)
        cells = self.visual(inputs)
        x = torch.cat([prompts, self.embed("encoder", inputs["input_ids"]), cells], 1)
        seen = torch.ones(x.shape[:2], dtype=torch.bool)
        seen[:, len(table) : -cells.shape[1]] = inputs["input_ids"] != 1
        for i in range(self.config["encoder_layers"]):
            x = self.layer(f"model.encoder.layers.{i}", x, {"own": seen[:, None, None]}, None, task)
        return x, seen[:, None, None]


def gelu(z: torch.Tensor) -> torch.Tensor:
    """The tanh approximation."""
    return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


class Tensors:
    """Random tensors by the source's names, and aliases of those that tasks share."""

    def __init__(self):
        self.weights: dict[str, torch.Tensor] = {}
        self.aliases: dict[str, str] = {}
        self.generator = torch.Generator().manual_seed(4)

    def add(self, name: str, *shape: int, spread: float = 0.15, around: float = 0.0) -> None:
        """A tensor that half precision holds."""
        self.weights[name] = (around + spread * torch.randn(*shape, generator=self.generator)).half().float()

    def linear(self, name: str, d_in: int, d_out: int, spread: float = 0.15) -> None:
        """A weight and a bias."""
        self.add(f"{name}.weight", d_out, d_in, spread=spread)
        self.add(f"{name}.bias", d_out, spread=spread)

    def per_task(self, pattern: str, own: bool, *shape: int, spread: float = 0.15) -> None:
        """One tensor a task, or one by the first task's name with the other tasks' names for aliases."""
        for i, task in enumerate(TASKS):
            if own or i == 0:
                self.add(pattern.format(task), *shape, spread=spread)
            else:
                self.aliases[pattern.format(task)] = pattern.format(TASKS[0])


def factor_tensors(config: dict, own: str, n: int | None, k: int | None, rule: str = "own") -> Tensors:
    """Tensors of compacters or, without n, of low-rank adapters.

    Args:
        own: halves that every task has for itself: "down", "up", "down up" or "".
        n: slices of a map.
        k: rank of factorised maps or slices; None for full slices.
        rule: own, shared or shared_over_tasks.
    """
    made, width, rank = Tensors(), config["d_model"], 6
    stacked = () if n is None else (n,)
    if rule == "shared":
        made.add("phm_rule", n, n, n, spread=0.7)
    for stack, places in PLACES.items():
        for name in (f"model.{stack}.layers.{i}.{p}_adapter" for i in range(config[f"{stack}_layers"]) for p in places):
            for half, d_in, d_out in (("down", width, rank), ("up", rank, width)):
                sampler, alone = f"{name}.adapters.{{}}.{half}_sampler", half in own
                inner, outer = d_in // (n or 1), d_out // (n or 1)
                if rule == "shared":
                    made.aliases |= {f"{sampler}.phm_rule".format(task): "phm_rule" for task in TASKS}
                elif n:
                    made.per_task(f"{sampler}.phm_rule", alone and rule == "own", n, n, n, spread=0.7)
                if k:
                    made.per_task(f"{sampler}.W_left", alone, *stacked, inner, k, spread=0.3)
                    made.per_task(f"{sampler}.W_right", alone, *stacked, k, outer, spread=0.3)
                else:
                    made.per_task(f"{sampler}.W", alone, n, inner, outer)
                made.per_task(f"{sampler}.b", alone, d_out)
    return made


def hyperformer_tensors(config: dict, efficient: bool, norms: bool) -> Tensors:
    """Tensors of a hyperformer; ``norms`` adds those that generate layer norms, idle ones of the encoder included."""
    made, width, rank, task_dim, projected = Tensors(), config["d_model"], 6, 10, 4
    for task in TASKS:
        made.add(f"model.shared_task_embed.task_to_embeddings.{task}", task_dim, spread=1.0)
    for stack in PLACES:
        net = f"model.{stack}.adapter_layers_hyper_net"
        made.add(f"{net}.layer_id_embeddings.weight", config[f"{stack}_layers"], task_dim)
        if efficient:
            made.add(f"{net}.adapters_block_type.weight", 3, task_dim)
        made.linear(f"{net}.{NARROW}.0", (3 if efficient else 2) * task_dim, 7)
        made.linear(f"{net}.{NARROW}.2", 7, projected)
        made.add(f"{net}.LayerNorm.weight", projected, around=1.0)
        made.add(f"{net}.LayerNorm.bias", projected)
        blocks = ["feed_forward_", "self_attention_", "cross_attention_"]
        for block in [""] if efficient else blocks[: 2 + (stack == "decoder")]:
            for half, first in (("down", rank), ("up", width)):
                head = f"{net}.{block}{half}_sampler_hyper_net"
                made.linear(f"{head}.weight_generator.0", projected, rank * width, spread=0.08)
                made.linear(f"{head}.bias_generator.0", projected, first, spread=0.08)
        for block in [""] if efficient else blocks:
            for which in ("pre", "post") if norms else ():
                for kind in ("weight", "bias"):
                    made.linear(f"{net}.{block}{which}_layernorm_hypernet.{kind}_generator", projected, width)
    return made


def prompt_tensors(config: dict, own: bool) -> Tensors:
    """Tensors of five prompts for all tasks, or for each."""
    made, width, mid = Tensors(), config["d_model"], 9
    parts = {"0.weight": (5, width), "1.weight": (mid, width), "1.bias": (mid,), "3.weight": (width, mid)}
    for part, shape in (parts | {"3.bias": (width,)}).items():
        made.per_task(f"{PROMPTS}.{{}}.prefix_embedding.{part}", own, *shape, spread=0.4)
    return made
