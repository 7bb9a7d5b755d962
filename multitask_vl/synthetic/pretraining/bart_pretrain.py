"""How is the tiny BART made: documents of the world's language, collapsed ones first, plain ones from the middle on.

python -m multitask_vl.synthetic.pretraining.pretrain bart [--updates N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from multitask_vl.synthetic.pretraining.bart_card import card
from multitask_vl.synthetic.pretraining.bart_model import Documents, Reader, fresh_bart, tiny_config
from multitask_vl.synthetic.pretraining.bart_probe import ASKED, PER_SKILL, WEIGHTS, probe, table
from multitask_vl.synthetic.pretraining.text_batches import (
    DENOISE,
    GARBLED,
    VALUE_COUNTS,
    Collator,
    all_words,
    make_denoising,
)
from multitask_vl.synthetic.pretraining.text_documents import GENERATORS, SKILLS, Document, Maker
from multitask_vl.synthetic.scenes import FEWEST, GRID, MOST, stream
from multitask_vl.synthetic.tokenizer import build_tokenizer, save_tokenizer

PROBE_SEED = 1
"""Probe of the card; the command's own probe takes another."""


@dataclass(frozen=True)
class Recipe:
    """What decides a pretraining run, together with the code."""

    seed: int = 0
    updates: int = 4800
    documents: int = 64
    """Documents an update."""
    lr: float = 1e-3
    warmup: int = 100
    decay_from: float = 0.7
    """Share of the run after which the rate falls to zero, as a cosine."""
    plain_from: float = 5 / 12
    """Share of the run after which half of the documents are told in words."""
    plain_share: float = 0.4
    full_grid_from: float = 25 / 48
    """Share of the run after which every empty cell is present; before, at most two a picture, which is much quicker
    and teaches all but the counting."""
    noise: float = 0.15
    """Spread of the noise on a cell's vector, whose own spread is 1."""
    sentences: float = 0.08
    """Share of captions, and again of denoising, among the documents."""
    promote_at: float = 0.88
    """Running accuracy at which a template may have one object more."""
    unlock_at: float = 0.8
    """Mean running accuracy of look-up and existence from which the other templates come in; told in words, only once
    it has been reached with MOST objects."""
    average: float = 0.998
    """Decay of the running mean of the weights, which is what is kept."""
    d_model: int = 128
    encoder_layers: int = 3
    decoder_layers: int = 3


FIRST = ("look-up", "existence")
"""Skills learnt first: all others are made of them."""


@dataclass
class Curriculum:
    """Which template, how hard: running accuracies of one form (collapsed or plain)."""

    promote_at: float
    unlock_at: float
    unlock_most: int
    right: dict[str, float] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        for template, skill in SKILLS.items():
            if skill != "caption":
                self.right.setdefault(template, 0.3)
                self.most.setdefault(template, FEWEST)

    def draw(self, rng: random.Random) -> str:
        """A template: one of FIRST until these are learnt; later mostly one not mastered, or of a skill with few."""
        first = [name for name in self.right if SKILLS[name] in FIRST]
        mastered = sum(self.right[name] for name in first) >= self.unlock_at * len(first)
        if not mastered or min(self.most[name] for name in first) < self.unlock_most:
            return rng.choice(first if rng.random() < 0.9 else list(self.right))
        kin = list(map(SKILLS.get, self.right))
        weights = [
            (0.2 + (1 - share if self.most[name] == MOST else 0.6)) / kin.count(SKILLS[name]) ** 0.5
            for name, share in self.right.items()
        ]
        return rng.choices(list(self.right), weights)[0]

    def note(self, template: str, right: bool) -> None:
        """Enter a result; a template that does well gets one object more, and has to prove itself again."""
        self.right[template] += 0.01 * (right - self.right[template])
        if self.right[template] > self.promote_at and self.most[template] < MOST:
            self.most[template] += 1
            self.right[template] -= 0.1


def rate(recipe: Recipe, step: int, progress: float) -> float:
    """Learning rate: rising over ``warmup`` steps, constant, then a cosine to zero."""
    fall = max(0.0, progress - recipe.decay_from) / (1 - recipe.decay_from)
    return recipe.lr * min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, fall)))


