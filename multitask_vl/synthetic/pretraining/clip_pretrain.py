"""How is the tiny CLIP made: contrastive training on drawn scenes, single objects first, then region captions.

Stage one, 64 px, one object: whole picture against its full description, and against captions of one attribute.
Stage two, 128 px, up to five objects: whole picture against "a red star at the top left", and each grid cell against
captions of one attribute or "nothing" (region captions: they use the places the scene knows).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip.model import CLIP

from multitask_vl.errors import InputError, exits_cleanly
from multitask_vl.synthetic.pretraining.clip_captions import VALUE_CAPTIONS, region_candidates, tokenize
from multitask_vl.synthetic.pretraining.clip_data import SMALL_CANVAS, crowds, singles
from multitask_vl.synthetic.pretraining.clip_model import (
    SHIPPED,
    cell_embeddings,
    enlarged,
    fresh_clip,
    grid,
    pixels_of,
    save_clip,
)


@dataclass(frozen=True)
class Recipe:
    """Sizes of a pretraining run; the defaults are those of the shipped weights."""

    seed: int = 1
    first_batch: int = 128
    """Pictures a step of the first stage."""
    first_most: int = 500
    """Steps of the first stage at most."""
    first_shape: float = 0.95
    """The first stage ends when the running accuracy of shape passes this; shape is the last attribute to come."""
    second_batch: int = 96
    """Pictures a step of the second stage."""
    second_steps: int = 400
    """Steps of the second stage: a fifth with 1-2 objects, a fifth with 1-3, the rest with 1-5."""
    lr: float = 2e-3
    """4e-3 learns shape much later."""
    warmup: int = 40
    """Steps of rising rate, in each stage."""
    decay_share: float = 0.4
    """Last share of the second stage, over which the rate falls to zero along a cosine."""
    weight_decay: float = 0.02
    """On matrices only."""
    shape_weight: float = 2.0
    """Weight of shape among the one-attribute captions, the others having 1."""


def pretrain(recipe: Recipe, log_every: int = 20) -> Iterator[dict]:
    """Run a recipe; yields a row of the log now and then, and last ``{"model": CLIP, ...}``."""
    started = time.monotonic()
    small = fresh_clip(recipe.seed, SMALL_CANVAS).train()
    optimizer = _optimizer(small, recipe)
    tokens = {name: tokenize(captions) for name, captions in VALUE_CAPTIONS.items()}
    running = dict.fromkeys(VALUE_CAPTIONS, 0.0)
    steps = 0
    for step in range(recipe.first_most):
        batch = singles(recipe.seed, step, recipe.first_batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, right = first_loss(small, batch, tokens, recipe.shape_weight)
        _update(optimizer, loss, recipe.lr * min(1.0, (step + 1) / recipe.warmup))
        steps = step + 1
        for name, accuracy in right.items():
            running[name] += (accuracy - running[name]) / min(steps, 20)
        done = steps >= 20 and running["shape"] >= recipe.first_shape
        if done or step % log_every == 0 or steps == recipe.first_most:
            yield {"stage": 1, "step": steps, "loss": loss.item(), **running, "wall_s": time.monotonic() - started}
        if done:
            break
    model = enlarged(small).train()
    optimizer = _optimizer(model, recipe)
    candidates, spans = region_candidates()
    candidate_tokens = tokenize(candidates)
    for step in range(recipe.second_steps):
        most = 2 if step < 0.2 * recipe.second_steps else 3 if step < 0.4 * recipe.second_steps else 5
        batch = crowds(recipe.seed, step, recipe.second_batch, most)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, parts = second_loss(model, batch, candidate_tokens, spans)
        _update(optimizer, loss, recipe.lr * _second_rate(step, recipe))
        if step % log_every == 0 or step + 1 == recipe.second_steps:
            row = {"stage": 2, "step": step + 1, "loss": loss.item(), **parts}
            yield {**row, "wall_s": time.monotonic() - started}
    pictures = steps * recipe.first_batch, recipe.second_steps * recipe.second_batch
    yield {"model": model.eval(), "pictures": pictures, "wall_s": time.monotonic() - started}


def first_loss(
    model: CLIP, batch, tokens: dict[str, torch.Tensor], shape_weight: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """Full descriptions both ways, plus each picture against the captions of one attribute at a time."""
    image = model.encode_image(pixels_of(batch.pictures), normalize=True)
    scale = model.logit_scale.exp()
    text = model.encode_text(tokenize(batch.captions), normalize=True)
    same = torch.tensor([[one == other for other in batch.captions] for one in batch.captions])
    loss = both_ways(scale * image @ text.T, same)
    right = {}
    for name, candidates in tokens.items():
        logits = (scale * image @ model.encode_text(candidates, normalize=True).T).float()
        weight = shape_weight if name == "shape" else 1.0
        loss = loss + 0.5 * weight * F.cross_entropy(logits, batch.values[name])
        right[name] = (logits.argmax(1) == batch.values[name]).float().mean().item()
    return loss, right


def second_loss(
    model: CLIP, batch, candidate_tokens: torch.Tensor, spans: dict[str, slice]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Captions with a place both ways, plus region captions: every cell against one attribute's values or "nothing"."""
    cells = grid(model, pixels_of(batch.pictures))
    scale = model.logit_scale.exp()
    image = F.normalize(model.visual.attnpool(cells), dim=-1)
    whole = both_ways(scale * image @ model.encode_text(tokenize(batch.captions), normalize=True).T, batch.truth)
    logits = (
        scale * cell_embeddings(model, cells) @ model.encode_text(candidate_tokens, normalize=True).T
    ).float()  # [B, cells, candidates]
    parts = {"whole": whole.item()}
    regions = logits.new_zeros(())
    for name, span in spans.items():
        full = batch.values[name] >= 0
        target = torch.where(full, batch.values[name], span.stop - span.start)  # the last candidate is "nothing"
        choice = torch.cat([logits[..., span], logits[..., -1:]], dim=-1)
        each = F.cross_entropy(choice.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        regions = regions + each[full].mean() + each[~full].mean()
        parts[name] = (choice.argmax(-1) == target)[full].float().mean().item()
    return whole + regions, parts


def both_ways(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Contrastive loss of pictures [rows] and captions [columns], any number of true pairs in each."""
    total = logits.new_zeros((), dtype=torch.float32)
    for scores, wanted in ((logits.float(), positive.float()), (logits.float().T, positive.float().T)):
        share = wanted / wanted.sum(1, keepdim=True)
        total = total - (share * F.log_softmax(scores, dim=1)).sum(1).mean() / 2
    return total


def _optimizer(model: CLIP, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [value for value in model.parameters() if value.dim() > 1]
    rest = [value for value in model.parameters() if value.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))


def _update(optimizer: torch.optim.AdamW, loss: torch.Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([value for group in optimizer.param_groups for value in group["params"]], 1.0)
    optimizer.step()


def _second_rate(step: int, recipe: Recipe) -> float:
    rising = min(1.0, (step + 1) / recipe.warmup)
    start = (1 - recipe.decay_share) * recipe.second_steps
    falling = max(0.0, (step - start) / (recipe.second_steps - start))
    return rising * 0.5 * (1 + math.cos(math.pi * falling))


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m multitask_vl.synthetic.pretraining.pretrain clip", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder to write; default: the package's own")
    for field in fields(Recipe):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args(argv))
    out = options.pop("out")
    if out.is_file():
        raise InputError(f"--out {out}: is a file; give a folder")
    recipe = Recipe(**options)
    if min(recipe.first_batch, recipe.first_most, recipe.second_batch, recipe.second_steps, recipe.warmup) < 1:
        raise InputError("--first-batch, --first-most, --second-batch, --second-steps and --warmup must be at least 1")
    for row in pretrain(recipe):
        if "model" in row:
            notes = {"recipe": json.dumps(asdict(recipe)), "pictures": json.dumps(row["pictures"])}
            save_clip(row["model"], out, {**notes, "wall_s": f"{row['wall_s']:.0f}"})
            print(f"wrote {out} after {row['wall_s']:.0f} s and {row['pictures']} pictures", flush=True)
        else:
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
