"""Multitask CLIP-BART fine-tuning with routing functions, in one file.

This file is the explanation of what multitask-vl does: a frozen BART reads a question next to the grid features of an
image, an adapter after every sublayer is all that is trained in it, and in the decoder a *routing function* combines
the adapter's bottleneck with x_R, the pooled encoder output. It needs torch, transformers and numpy, and nothing from
the package; a test asserts that its losses, gradients and generated ids equal the package's.

Read it from top to bottom: 1. routing functions, 2. adapter, 3. visual embedding, 4. model, 5. data, 6. training.

Prepare the data (about two minutes on two CPU cores), then run it:

    multitask-vl make-synthetic --out data/world
    multitask-vl extract --config configs/examples/quickstart.yaml
    multitask-vl store export data/world/features.h5 data/nano --layout numpy
    python examples/nano_routing.py --world data/world --features data/nano

Papers: VL-Adapter (Sung et al., CVPR 2022) for the multitask setting and the adapters; "Introducing Routing Functions
to Vision-Language Parameter-Efficient Fine-Tuning with Low-Rank Bottlenecks" (Qu et al., ECCV 2024) for the routing.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer, BartForConditionalGeneration
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput

BART = Path(__file__).resolve().parents[1] / "multitask_vl" / "synthetic" / "weights" / "bart"
IGNORE_INDEX, BATCH_SIZE, PEAK_LR = -100, 64, 2e-3


# ---- 1. Routing functions: x_H [B, T, r] and x_R [B, 1, r] give [B, T, r]. No parameters.
def mul(x_h, x_r):
    """Element-wise product."""
    return x_h * x_r


def add(x_h, x_r):
    """Sum."""
    return x_h + x_r


def mm1(x_h, x_r):
    """``x_H x_R^T x_R``: each token's projection onto x_R. For one row of x_R a scalar per token suffices."""
    return (x_h * x_r).sum(-1, keepdim=True) * x_r


def mm2(x_h, x_r):
    """``x_H X`` where each of the r rows of X is x_R: each token's sum times x_R."""
    return x_h.sum(-1, keepdim=True) * x_r


ROUTING = {"mul": mul, "add": add, "mm1": mm1, "mm2": mm2}


# ---- 2. Adapter: a bottleneck after a frozen linear layer, one for each task.


def linear(d_in, d_out):
    """A linear layer with BART's initialization."""
    layer = nn.Linear(d_in, d_out)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class Adapter(nn.Module):
    """``h + up(gelu(route(down(h), down(x_R))))`` with ``h = base(x)``; ``routing`` maps a task to its function.

    ``context`` holds the task and x_R [B, 1, d] of the running batch. It belongs to one model and is never a global.
    """

    def __init__(self, base, width, rank, context, routing):
        super().__init__()
        self.base, self.context, self.routing = base, context, routing
        self.down = nn.ModuleDict({task: linear(width, rank) for task in routing})
        self.up = nn.ModuleDict({task: linear(rank, width) for task in routing})

    def forward(self, x):
        h, task = self.base(x), self.context.task
        bottleneck = self.down[task](h)
        if self.routing[task] != "none":  # the same down-projection maps h and x_R into one r-dimensional space
            bottleneck = ROUTING[self.routing[task]](bottleneck, self.down[task](self.context.x_r))
        return h + self.up[task](F.gelu(bottleneck, approximate="tanh"))


# ---- 3. Visual embedding: grid features of an image to tokens of BART's width.


class VisualEmbedding(nn.Module):
    """``LN(W x) + LN(W' box) + image order + grid cell``, as in VL-T5 and VL-Adapter.

    VL-Adapter's boxes are zeros for grid features. A cell's embedding is a row at the end of BART's own token table.
    """

    def __init__(self, feature_dim, width, max_images=2):
        super().__init__()
        self.project, self.project_norm = linear(feature_dim, width), nn.LayerNorm(width)
        self.box, self.box_norm = linear(5, width), nn.LayerNorm(width)
        self.image_order = nn.Embedding(max_images, width)
        nn.init.normal_(self.image_order.weight, std=0.02)

    def forward(self, features, token_table):
        """Features [B, N, D] of one image per row and the token table [V, d] to visual tokens [B, N, d]."""
        cell = torch.arange(features.shape[1])
        tokens = self.project_norm(self.project(features))
        tokens = tokens + self.box_norm(self.box(features.new_zeros(features.shape[1], 5)))
        return tokens + self.image_order.weight[0] + token_table[len(token_table) - 1 - cell]

    @torch.no_grad()
    def normalize_input(self, mean, std):
        """Fold ``(x - mean) / std`` [D] into the initial projection."""
        self.project.weight /= std
        self.project.bias -= self.project.weight @ mean


