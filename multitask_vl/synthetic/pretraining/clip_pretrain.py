"""Pretraining of the tiny CLIP: contrastive training on rendered scenes, single objects first, then region captions.

Stage 1, 64 px, one object: image against its full description, and against captions of one attribute.
Stage 2, 128 px, up to five objects: image against "a red star at the top left", and each grid cell against captions of
one attribute or "nothing" (region captions, which use the positions that the scene knows).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn.functional as F
from open_clip.model import CLIP

from multitask_vl.errors import InputError
from multitask_vl.synthetic.pretraining.clip_captions import VALUE_CAPTIONS, region_captions, tokenize
from multitask_vl.synthetic.pretraining.clip_data import (
    SMALL_CANVAS,
    MultiObjectBatch,
    SingleObjectBatch,
    multi_object_batch,
    single_object_batch,
)
from multitask_vl.synthetic.pretraining.clip_model import (
    cell_embeddings,
    enlarge_clip,
    grid_features,
    init_clip,
    normalize_pixels,
    save_clip,
)


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; the defaults are those of the bundled weights."""

    seed: int = 1
    stage1_batch_size: int = 128
    stage1_max_steps: int = 500
    stage1_shape_accuracy: float = 0.95
    """Stage 1 ends when the running accuracy of shape, the last attribute to be learned, passes this."""
    stage2_batch_size: int = 96
    stage2_steps: int = 400
    """Steps of stage 2: a fifth with 1-2 objects, a fifth with 1-3, the rest with 1-5."""
    lr: float = 2e-3
    """4e-3 learns shape much later."""
    warmup_steps: int = 40
    """Linear warm-up at the start of each stage."""
    decay_fraction: float = 0.4
    """Last fraction of stage 2, over which the learning rate decays to zero along a cosine."""
    weight_decay: float = 0.02
    """On matrices only."""
    shape_weight: float = 2.0
    """Loss weight of shape among the captions of one attribute; the other attributes have 1."""


def pretrain(recipe: Recipe, log_steps: int = 20) -> Iterator[dict]:
    """Run a recipe; yields rows of the log, and last ``{"model": CLIP, "images": per stage, "wall_s": seconds}``."""
    started = time.monotonic()
    small = init_clip(recipe.seed, SMALL_CANVAS).train()
    stage1_steps = 0
    for row in _run_stage1(small, recipe, log_steps):
        stage1_steps = row["step"]
        yield {**row, "wall_s": time.monotonic() - started}
    model = enlarge_clip(small).train()
    for row in _run_stage2(model, recipe, log_steps):
        yield {**row, "wall_s": time.monotonic() - started}
    num_images = stage1_steps * recipe.stage1_batch_size, recipe.stage2_steps * recipe.stage2_batch_size
    yield {"model": model.eval(), "images": num_images, "wall_s": time.monotonic() - started}


def _run_stage1(model: CLIP, recipe: Recipe, log_steps: int) -> Iterator[dict]:
    """Train until shape is learned; yields rows of the log, the last step's among them."""
    optimizer = _optimizer(model, recipe)
    value_tokens = {name: tokenize(captions) for name, captions in VALUE_CAPTIONS.items()}
    running = dict.fromkeys(VALUE_CAPTIONS, 0.0)
    for step in range(1, recipe.stage1_max_steps + 1):
        batch = single_object_batch(recipe.seed, step - 1, recipe.stage1_batch_size)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, accuracies = stage1_loss(model, batch, value_tokens, recipe.shape_weight)
        _update(optimizer, loss, recipe.lr * min(1.0, step / recipe.warmup_steps))
        for name, accuracy in accuracies.items():
            running[name] += (accuracy - running[name]) / min(step, 20)
        done = step >= 20 and running["shape"] >= recipe.stage1_shape_accuracy
        if done or (step - 1) % log_steps == 0 or step == recipe.stage1_max_steps:
            yield {"stage": 1, "step": step, "loss": loss.item(), **running}
        if done:
            return


def _run_stage2(model: CLIP, recipe: Recipe, log_steps: int) -> Iterator[dict]:
    optimizer = _optimizer(model, recipe)
    captions, spans = region_captions()
    caption_tokens = tokenize(captions)
    for step in range(recipe.stage2_steps):
        max_objects = 2 if step < 0.2 * recipe.stage2_steps else 3 if step < 0.4 * recipe.stage2_steps else 5
        batch = multi_object_batch(recipe.seed, step, recipe.stage2_batch_size, max_objects)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, parts = stage2_loss(model, batch, caption_tokens, spans)
        _update(optimizer, loss, recipe.lr * _stage2_lr_scale(step, recipe))
        if step % log_steps == 0 or step + 1 == recipe.stage2_steps:
            yield {"stage": 2, "step": step + 1, "loss": loss.item(), **parts}


