"""Pretraining of the tiny BART on documents in the synthetic world's language.

Collapsed documents come first; from the middle on, plain documents are mixed in.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import BartForConditionalGeneration

from multitask_vl.synthetic.pretraining.bart_card import write_card
from multitask_vl.synthetic.pretraining.bart_model import DocumentBatch, PretrainingModel, init_bart, tiny_config
from multitask_vl.synthetic.pretraining.bart_probe import DOCUMENTS_PER_SKILL, format_results, probe
from multitask_vl.synthetic.pretraining.text_batches import (
    DENOISE,
    NUM_CELLS,
    VALUE_COUNTS,
    DocumentCollator,
    denoising_document,
    tokenizer_words,
)
from multitask_vl.synthetic.pretraining.text_documents import GENERATORS, SKILLS, Document, DocumentBuilder
from multitask_vl.synthetic.scenes import GRID, MAX_OBJECTS, MIN_OBJECTS, rng_for
from multitask_vl.synthetic.tokenizer import build_tokenizer, save_tokenizer

PROBE_SEED = 1
"""Seed of the card's probe; the probe command has another default."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; the defaults are those of the bundled weights."""

    seed: int = 0
    updates: int = 4800
    batch_size: int = 64
    """Documents per update."""
    lr: float = 1e-3
    warmup_steps: int = 100
    decay_start: float = 0.7
    """Fraction of the run after which the learning rate decays to zero along a cosine."""
    plain_start: float = 5 / 12
    """Fraction of the run after which plain documents are mixed in."""
    plain_fraction: float = 0.4
    full_grid_start: float = 25 / 48
    """Fraction of the run after which every empty cell is present. Before, at most two per image, which is faster and
    teaches everything but counting."""
    noise_std: float = 0.15
    """Std of the noise on a cell's vector, which has std 1."""
    sentence_fraction: float = 0.08
    """Fraction of captions among all documents, and of denoising among the plain ones."""
    promote_at: float = 0.88
    """Running accuracy at which a template gets one more object."""
    unlock_at: float = 0.8
    """Mean running accuracy of the base skills that unlocks the other templates; in the plain form, only once it has
    been reached with MAX_OBJECTS objects."""
    ema_decay: float = 0.998
    """Decay of the exponential moving average of the weights, which is what is saved."""
    d_model: int = 128
    encoder_layers: int = 3
    decoder_layers: int = 3


BASE_SKILLS = ("look-up", "existence")
"""Skills that are learned first: all others build on them."""


@dataclass
class Curriculum:
    """Sampling of templates and difficulty from the running accuracies of one form (collapsed or plain)."""

    promote_at: float
    unlock_at: float
    unlock_objects: int
    accuracy: dict[str, float] = field(default_factory=dict)
    max_objects: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        for template, skill in SKILLS.items():
            if skill != "caption":
                self.accuracy.setdefault(template, 0.3)
                self.max_objects.setdefault(template, MIN_OBJECTS)

    def sample(self, rng: random.Random) -> str:
        """Sample a template: base skills until they are learned; later mostly templates that are not mastered."""
        base = [name for name in self.accuracy if SKILLS[name] in BASE_SKILLS]
        learned = sum(self.accuracy[name] for name in base) >= self.unlock_at * len(base)
        if not learned or min(self.max_objects[name] for name in base) < self.unlock_objects:
            return rng.choice(base if rng.random() < 0.9 else list(self.accuracy))
        skills = list(map(SKILLS.get, self.accuracy))
        weights = [
            (0.2 + (1 - accuracy if self.max_objects[name] == MAX_OBJECTS else 0.6)) / skills.count(SKILLS[name]) ** 0.5
            for name, accuracy in self.accuracy.items()
        ]
        return rng.choices(list(self.accuracy), weights)[0]

    def record(self, template: str, correct: bool) -> None:
        """Record a result; a template with high accuracy gets one more object and a lower running accuracy."""
        self.accuracy[template] += 0.01 * (correct - self.accuracy[template])
        if self.accuracy[template] > self.promote_at and self.max_objects[template] < MAX_OBJECTS:
            self.max_objects[template] += 1
            self.accuracy[template] -= 0.1


def learning_rate(recipe: Recipe, step: int, progress: float) -> float:
    """Linear warm-up, constant, then cosine decay to zero."""
    decay = max(0.0, progress - recipe.decay_start) / (1 - recipe.decay_start)
    return recipe.lr * min(1.0, (step + 1) / recipe.warmup_steps) * 0.5 * (1 + math.cos(math.pi * min(1.0, decay)))