def draw_documents(
    recipe: Recipe, step: int, progress: float, curricula: dict[bool, Curriculum]
) -> tuple[dict[tuple, list[Document]], random.Random]:
    """The documents of one update by (collapsed, pictures, whole sentence as target), each group one small batch."""
    rng = stream("bart", recipe.seed, step)
    groups: dict[tuple, list[Document]] = {}
    for _ in range(recipe.documents):
        collapsed = not (progress >= recipe.plain_from and rng.random() < recipe.plain_share)
        if rng.random() < recipe.sentences:
            document = GENERATORS["caption"](Maker(rng, MOST))
        elif not collapsed and rng.random() < recipe.sentences:
            document = make_denoising(Maker(rng, MOST))
        else:
            template = curricula[collapsed].draw(rng)
            document = GENERATORS[template](Maker(rng, rng.randint(FEWEST, curricula[collapsed].most[template])))
        sentence = SKILLS.get(document.template, DENOISE) in ("caption", DENOISE)
        groups.setdefault((collapsed, len(document.pictures), sentence), []).append(document)
    return groups, rng


def batches(recipe: Recipe, step: int, progress: float, curricula, collate: Collator) -> Iterator[tuple]:
    """(collapsed, documents, tensors, noise) of each group of the update."""
    groups, rng = draw_documents(recipe, step, progress, curricula)
    generator = torch.Generator().manual_seed(hash((recipe.seed, step)) % 2**63)
    for (collapsed, _, _), documents in sorted(groups.items()):
        empties = GRID * GRID if progress >= recipe.full_grid_from else 2
        tensors: Documents = collate(documents, collapsed, rng, empties)
        noise = None
        if collapsed:
            shape = (*tensors.cell_words.shape[:2], recipe.d_model)
            noise = recipe.noise * torch.randn(shape, generator=generator)
        yield collapsed, documents, tensors, noise