def stage1_loss(
    model: CLIP, batch: SingleObjectBatch, value_tokens: dict[str, torch.Tensor], shape_weight: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """Contrastive loss of full descriptions plus cross-entropy of each attribute's captions.

    Returns:
        Loss (scalar), and attribute -> accuracy, 0 to 1.
    """
    image = model.encode_image(normalize_pixels(batch.images), normalize=True)
    scale = model.logit_scale.exp()
    text = model.encode_text(tokenize(batch.captions), normalize=True)
    equal = torch.tensor([[first == second for second in batch.captions] for first in batch.captions])
    loss = contrastive_loss(scale * image @ text.T, equal)
    accuracies = {}
    for name, tokens in value_tokens.items():
        logits = (scale * image @ model.encode_text(tokens, normalize=True).T).float()
        weight = shape_weight if name == "shape" else 1.0
        loss = loss + 0.5 * weight * F.cross_entropy(logits, batch.values[name])
        accuracies[name] = (logits.argmax(1) == batch.values[name]).float().mean().item()
    return loss, accuracies


def stage2_loss(
    model: CLIP, batch: MultiObjectBatch, caption_tokens: torch.Tensor, spans: dict[str, slice]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Contrastive loss of captions with a quadrant plus cross-entropy of region captions.

    Each cell is classified among the values of one attribute and "nothing".

    Returns:
        Loss (scalar), and the contrastive loss as ``image`` with the accuracy (0 to 1) of each attribute.
    """
    grid = grid_features(model, normalize_pixels(batch.images))
    scale = model.logit_scale.exp()
    image = F.normalize(model.visual.attnpool(grid), dim=-1)
    text = model.encode_text(tokenize(batch.captions), normalize=True)
    image_loss = contrastive_loss(scale * image @ text.T, batch.matches)
    logits = (
        scale * cell_embeddings(model, grid) @ model.encode_text(caption_tokens, normalize=True).T
    ).float()  # [B, cells, captions]
    parts = {"image": image_loss.item()}
    region_loss = logits.new_zeros(())
    for name, span in spans.items():
        occupied = batch.values[name] >= 0
        target = torch.where(occupied, batch.values[name], span.stop - span.start)  # the last caption is "nothing"
        value_logits = torch.cat([logits[..., span], logits[..., -1:]], dim=-1)
        losses = F.cross_entropy(value_logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        region_loss = region_loss + losses[occupied].mean() + losses[~occupied].mean()
        parts[name] = (value_logits.argmax(-1) == target)[occupied].float().mean().item()
    return image_loss + region_loss, parts


def contrastive_loss(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Symmetric contrastive loss with any number of positives per row and column.

    Args:
        logits: similarity of images (rows) and captions (columns) [B, B].
        positive: whether the caption is true of the image, bool [B, B].
    """
    total = logits.new_zeros((), dtype=torch.float32)
    for scores, targets in ((logits.float(), positive.float()), (logits.float().T, positive.float().T)):
        weights = targets / targets.sum(1, keepdim=True)
        total = total - (weights * F.log_softmax(scores, dim=1)).sum(1).mean() / 2
    return total


def _optimizer(model: CLIP, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [value for value in model.parameters() if value.dim() > 1]
    rest = [value for value in model.parameters() if value.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))


def _update(optimizer: torch.optim.AdamW, loss: torch.Tensor, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([value for group in optimizer.param_groups for value in group["params"]], 1.0)
    optimizer.step()


def _stage2_lr_scale(step: int, recipe: Recipe) -> float:
    warmup = min(1.0, (step + 1) / recipe.warmup_steps)
    start = (1 - recipe.decay_fraction) * recipe.stage2_steps
    decay = max(0.0, (step - start) / (recipe.stage2_steps - start))
    return warmup * 0.5 * (1 + math.cos(math.pi * decay))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one option per field of `Recipe`."""
    for field in fields(Recipe):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help="default: %(default)s",
        )


def run(args: argparse.Namespace) -> None:
    """Train, print the log, and write the weights to ``args.out``."""
    if args.out.is_file():
        raise InputError(f"--out {args.out}: is a file; give a folder")
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    counts = ("stage1_batch_size", "stage1_max_steps", "stage2_batch_size", "stage2_steps", "warmup_steps")
    too_small = [name for name in counts if getattr(recipe, name) < 1]
    if too_small:
        raise InputError(
            [f"--{name.replace('_', '-')} {getattr(recipe, name)}: must be 1 or more" for name in too_small]
        )
    for row in pretrain(recipe):
        if "model" in row:
            metadata = {"recipe": json.dumps(asdict(recipe)), "images": json.dumps(row["images"])}
            save_clip(row["model"], args.out, {**metadata, "wall_s": f"{row['wall_s']:.0f}"})
            print(f"wrote {args.out} after {row['wall_s']:.0f} s and {row['images']} images", flush=True)
        else:
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