def sample_documents(
    recipe: Recipe, step: int, progress: float, curricula: dict[bool, Curriculum]
) -> tuple[dict[tuple, list[Document]], random.Random]:
    """Documents of one update, in groups of equal (collapsed, number of images, whether the target is a sentence)."""
    rng = rng_for("bart", recipe.seed, step)
    groups: dict[tuple, list[Document]] = {}
    for _ in range(recipe.batch_size):
        collapsed = not (progress >= recipe.plain_start and rng.random() < recipe.plain_fraction)
        if rng.random() < recipe.sentence_fraction:
            document = GENERATORS["caption"](DocumentBuilder(rng, MAX_OBJECTS))
        elif not collapsed and rng.random() < recipe.sentence_fraction:
            document = denoising_document(DocumentBuilder(rng, MAX_OBJECTS))
        else:
            template = curricula[collapsed].sample(rng)
            max_objects = rng.randint(MIN_OBJECTS, curricula[collapsed].max_objects[template])
            document = GENERATORS[template](DocumentBuilder(rng, max_objects))
        is_sentence = SKILLS.get(document.template, DENOISE) in ("caption", DENOISE)
        groups.setdefault((collapsed, len(document.images), is_sentence), []).append(document)
    return groups, rng


def batches(
    recipe: Recipe, step: int, progress: float, curricula: dict[bool, Curriculum], collate: DocumentCollator
) -> Iterator[tuple[bool, list[Document], DocumentBatch, torch.Tensor | None]]:
    """(collapsed, documents, batch, noise) of each group of the update."""
    groups, rng = sample_documents(recipe, step, progress, curricula)
    generator = torch.Generator().manual_seed(hash((recipe.seed, step)) % 2**63)
    for (collapsed, _, _), documents in sorted(groups.items()):
        max_empty = NUM_CELLS if progress >= recipe.full_grid_start else 2
        batch = collate(documents, collapsed, rng, max_empty)
        noise = None
        if collapsed:
            shape = (*batch.cell_words.shape[:2], recipe.d_model)
            noise = recipe.noise_std * torch.randn(shape, generator=generator)
        yield collapsed, documents, batch, noise


class PretrainingRun:
    """Model, optimizer, moving average of the weights, and curricula of a pretraining run."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.tokenizer = build_tokenizer(tokenizer_words())
        self.collate = DocumentCollator(self.tokenizer)
        config = tiny_config(len(self.tokenizer), recipe.d_model, recipe.encoder_layers, recipe.decoder_layers)
        bart = init_bart(config, recipe.seed, GRID, self.collate.position_ids[0], tuple(self.collate.image_ids))
        self.model = PretrainingModel(bart, VALUE_COUNTS)
        for module in bart.modules():  # documents never repeat, so dropout would only slow learning down
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        self.ema = {name: value.detach().clone() for name, value in bart.named_parameters()}
        self.curricula = {
            collapsed: Curriculum(recipe.promote_at, recipe.unlock_at, MIN_OBJECTS if collapsed else MAX_OBJECTS)
            for collapsed in (True, False)
        }
        self.wall_s = self.cpu_s = 0.0
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )

    def update(self, step: int, progress: float) -> dict[str, float]:
        """Train on one update's documents; returns the losses averaged over them.

        Args:
            step: number of updates completed before.
            progress: fraction of the run completed before, 0 to 1.
        """
        start, cpu = time.monotonic(), time.process_time()
        losses: dict[str, float] = {}
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, step, progress)
        self.optimizer.zero_grad(set_to_none=True)
        for collapsed, documents, batch, noise in batches(self.recipe, step, progress, self.curricula, self.collate):
            out = self.model(batch, noise)
            weight = len(documents) / self.recipe.batch_size
            loss = weight * (out["answer"] + out["encoder_answer"] + out["roles"])
            loss = loss if collapsed else loss + 0.3 * weight * out["values"]
            loss.backward()
            for document, correct in zip(documents, out["correct"].tolist(), strict=True):
                if document.template in self.curricula[collapsed].accuracy:
                    self.curricula[collapsed].record(document.template, correct)
            for name in ("answer", "encoder_answer", "roles", "values"):
                losses[name] = losses.get(name, 0.0) + weight * out[name].item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self._update_ema(step)
        self.wall_s += time.monotonic() - start
        self.cpu_s += time.process_time() - cpu
        return losses

    @torch.no_grad()
    def _update_ema(self, step: int) -> None:
        decay = min(self.recipe.ema_decay, (step + 1) / (step + 10))
        for name, value in self.model.bart.named_parameters():
            self.ema[name].lerp_(value, 1 - decay)

    def progress_line(self) -> str:
        """Running accuracy and mean number of objects of each skill, collapsed form first."""
        parts = []
        for curriculum in self.curricula.values():
            for skill in dict.fromkeys(SKILLS[name] for name in curriculum.accuracy):
                names = [name for name in curriculum.accuracy if SKILLS[name] == skill]
                accuracy = sum(curriculum.accuracy[name] for name in names) / len(names)
                max_objects = sum(curriculum.max_objects[name] for name in names) / len(names)
                parts.append(f"{skill} {accuracy:.2f}@{max_objects:.1f}")
            parts.append("|")
        return " ".join(parts[:-1])

    def ema_model(self) -> BartForConditionalGeneration:
        """BART with the moving average of the weights, in evaluation mode."""
        bart = BartForConditionalGeneration(self.model.bart.config).eval()
        parameters = dict(bart.named_parameters())  # tied weights once, as in the average
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.ema[name])
        return bart

    def save(self, path: Path, step: int) -> None:
        """Save everything needed to resume after ``step`` updates."""
        state = {
            "step": step,
            "seconds": [self.wall_s, self.cpu_s],
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "curricula": {
                str(k): {"accuracy": c.accuracy, "max_objects": c.max_objects} for k, c in self.curricula.items()
            },
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def load(self, path: Path) -> int:
        """Load a saved run; returns the number of updates completed."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema = state["ema"]
        self.wall_s, self.cpu_s = state["seconds"]
        self.optimizer.load_state_dict(state["optimizer"])
        for collapsed, curriculum in self.curricula.items():
            saved = state["curricula"][str(collapsed)]
            curriculum.accuracy, curriculum.max_objects = saved["accuracy"], saved["max_objects"]
        return state["step"]


