"""What do the formulas of the published VL-BART give: a plain second implementation that records fixtures of its own.

It knows nothing of the project's model: functions over a dictionary of tensors by the source's names, written from the
formulas in the recorded files' metadata. With it the runner is tried on kinds of files that are not in the repository.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

TASKS = ("vqa", "gqa", "nlvr", "caption")
LOSS_OF = {"vqa": "loss_vqa_weighted", "gqa": "loss_sample_mean", "caption": "loss_mean_over_tokens"}


class Published:
    """The source's model as formulas.

    Args:
        weights: tensors by the source's names.
        aliases: further names of some of them.
        config: sizes, by the source's names.
        scale: alpha / rank of LoRA.
    """

    start, pad, end = 2, 1, 2

    def __init__(self, weights: dict, aliases: dict, config: dict, scale: float = 1.0):
        self.weights, self.aliases, self.config, self.scale = weights, aliases, config, scale

    def get(self, name: str) -> torch.Tensor | None:
        """A tensor by any of its names."""
        return self.weights.get(self.aliases.get(name, name))

    def linear(self, name: str, x: torch.Tensor, task: str) -> torch.Tensor:
        """``x W^T + b``, with the task's LoRA where there is one."""
        bias = self.get(f"{name}.bias")
        y = x @ self.get(f"{name}.weight").T + (0 if bias is None else bias)
        down = self.get(f"{name}.lora_As.{task}")
        return y if down is None else y + self.scale * (x @ down.T @ self.get(f"{name}.lora_Bs.{task}").T)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Layer norm with its own gain and shift."""
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / spread * self.get(f"{name}.weight") + self.get(f"{name}.bias")

    def adapter(self, name: str, x: torch.Tensor, task: str) -> torch.Tensor:
        """``x + norm(up(gelu_tanh(down(norm(x)))))``; without one, x."""
        own = f"{name}.adapters.{task}"
        if self.get(f"{own}.down_sampler.weight") is None:
            return x
        z = self.norm(f"{name}.pre_layer_norm", x) if self.get(f"{name}.pre_layer_norm.weight") is not None else x
        z = self.linear(f"{own}.down_sampler", z, task)
        z = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        z = self.linear(f"{own}.up_sampler", z, task)
        return x + (
            self.norm(f"{name}.post_layer_norm", z) if self.get(f"{name}.post_layer_norm.weight") is not None else z
        )

    def attention(self, name: str, x: torch.Tensor, source: torch.Tensor, allowed: torch.Tensor, task: str):
        """Multi-head attention; ``allowed`` [B, 1, Q, K] is bool."""
        heads = self.config["encoder_attention_heads"]
        q, k, v = (
            self.linear(f"{name}.{part}_proj", states, task).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part, states in (("q", x), ("k", source), ("v", source))
        )
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        mixed = scores.masked_fill(~allowed, -1e30).softmax(-1) @ v
        return self.linear(f"{name}.out_proj", mixed.transpose(1, 2).flatten(2), task)

    def visual(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Tokens of every image's pooled cells [B, I * 36, d]."""
        features, side = inputs["vis_feats"].float(), math.isqrt(self.config["n_boxes"])
        images = 1 + (int(inputs["img_order_ids"].max()) if "img_order_ids" in inputs else 0)

        def split(name: str) -> torch.Tensor:
            return torch.cat([part[:, : side * side] for part in inputs[name].chunk(images, 1)], 1)

        pooled = []
        for part in features.chunk(images, 1):
            grid = part.transpose(1, 2).unflatten(2, (math.isqrt(part.shape[1]), -1))
            pooled.append(F.adaptive_max_pool2d(grid, side).flatten(2).transpose(1, 2))
        cells = torch.cat(pooled, 1)
        image = split("img_order_ids") if images > 1 else torch.zeros(cells.shape[:2], dtype=torch.long)
        order = split("obj_order_ids") if images > 1 else torch.arange(cells.shape[1]).expand(len(cells), -1)
        boxes = split("boxes")
        area = (boxes[..., 3] - boxes[..., 2]) * (boxes[..., 1] - boxes[..., 0])
        prefix, words = "model.encoder.visual_embedding", self.get("model.shared.weight")
        place = self.linear(f"{prefix}.absolute_vis_pos_embedding.0", torch.cat([boxes, area[..., None]], -1), "")
        return (
            self.norm(f"{prefix}.feat_embedding.1", self.linear(f"{prefix}.feat_embedding.0", cells, ""))
            + self.norm(f"{prefix}.absolute_vis_pos_embedding.1", place)
            + self.get(f"{prefix}.img_order_embedding.weight")[image]
            + words[len(words) - 1 - order]
        )

    def layer(self, name: str, x: torch.Tensor, masks: dict, memory: torch.Tensor | None, task: str) -> torch.Tensor:
        """One post-norm layer; with ``memory`` it is the decoder's."""
        own = "self_attn_adapter" if memory is not None else "attn_adapter"
        y = self.adapter(f"{name}.{own}", self.attention(f"{name}.self_attn", x, x, masks["own"], task), task)
        x = self.norm(f"{name}.self_attn_layer_norm", x + y)
        if memory is not None:
            y = self.attention(f"{name}.encoder_attn", x, memory, masks["memory"], task)
            x = self.norm(f"{name}.encoder_attn_layer_norm", x + self.adapter(f"{name}.enc_attn_adapter", y, task))
        y = self.linear(f"{name}.fc2", F.gelu(self.linear(f"{name}.fc1", x, task)), task)
        return self.norm(f"{name}.final_layer_norm", x + self.adapter(f"{name}.ff_adapter", y, task))

    def embed(self, stack: str, ids: torch.Tensor) -> torch.Tensor:
        """Words plus positions, normed."""
        places = self.get(f"model.{stack}.embed_positions.weight")[2 : 2 + ids.shape[1]]
        return self.norm(f"model.{stack}.layernorm_embedding", self.get("model.shared.weight")[ids] + places)

    def encode(self, inputs: dict[str, torch.Tensor], task: str) -> tuple[torch.Tensor, torch.Tensor]:
        """States of text and cells, and which positions may be seen."""
        cells = self.visual(inputs)
        x = torch.cat([self.embed("encoder", inputs["input_ids"]), cells], 1)
        seen = torch.cat([inputs["input_ids"] != 1, torch.ones(cells.shape[:2], dtype=torch.bool)], 1)[:, None, None]
        for i in range(self.config["encoder_layers"]):
            x = self.layer(f"model.encoder.layers.{i}", x, {"own": seen}, None, task)
        return x, seen

    def decode(self, ids: torch.Tensor, memory: torch.Tensor, seen: torch.Tensor, task: str) -> torch.Tensor:
        """Decoder states [B, T, d]."""
        past = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None]
        x = self.embed("decoder", ids)
        for i in range(self.config["decoder_layers"]):
            x = self.layer(f"model.decoder.layers.{i}", x, {"own": past, "memory": seen}, memory, task)
        return x

    def outputs(self, inputs: dict[str, torch.Tensor], task: str) -> dict[str, torch.Tensor]:
        """Everything that a recorded file stores of one task."""
        labels = inputs["labels"]
        before = labels[:, :-1].masked_fill(labels[:, :-1] < 0, self.pad)
        shifted = torch.cat([torch.full_like(labels[:, :1], self.start), before], 1)
        memory, seen = self.encode(inputs, task)
        hidden = self.decode(shifted, memory, seen, task)
        logits = self.head(hidden)
        valid = labels >= 0
        picked = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
        token = -picked * valid
        sample = token.sum(1) / valid.sum(1).clamp(min=1)
        return {
            "encoder_last_hidden_state": memory,
            "decoder_last_hidden_state": hidden,
            "logits": logits,
            "loss_per_token": token,
            "loss_per_sample": sample,
            "loss_vqa_weighted": (sample * inputs["scores"]).mean(),
            "loss_sample_mean": sample.mean(),
            "loss_mean_over_tokens": token.sum() / valid.sum(),
        }

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits, by the words' own embeddings."""
        return hidden @ self.get("model.shared.weight").T

    @torch.no_grad()
    def greedy(self, inputs: dict[str, torch.Tensor], task: str, length: int) -> torch.Tensor:
        """Ids of the likeliest words, one after the other, padded behind the end."""
        memory, seen = self.encode(inputs, task)
        ids = torch.full((len(memory), 1), self.start)
        done = torch.zeros(len(memory), dtype=torch.bool)
        while ids.shape[1] < length and not bool(done.all()):
            word = self.head(self.decode(ids, memory, seen, task)[:, -1]).argmax(-1).masked_fill(done, self.pad)
            ids, done = torch.cat([ids, word[:, None]], 1), done | (word == self.end)
        return ids