# ---- 4. Model: a frozen BART with adapters.


class NanoRouting(nn.Module):
    """A frozen BART that reads text and visual tokens together; trained: adapters, layer norms, visual embedding."""

    def __init__(self, lm, feature_dim, routing, rank=32):
        super().__init__()
        self.lm, self.context = lm.requires_grad_(False), SimpleNamespace(task=None, x_r=None)
        self.visual = VisualEmbedding(feature_dim, lm.config.d_model)
        for name, module in list(lm.named_modules()):
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)
            # the last linear layer of every sublayer: attention outputs and the second feed-forward layer
            parent, _, leaf = name.rpartition(".")
            if leaf in ("out_proj", "fc2"):
                functions = (
                    routing if "decoder" in name else dict.fromkeys(routing, "none")
                )  # routing is in the decoder
                adapter = Adapter(module, lm.config.d_model, rank, self.context, functions)
                setattr(lm.get_submodule(parent), leaf, adapter)
        # beam search repeats the encoder output per beam, so x_R is pooled where the decoder receives that output
        lm.model.decoder.register_forward_pre_hook(self._set_x_r, with_kwargs=True)

    def _set_x_r(self, decoder, args, kwargs):
        """x_R: the mean of the encoder output over valid positions, [B, S, d] -> [B, 1, d]."""
        hidden, mask = kwargs["encoder_hidden_states"], kwargs["encoder_attention_mask"]
        weights = (mask != 0).to(hidden.dtype).unsqueeze(-1)
        self.context.x_r = (hidden * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)

    def encode(self, batch):
        """Joint encoder: text [B, L] and features [B, N, D] to hidden states [B, L + N, d] and their mask."""
        self.context.task = batch["task"]
        encoder, input_ids, text_mask = self.lm.model.encoder, batch["input_ids"], batch["attention_mask"]
        text = encoder.layernorm_embedding(encoder.embed_tokens(input_ids) + encoder.embed_positions(input_ids))
        visual = self.visual(batch["features"], self.lm.get_input_embeddings().weight)
        hidden = torch.cat([text, visual], 1)
        mask = torch.cat([text_mask, text_mask.new_ones(visual.shape[:2])], 1)
        hidden = F.dropout(hidden, encoder.dropout, self.training)
        attention = create_bidirectional_mask(config=encoder.config, inputs_embeds=hidden, attention_mask=mask)
        for layer in encoder.layers:
            hidden = layer(hidden, attention)
        return hidden, mask

    def decode(self, encoded, ids):
        """Logits [B, T, V] for decoder ids [B, T]; transformers runs the decoder over the encoder output."""
        hidden, mask = encoded
        outputs = BaseModelOutput(last_hidden_state=hidden)
        return self.lm(decoder_input_ids=ids, encoder_outputs=outputs, attention_mask=mask, use_cache=False).logits

    def forward(self, batch):
        """Cross-entropy of every target token [B, T], 0 where the label is ignored."""
        logits = self.decode(self.encode(batch), self.lm.prepare_decoder_input_ids_from_labels(batch["labels"]))
        return F.cross_entropy(logits.transpose(1, 2), batch["labels"], ignore_index=IGNORE_INDEX, reduction="none")

    @torch.no_grad()
    def generate(self, batch, max_length=10):
        """Greedy token ids [B, T], the start token included, padded after each row's end."""
        config, encoded = self.lm.config, self.encode(batch)
        ids = torch.full((len(batch["input_ids"]), 1), config.decoder_start_token_id)
        finished = torch.zeros(len(ids), dtype=torch.bool)
        while ids.shape[1] < max_length and not finished.all():
            token = self.decode(encoded, ids)[:, -1].argmax(-1).masked_fill(finished, config.pad_token_id)
            ids = torch.cat([ids, token[:, None]], 1)
            finished |= token == config.eos_token_id
        return ids


def mean_loss(losses, labels):
    """Per-token losses [B, T] to one number: the mean over each row's tokens, then over rows."""
    valid = labels != IGNORE_INDEX
    return (losses.sum(1) / valid.sum(1)).mean()


# ---- 5. Data: (image key, text, answer) from the official files, and features by key.


def read_vqa(world, split):
    """Examples of VQA v2's question and annotation files; the target is the most frequent answer."""
    questions = json.loads((world / f"vqa/v2_OpenEnded_world_{split}_questions.json").read_text())["questions"]
    annotations = json.loads((world / f"vqa/v2_world_{split}_annotations.json").read_text())["annotations"]
    answers = {one["question_id"]: one["multiple_choice_answer"] for one in annotations}
    return [(f"{one['image_id']:012d}", f"vqa: {one['question']}", answers[one["question_id"]]) for one in questions]