def save_pretrained(run: PretrainingRun, folder: Path, duration: str, per_skill: int) -> str:
    """Write config, float16 weights, tokenizer and card in the format of ``from_pretrained``.

    Returns:
        The probe's results as a table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bart = run.ema_model().half()
    bart.save_pretrained(folder)
    save_tokenizer(run.tokenizer, folder)
    bart = bart.float()
    results = probe(bart, run.tokenizer, PROBE_SEED, per_skill)
    seen_results = probe(bart, run.tokenizer, PROBE_SEED, per_skill, held_out=False, forms=("collapsed",))
    recipe = run.recipe
    facts = {
        "sizes": f"d_model {recipe.d_model}, {recipe.encoder_layers} + {recipe.decoder_layers} layers, 4 heads",
        "parameters": sum(value.numel() for value in bart.parameters()),
        "vocabulary": len(run.tokenizer),
        "words": len(tokenizer_words()),
        "noise": recipe.noise_std,
        "denoising": f"{recipe.sentence_fraction:.0%} of the plain documents",
        "duration": duration,
        "seed": PROBE_SEED,
        "per_skill": per_skill,
    }
    (folder / "README.md").write_text(write_card(results, seen_results["collapsed"], facts))
    return format_results(results)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run."""
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="default: %(default)s")
    parser.add_argument("--updates", type=int, default=Recipe.updates, help="default: %(default)s")
    parser.add_argument("--state", type=Path, help="file to save the run in, and to resume from if it exists")
    parser.add_argument("--probe-every", type=int, default=1000, help="updates between probes and saves of the state")
    parser.add_argument(
        "--probe-documents", type=int, default=DOCUMENTS_PER_SKILL, help="documents per skill of the last probe"
    )


def run(args: argparse.Namespace) -> None:
    """Train, probe, and write the results to ``args.out``; progress is printed."""
    state = PretrainingRun(Recipe(seed=args.seed, updates=args.updates))
    recipe = state.recipe
    first = state.load(args.state) if args.state and args.state.exists() else 0
    print(json.dumps(asdict(recipe)), f"from update {first}", flush=True)
    for step in range(first, recipe.updates):
        losses = state.update(step, step / recipe.updates)
        if (step + 1) % 100 == 0:
            rounded = {name: round(value, 3) for name, value in losses.items()}
            seconds = f"{state.wall_s:.0f} s, cpu {state.cpu_s:.0f} s"
            print(step + 1, seconds, rounded, state.progress_line(), flush=True)
        if (step + 1) % args.probe_every == 0:
            print(format_results(probe(state.ema_model(), state.tokenizer, PROBE_SEED + 1, per_skill=100)), flush=True)
            if args.state:
                state.save(args.state, step + 1)
    duration = (
        f"Seed {recipe.seed}, {recipe.updates:,} updates of {recipe.batch_size} documents: "
        f"{state.cpu_s / 60:.0f} CPU minutes, {state.wall_s / 60:.0f} minutes of wall time, "
        f"{torch.get_num_threads()} thread(s)."
    )
    print(save_pretrained(state, args.out, duration, args.probe_documents), flush=True)
