"""Accuracy of the tiny BART on new documents in held-out wordings, by skill and template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoTokenizer, BartForConditionalGeneration

from multitask_vl.config.resources import WEIGHTS_DIR
from multitask_vl.errors import InputError
from multitask_vl.synthetic.pretraining.bart_model import decode, encode, is_correct, shift_right
from multitask_vl.synthetic.pretraining.text_batches import DocumentCollator
from multitask_vl.synthetic.pretraining.text_documents import GENERATORS, SKILLS, DocumentBuilder
from multitask_vl.synthetic.pretraining.thresholds import Threshold
from multitask_vl.synthetic.scenes import MAX_OBJECTS, MIN_OBJECTS, rng_for

BUNDLED_BART = WEIGHTS_DIR / "bart"
REQUIRED_ACCURACY = {
    ("collapsed", "look-up"): 90.0,
    ("collapsed", "existence"): 90.0,
    ("collapsed", "count"): 85.0,
    ("collapsed", "relation"): 80.0,
    ("collapsed", "compare"): 75.0,
    ("plain", "look-up"): 80.0,
}
"""(form, skill) -> minimum accuracy in percent for the weights to be bundled; other accuracies are published only."""
DOCUMENTS_PER_SKILL = 600
"""Documents per skill, divided among the skill's templates."""
PROBED_SKILLS = {template: skill for template, skill in SKILLS.items() if skill != "caption"}
"""Template -> skill, without captions."""


@torch.no_grad()
def probe(
    bart: BartForConditionalGeneration,
    tokenizer,
    seed: int,
    per_skill: int = DOCUMENTS_PER_SKILL,
    held_out: bool = True,
    forms: tuple[str, ...] = ("collapsed", "plain"),
) -> dict[str, dict[str, float]]:
    """Accuracy (0-100) of each skill, the mean over its templates, and of each template, by form.

    An answer counts if greedy decoding would write it exactly, the end included.

    Args:
        seed: seed of the documents, which never occur in pretraining: their random streams have other names.
        per_skill: documents per skill, with MIN_OBJECTS to MAX_OBJECTS objects per image and all cells present.
        held_out: use the held-out wordings.
        forms: forms to probe.
    """
    collate = DocumentCollator(tokenizer)
    bart.eval()
    results: dict[str, dict[str, float]] = {}
    for form in forms:
        accuracies = {}
        for template, skill in PROBED_SKILLS.items():
            rng = rng_for("bart probe", seed, form, template)
            count = -(-per_skill // list(PROBED_SKILLS.values()).count(skill))
            correct = []
            for start in range(0, count, 100):
                documents = [
                    GENERATORS[template](DocumentBuilder(rng, rng.randint(MIN_OBJECTS, MAX_OBJECTS), held_out))
                    for _ in range(min(100, count - start))
                ]
                batch = collate(documents, form == "collapsed", rng, vary=False)
                hidden, mask, _ = encode(bart, batch)
                logits = decode(bart, hidden, mask, shift_right(bart, batch.labels))
                correct.append(is_correct(logits, batch.labels))
            accuracies[template] = 100 * torch.cat(correct).float().mean().item()
        by_skill = {
            skill: [accuracies[name] for name, its_skill in PROBED_SKILLS.items() if its_skill == skill]
            for skill in PROBED_SKILLS.values()
        }
        results[form] = {skill: sum(values) / len(values) for skill, values in by_skill.items()} | accuracies
    return results


def check_thresholds(seed: int, folder: Path = BUNDLED_BART, per_skill: int = DOCUMENTS_PER_SKILL) -> list[Threshold]:
    """Probe the weights in ``folder`` on documents of this seed: the required skills, then all others.

    Raises:
        InputError: the folder has no weights.
    """
    if not (folder / "model.safetensors").is_file():
        raise InputError(
            f"{folder}: no model.safetensors; to create it: "
            f"python -m multitask_vl.synthetic.pretraining bart --out {folder}"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bart = BartForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    results = probe(bart, tokenizer, seed, per_skill)
    skills = list(dict.fromkeys(PROBED_SKILLS.values()))
    others = [(form, skill) for form in results for skill in skills if (form, skill) not in REQUIRED_ACCURACY]
    return [
        Threshold(f"bart/{form}/{skill}", results[form][skill], REQUIRED_ACCURACY.get((form, skill)), per_skill)
        for form, skill in (*REQUIRED_ACCURACY, *others)
    ]


def format_results(results: Mapping[str, Mapping[str, float]]) -> str:
    """Table with one column per form, skills first."""
    rows = [f"{'':16s}" + "".join(f"{form:>11s}" for form in results)]
    for name in next(iter(results.values())):
        rows.append(f"{name:16s}" + "".join(f"{values[name]:11.1f}" for values in results.values()))
    return "\n".join(rows)