class Run:
    """A pretraining run: model, optimiser, running mean, curricula."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.tokenizer = build_tokenizer(all_words())
        self.collate = Collator(self.tokenizer)
        config = tiny_config(len(self.tokenizer), recipe.d_model, recipe.encoder_layers, recipe.decoder_layers)
        bart = fresh_bart(config, recipe.seed, GRID, self.collate.place[0], tuple(self.collate.image))
        self.reader = Reader(bart, VALUE_COUNTS)
        for module in bart.modules():  # the stream of documents never repeats: nothing to regularise
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        self.mean = {name: value.detach().clone() for name, value in bart.named_parameters()}
        self.curricula = {
            collapsed: Curriculum(recipe.promote_at, recipe.unlock_at, FEWEST if collapsed else MOST)
            for collapsed in (True, False)
        }
        self.wall_s = self.cpu_s = 0.0
        self.optimizer = torch.optim.AdamW(
            self.reader.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )

    def update(self, step: int, progress: float) -> dict[str, float]:
        """One update; the losses, averaged over its documents."""
        start, cpu = time.monotonic(), time.process_time()
        sums: dict[str, float] = {}
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.recipe, step, progress)
        self.optimizer.zero_grad(set_to_none=True)
        for collapsed, documents, tensors, noise in batches(self.recipe, step, progress, self.curricula, self.collate):
            out = self.reader(tensors, noise)
            share = len(documents) / self.recipe.documents
            loss = share * (out["answer"] + out["early"] + out["roles"])
            loss = loss if collapsed else loss + 0.3 * share * out["values"]
            loss.backward()
            for document, right in zip(documents, out["right"].tolist(), strict=True):
                if document.template in self.curricula[collapsed].right:
                    self.curricula[collapsed].note(document.template, right)
            for name in ("answer", "early", "roles", "values"):
                sums[name] = sums.get(name, 0.0) + share * out[name].item()
        torch.nn.utils.clip_grad_norm_(self.reader.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.recipe.average, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in self.reader.bart.named_parameters():
                self.mean[name].lerp_(value, 1 - decay)
        self.wall_s += time.monotonic() - start
        self.cpu_s += time.process_time() - cpu
        return sums

    def progress(self) -> str:
        """Running accuracy of each skill, and the objects allowed, in both forms."""
        parts = []
        for curriculum in self.curricula.values():
            for skill in dict.fromkeys(SKILLS[name] for name in curriculum.right):
                names = [name for name in curriculum.right if SKILLS[name] == skill]
                right = sum(curriculum.right[name] for name in names) / len(names)
                most = sum(curriculum.most[name] for name in names) / len(names)
                parts.append(f"{skill} {right:.2f}@{most:.1f}")
            parts.append("|")
        return " ".join(parts[:-1])

    def averaged(self):
        """A BART with the running mean of the weights."""
        config = self.reader.bart.config
        bart = type(self.reader.bart)(config).eval()
        parameters = dict(bart.named_parameters())  # tied names once, as in the mean
        if parameters.keys() != self.mean.keys():
            raise ValueError(f"the mean is of other weights: {sorted(parameters.keys() ^ self.mean.keys())[:3]}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.mean[name])
        return bart

    def save(self, path: Path, step: int) -> None:
        """Everything that a later process needs to go on after ``step``."""
        state = {
            "step": step,
            "seconds": [self.wall_s, self.cpu_s],
            "reader": self.reader.state_dict(),
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
            "curricula": {str(k): {"right": c.right, "most": c.most} for k, c in self.curricula.items()},
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def restore(self, path: Path) -> int:
        """Go on from a saved run; the number of updates it has made."""
        state = torch.load(path, weights_only=True)
        self.reader.load_state_dict(state["reader"])
        self.mean = state["mean"]
        self.wall_s, self.cpu_s = state.get("seconds", (0.0, 0.0))
        self.optimizer.load_state_dict(state["optimizer"])
        for collapsed in (True, False):
            saved = state["curricula"][str(collapsed)]
            curriculum = self.curricula[collapsed]
            curriculum.right, curriculum.most = saved["right"], saved["most"]
        return state["step"]


def ship(run: Run, folder: Path, how_long: str, per_skill: int) -> str:
    """Write config, fp16 weights, tokenizer and card, as `from_pretrained` reads them; the probe's table."""
    folder.mkdir(parents=True, exist_ok=True)
    bart = run.averaged().half()
    bart.save_pretrained(folder)
    save_tokenizer(run.tokenizer, folder)
    found = probe(bart.float(), run.tokenizer, seed=PROBE_SEED, per_skill=per_skill)
    seen = probe(bart, run.tokenizer, PROBE_SEED, per_skill, held_out=False, forms=("collapsed",))["collapsed"]
    recipe = run.recipe
    facts = {
        "sizes": f"d_model {recipe.d_model}, {recipe.encoder_layers} + {recipe.decoder_layers} layers, 4 heads",
        "parameters": sum(value.numel() for value in bart.parameters()),
        "vocabulary": len(run.tokenizer),
        "words": len(all_words()),
        "noise": recipe.noise,
        "garbled": f"{GARBLED:.0%}",
        "denoising": f"{recipe.sentences:.0%} of the plain documents",
        "how_long": how_long,
        "seed": PROBE_SEED,
        "per_skill": per_skill,
    }
    (folder / "README.md").write_text(card(found, seen, list(dict.fromkeys(ASKED.values())), facts))
    return table(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, probe, write; progress goes to the standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m multitask_vl.synthetic.pretraining.pretrain bart", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where config, weights, tokenizer and card go")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--updates", type=int, default=Recipe.updates)
    parser.add_argument("--state", type=Path, help="file to keep the state of the run in, and to go on from")
    parser.add_argument("--probe-every", type=int, default=1000, help="updates between probes and savings of the state")
    parser.add_argument("--probe-documents", type=int, default=PER_SKILL, help="documents a skill of the last probe")
    args = parser.parse_args(argv)
    run = Run(Recipe(seed=args.seed, updates=args.updates))
    first = run.restore(args.state) if args.state and args.state.exists() else 0
    print(json.dumps(asdict(run.recipe)), f"from update {first}", flush=True)
    for step in range(first, run.recipe.updates):
        losses = run.update(step, step / run.recipe.updates)
        if (step + 1) % 100 == 0:
            rounded = {name: round(value, 3) for name, value in losses.items()}
            print(step + 1, f"{run.wall_s:.0f} s, cpu {run.cpu_s:.0f} s", rounded, run.progress(), flush=True)
        if (step + 1) % args.probe_every == 0:
            print(table(probe(run.averaged(), run.tokenizer, seed=PROBE_SEED + 1, per_skill=100)), flush=True)
            if args.state:
                run.save(args.state, step + 1)
    how_long = (
        f"Seed {run.recipe.seed}, {run.recipe.updates:,} updates of {run.recipe.documents} documents: "
        f"{run.cpu_s / 60:.0f} CPU minutes, {run.wall_s / 60:.0f} minutes by the clock, "
        f"{torch.get_num_threads()} thread(s)."
    )
    print(ship(run, args.out, how_long, args.probe_documents), flush=True)
    return 0