def record(
    path: Path, model: Published, inputs: dict, trainable: Iterable[str], tasks: Iterable[str], **meta: Any
) -> None:
    """Write a file in the recorded format, as ``model`` computes it."""
    trainable, tensors = list(trainable), {}
    for name in trainable:
        model.weights[name].requires_grad_()
    for task in tasks:
        outputs = model.outputs(inputs, task)
        tensors |= {f"output/{task}/{name}": value.detach() for name, value in outputs.items()}
        tensors[f"generate/{task}/greedy"] = model.greedy(inputs, task, 20)
        gradients = torch.autograd.grad(
            outputs["loss_vqa_weighted"], [model.weights[name] for name in trainable], allow_unused=True
        )
        norms = [-1.0 if gradient is None else float(gradient.norm()) for gradient in gradients]
        tensors[f"grad_norm/{task}"] = torch.tensor(norms)
        found = {n: g for n, g in zip(trainable, gradients, strict=True) if g is not None and g.numel() <= 9000}
        tensors |= {f"grad/{task}/{name}": gradient for name, gradient in found.items()}
    tensors |= {f"input/{name}": value for name, value in inputs.items()}
    _write(path, model, tensors, trainable, meta)


def record_training(path: Path, model: Published, batches: list[dict], trainable: Iterable[str], **meta: Any) -> None:
    """Write ten steps of the source's optimiser (decay after the update) in the recorded format."""
    trainable, cycle = list(trainable), ("vqa", "gqa", "caption")
    start = {name: value.clone() for name, value in model.weights.items()}
    moments = {name: (torch.zeros_like(start[name]), torch.zeros_like(start[name])) for name in trainable}
    losses, norms = [], []
    for step in range(10):
        task, batch = cycle[step % 3], batches[step % 3]
        for name in trainable:
            model.weights[name] = model.weights[name].detach().requires_grad_()
        outputs = model.outputs(batch, task)
        loss = outputs[
            {"vqa": "loss_vqa_weighted", "gqa": "loss_sample_mean", "caption": "loss_mean_over_tokens"}[task]
        ]
        gradients = torch.autograd.grad(loss, [model.weights[name] for name in trainable])
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        losses.append(loss.detach())
        norms.append(norm)
        rate = 0.01 * (step / 2 if step < 2 else (20 - step) / 18)
        for name, gradient in zip(trainable, gradients, strict=True):
            gradient = gradient * min(1.0, 1.0 / (float(norm) + 1e-6))
            first, second = moments[name]
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.999).add_(0.001 * gradient**2)
            value = model.weights[name].detach()
            corrected = rate * math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
            value = value - corrected * first / (second.sqrt() + 1e-6)
            model.weights[name] = value - (0 if "bias" in name else rate * 0.01 * value)
    tensors = {"output/losses": torch.stack(losses), "output/grad_norms_before_clip": torch.stack(norms)}
    tensors |= {f"final/{name}": model.weights[name].detach() for name in trainable}
    tensors |= {f"input/{i}/{name}": value for i, batch in enumerate(batches) for name, value in batch.items()}
    model.weights = start
    meta |= {
        "task_of_step": [cycle[step % 3] for step in range(10)],
        "batch_of_step": [step % 3 for step in range(10)],
        "optimizer": "eps 1e-6; weight decay 0.01, but 0 for biases",
        "schedule": "linear warmup over 10% of 20 steps, then linear decay",
        "lr": 0.01,
        "clip_grad_norm": 1.0,
        "no_decay_trainable": [name for name in trainable if "bias" in name],
    }
    _write(path, model, tensors, trainable, meta)


def _write(path: Path, model: Published, tensors: dict, trainable: list[str], meta: dict) -> None:
    tensors |= {f"weight/{name}": value.detach().half() for name, value in model.weights.items()}
    meta = {"trainable": trainable, "aliases": model.aliases, "config": model.config, "generation": ""} | meta
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"json": json.dumps(meta)})