def read_gqa(world, split):
    """Examples of a GQA question file."""
    questions = json.loads((world / f"gqa/{split}_balanced_questions.json").read_text())
    return [(one["imageId"], f"gqa: {one['question']}", one["answer"]) for one in questions.values()]


class Features:
    """Grid features [N, T, D] by image key. ``shuffled`` gives every image the features of another one."""

    def __init__(self, folder, shuffled):
        self.array = np.load(folder / "features.npy", mmap_mode="r")
        keys = (folder / "keys.txt").read_text().splitlines()
        rows = np.random.default_rng(0).permutation(len(keys)) if shuffled else np.arange(len(keys))
        self.rows = dict(zip(keys, rows, strict=True))

    def __getitem__(self, keys):
        return torch.from_numpy(np.stack([self.array[self.rows[key]] for key in keys]).astype(np.float32))


def collate(task, examples, tokenizer, features):
    """A batch of one task."""
    keys, texts, answers = zip(*examples, strict=True)
    text = tokenizer(list(texts), padding=True, return_tensors="pt")
    target = tokenizer(list(answers), padding=True, return_tensors="pt")
    labels = target.input_ids.masked_fill(target.attention_mask == 0, IGNORE_INDEX)
    return {"task": task, **text, "labels": labels, "features": features[keys]}


# ---- 6. Training.


def accuracy(model, task, examples, tokenizer, features):
    """Percent of generated answers that equal the target."""
    correct = 0
    for start in range(0, len(examples), 128):
        chunk = examples[start : start + 128]
        ids = model.generate(collate(task, chunk, tokenizer, features))
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        correct += sum(text.strip() == answer for text, (_, _, answer) in zip(texts, chunk, strict=True))
    return 100 * correct / len(examples)


def train(options, shuffled):
    """Train from the frozen BART; returns the validation accuracy by task."""
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(BART)
    lm = BartForConditionalGeneration.from_pretrained(BART, dtype=torch.float32, dropout=0.0)
    features = Features(options.features, shuffled)
    model = NanoRouting(lm, features.array.shape[-1], {"vqa": "mul", "gqa": "mm1"})
    sample = torch.from_numpy(features.array[:: max(1, len(features.array) // 256)].astype(np.float32)).flatten(0, 1)
    model.visual.normalize_input(sample.mean(0), sample.std(0).clamp(min=1e-6))
    data = {"vqa": read_vqa(options.world, "train"), "gqa": read_gqa(options.world, "train")}

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_LR, weight_decay=0.01)
    total, warmup = options.steps, max(1, options.steps // 10)
    rate = lambda step: min(step / warmup, (total - step) / max(1, total - warmup))  # noqa: E731  (linear, linear)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    print(f"{'shuffled' if shuffled else 'true'} images, {sum(p.numel() for p in parameters):,} trainable parameters")
    for step in range(total):
        task = list(data)[step % len(data)]  # every batch is of one task
        rows = np.random.default_rng((options.seed, step)).choice(len(data[task]), BATCH_SIZE, replace=False)
        batch = collate(task, [data[task][row] for row in rows], tokenizer, features)
        loss = mean_loss(model(batch), batch["labels"])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 25 == 0 or step >= total - 2:
            print(f"  step {step:4d}  {task}  loss {loss.item():.3f}")
    model.eval()
    val = {"vqa": read_vqa(options.world, "val"), "gqa": read_gqa(options.world, "val")}
    return {task: accuracy(model, task, val[task][: options.limit], tokenizer, features) for task in val}


def main():
    parser = argparse.ArgumentParser(description="Train adapters with routing on the synthetic world, in one file.")
    parser.add_argument("--world", type=Path, default=Path("data/world"), help="folder of the synthetic world")
    parser.add_argument("--features", type=Path, default=Path("data/nano"), help="folder of features.npy and keys.txt")
    parser.add_argument("--steps", type=int, default=250, help="training steps")
    parser.add_argument("--limit", type=int, default=512, help="validation examples per task")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    options = parser.parse_args()
    if not (options.features / "features.npy").is_file():
        parser.error(f"no features.npy in {options.features}; the docstring of this file has the commands that make it")
    scores, control = train(options, shuffled=False), train(options, shuffled=True)
    for task in scores:
        print(f"{task}: validation accuracy {scores[task]:.1f}, shuffled-image control {control[task]:.1f}")


if __name__ == "__main__":
    main()
