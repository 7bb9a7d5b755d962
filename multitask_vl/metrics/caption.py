"""How good are captions: BLEU, METEOR, ROUGE-L, CIDEr and SPICE, each scorer by itself, on the 0-100 scale."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor import meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.spice import spice

from multitask_vl.errors import InputError
from multitask_vl.metrics.caption_tokenizer import words

SCORERS = ("Bleu", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
_BLEUS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
_SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")

Words = dict[str, list[str]]
Result = dict[str, tuple[float, Sequence[float]]]
"""Metric -> value of the whole set and of each image, both as the library scales them (0 to 1; CIDEr 0 to 10)."""


@dataclass(frozen=True)
class CaptionScores:
    """What scoring a set of captions gives; everything times 100 (CIDEr as well, so 0-1000).

    Attributes:
        corpus: metric -> value of the set, or None where it could not be computed.
        per_image: image -> metric -> value. The mean of per-image BLEU is not the corpus BLEU.
        notes: metric -> why it is None, or what its value says little of.
    """

    corpus: dict[str, float | None]
    per_image: dict[str, dict[str, float]]
    notes: dict[str, str] = field(default_factory=dict)


def lacking(scorer: str) -> str | None:
    """What a scorer needs and this machine does not have, or None."""
    if scorer == "SPICE":
        lib = Path(spice.__file__).parent / "lib"
        missing = [jar for jar in _SPICE_JARS if not (lib / jar).is_file()]
        if missing:
            # its constructor would download them, and stop everything where there is no network
            return f"SPICE needs {' and '.join(missing)} of CoreNLP 3.6.0 in {lib}"
    if scorer in ("METEOR", "SPICE") and shutil.which("java") is None:
        return f"{scorer} needs Java, and there is no 'java' on PATH"
    if scorer == "SPICE" and not os.access(lib.parent, os.W_OK):
        return f"SPICE writes its cache into {lib.parent}, which is read-only"
    return None


def caption_scores(
    references: Mapping[str, Sequence[str]],
    captions: Mapping[str, str],
    tokenizer: str = "ptb",
    scorers: Sequence[str] = SCORERS,
) -> CaptionScores:
    """Score captions as the COCO caption toolkit does (pycocoevalcap), one scorer at a time.

    CIDEr's document frequencies come from ``references``, so its value holds for the whole set only.

    Args:
        references: image -> human captions, at least one; images without a caption are left out.
        captions: image -> caption.
        tokenizer: see `caption_words.words`.
        scorers: which of `SCORERS` to run. METEOR and SPICE need Java, SPICE also its CoreNLP jars.

    Raises:
        InputError: an image without references, no images, an unknown scorer, or no tokenizer.
    """
    _check(references, captions, scorers)
    # In the order of the references, and both apart, as the toolkit does it: what the official tokenizer makes of a
    # line that ends in "D." depends on how the next line begins.
    ids = [i for i in references if i in captions]
    cut = iter(words([text for i in ids for text in references[i]], tokenizer))
    truth = {i: [next(cut) for _ in references[i]] for i in ids}
    result = {i: [caption] for i, caption in zip(ids, words([captions[i] for i in ids], tokenizer), strict=True)}

    corpus: dict[str, float | None] = {}
    per_image: dict[str, dict[str, float]] = {i: {} for i in ids}
    notes = {}
    for scorer in scorers:
        found, reason = {}, lacking(scorer)
        if reason is None:
            try:
                # the library prints its progress
                with contextlib.redirect_stdout(io.StringIO()):
                    found = _RUN[scorer](truth, result)
            # one scorer that fails (Java killed, memory, a broken jar) must not take the others' numbers with it
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
        if reason is not None:
            for name in _BLEUS if scorer == "Bleu" else (scorer,):
                corpus[name] = None
                notes[name] = f"not computed: {reason}"
        for name, (value, values) in found.items():
            corpus[name] = 100 * float(value)
            for i, one in zip(ids, values, strict=True):
                per_image[i][name] = 100 * float(one)
    if len(ids) == 1 and corpus.get("CIDEr") is not None:
        notes["CIDEr"] = "always 0 for a single image: each of its words is in every image of the set"
    return CaptionScores(corpus, per_image, notes)


def _check(references: Mapping[str, Sequence[str]], captions: Mapping[str, str], scorers: Sequence[str]) -> None:
    problems = [f"caption scorer {name!r} is not known (known: {', '.join(SCORERS)})" for name in scorers
                if name not in SCORERS]  # fmt: skip
    if not captions:
        problems.append("there are no captions to score")
    bare = [i for i in captions if not references.get(i)]
    if bare:
        problems.append(f"{len(bare)} of {len(captions)} images have no reference captions (first: {bare[0]})")
    if problems:
        raise InputError(problems)


def _bleu(truth: Words, result: Words) -> Result:
    values, per_image = Bleu(4).compute_score(truth, result, verbose=0)
    return dict(zip(_BLEUS, zip(values, per_image, strict=True), strict=True))


def _rouge(truth: Words, result: Words) -> Result:
    return {"ROUGE_L": Rouge().compute_score(truth, result)}


def _cider(truth: Words, result: Words) -> Result:
    return {"CIDEr": Cider().compute_score(truth, result)}


def _meteor(truth: Words, result: Words) -> Result:
    # its line protocol separates references by |||
    truth = {i: [text.replace("|||", "") for text in texts] for i, texts in truth.items()}
    scorer = meteor.Meteor()
    try:
        return {"METEOR": scorer.compute_score(truth, result)}
    finally:
        # if Java died, the library still holds its lock, and its __del__ would wait for it for ever
        if scorer.lock.locked():
            scorer.lock.release()
        for pipe in (scorer.meteor_p.stdin, scorer.meteor_p.stdout, scorer.meteor_p.stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _spice(truth: Words, result: Words) -> Result:
    value, per_image = spice.Spice().compute_score(truth, result)
    # the library sorts the images
    of = dict(zip(sorted(truth), (scores["All"]["f"] for scores in per_image), strict=True))
    return {"SPICE": (value, np.nan_to_num([of[i] for i in truth]))}


_RUN: dict[str, Callable[[Words, Words], Result]] = {
    "Bleu": _bleu, "METEOR": _meteor, "ROUGE_L": _rouge, "CIDEr": _cider, "SPICE": _spice,
}  # fmt: skip
