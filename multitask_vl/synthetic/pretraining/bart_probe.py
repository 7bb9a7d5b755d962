"""What has the tiny BART learnt to read: answers on new documents, in held-out wordings, skill by skill."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoTokenizer, BartForConditionalGeneration

from multitask_vl.errors import InputError
from multitask_vl.synthetic.pretraining.bart_model import Documents, decode, encode
from multitask_vl.synthetic.pretraining.text_batches import Collator
from multitask_vl.synthetic.pretraining.text_documents import GENERATORS, SKILLS, Maker
from multitask_vl.synthetic.pretraining.thresholds import Gate
from multitask_vl.synthetic.scenes import FEWEST, MOST, stream

WEIGHTS = Path(__file__).parent / "weights" / "bart"
REQUIRED = {
    ("collapsed", "look-up"): 90.0,
    ("collapsed", "existence"): 90.0,
    ("collapsed", "count"): 85.0,
    ("collapsed", "relation"): 80.0,
    ("collapsed", "compare"): 75.0,
    ("plain", "look-up"): 80.0,
}
"""Least accuracy of a skill in a form for the weights to be shipped; the other figures are published only."""
PER_SKILL = 600
"""Documents of a gate, shared out among the skill's templates."""
ASKED = {template: skill for template, skill in SKILLS.items() if skill != "caption"}


def answers(bart: BartForConditionalGeneration, documents: Documents) -> torch.Tensor:
    """Whether each whole answer, its end included, is what greedy decoding would write [B]."""
    states, mask, _ = encode(bart, documents)
    labels = documents.labels
    inputs = labels.masked_fill(labels < 0, bart.config.pad_token_id).roll(1, 1)
    inputs[:, 0] = bart.config.decoder_start_token_id
    written = decode(bart, states, mask, inputs).argmax(-1)
    return ((written == labels) | (labels < 0))[:, 1:].all(1)


@torch.no_grad()
def probe(
    bart: BartForConditionalGeneration,
    tokenizer,
    seed: int,
    per_skill: int = PER_SKILL,
    held_out: bool = True,
    forms: tuple[str, ...] = ("collapsed", "plain"),
) -> dict[str, dict[str, float]]:
    """Accuracy (0-100) of each skill, the mean over its templates, and of each template, by form.

    Args:
        seed: decides the scenes; they are never those of pretraining, whose streams have other names.
        per_skill: documents a skill, of FEWEST to MOST objects a picture, all cells present.
        held_out: ask in the wordings kept from training.
    """
    collate = Collator(tokenizer)
    bart.eval()
    found: dict[str, dict[str, float]] = {}
    for form in forms:
        values = {}
        for template, skill in ASKED.items():
            rng = stream("bart probe", seed, form, template)
            count = -(-per_skill // list(ASKED.values()).count(skill))
            right = []
            for start in range(0, count, 100):
                documents = [
                    GENERATORS[template](Maker(rng, rng.randint(FEWEST, MOST), held_out))
                    for _ in range(min(100, count - start))
                ]
                right.append(answers(bart, collate(documents, form == "collapsed", rng, vary=False)))
            values[template] = 100 * torch.cat(right).float().mean().item()
        skills = {skill: [values[name] for name, of in ASKED.items() if of == skill] for skill in ASKED.values()}
        found[form] = {skill: sum(scores) / len(scores) for skill, scores in skills.items()} | values
    return found


def gates(seed: int, folder: Path = WEIGHTS, per_skill: int = PER_SKILL) -> list[Gate]:
    """What the weights in ``folder`` can do on documents of this seed: the required skills, then all others."""
    if not (folder / "model.safetensors").is_file():
        raise InputError(
            f"{folder}: no weights here; make them: python -m multitask_vl.synthetic.pretraining.pretrain bart"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bart = BartForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    found = probe(bart, tokenizer, seed, per_skill)
    skills = list(dict.fromkeys(ASKED.values()))
    rows = [*REQUIRED, *((form, skill) for form in found for skill in skills if (form, skill) not in REQUIRED)]
    return [
        Gate(f"bart/{form}/{skill}", found[form][skill], REQUIRED.get((form, skill)), per_skill) for form, skill in rows
    ]


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """The two columns as text, skills first."""
    rows = [f"{'':16s}" + "".join(f"{form:>11s}" for form in found)]
    for name in next(iter(found.values())):
        rows.append(f"{name:16s}" + "".join(f"{values[name]:11.1f}" for values in found.values()))
    return "\n".join(rows)
