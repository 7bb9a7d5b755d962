"""Caption metrics on the 0-100 scale: BLEU, METEOR, ROUGE-L, CIDEr and SPICE of pycocoevalcap."""

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
from multitask_vl.metrics.caption_tokenizer import tokenize

SCORERS = ("Bleu", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
_BLEUS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
_SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")

Captions = dict[str, list[str]]
"""Image -> tokenized captions."""
Result = dict[str, tuple[float, Sequence[float]]]
"""Metric -> value of the full set and of each image, on the scale of pycocoevalcap (0 to 1; CIDEr 0 to 10)."""


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions; everything times 100 (also CIDEr, whose range is 0-1000).

    Attributes:
        corpus: metric -> value of the set, or None if it could not be computed.
        per_image: image -> metric -> value. The mean of per-image BLEU is not the corpus BLEU.
        notes: metric -> why it is None, or why its value is not informative.
    """

    corpus: dict[str, float | None]
    per_image: dict[str, dict[str, float]]
    notes: dict[str, str] = field(default_factory=dict)


def unavailable_scorers(scorers: Sequence[str]) -> dict[str, str]:
    """Scorers that cannot run on this machine -> the requirement that is missing."""
    return {scorer: missing for scorer in scorers if (missing := _missing_requirement(scorer)) is not None}


def _missing_requirement(scorer: str) -> str | None:
    if scorer == "SPICE":
        lib = Path(spice.__file__).parent / "lib"
        missing = [jar for jar in _SPICE_JARS if not (lib / jar).is_file()]
        if missing:
            # its constructor would download them, and exit the process if there is no network
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

    CIDEr's document frequencies come from ``references``, so its value is for the full set only.

    Args:
        references: image -> human captions, at least one; images without a caption are ignored.
        captions: image -> caption.
        tokenizer: see `multitask_vl.metrics.caption_tokenizer.tokenize`.
        scorers: which of `SCORERS` to run. METEOR and SPICE need Java, SPICE also its CoreNLP jars.

    Raises:
        InputError: an image without references, no images, an unknown scorer, or an unavailable tokenizer.
    """
    _check(references, captions, scorers)
    # In the order of the references, and the two sets separately, as in the toolkit: how the official tokenizer splits
    # a line that ends in "D." depends on the start of the next line.
    ids = [i for i in references if i in captions]
    tokenized = iter(tokenize([text for i in ids for text in references[i]], tokenizer))
    truth = {i: [next(tokenized) for _ in references[i]] for i in ids}
    result = {i: [caption] for i, caption in zip(ids, tokenize([captions[i] for i in ids], tokenizer), strict=True)}

    corpus: dict[str, float | None] = {}
    per_image: dict[str, dict[str, float]] = {i: {} for i in ids}
    notes = {}
    unavailable = unavailable_scorers(scorers)
    for scorer in scorers:
        scores, reason = {}, unavailable.get(scorer)
        if reason is None:
            try:
                # the scorers print their progress
                with contextlib.redirect_stdout(io.StringIO()):
                    scores = _RUN[scorer](truth, result)
            # a scorer that fails (Java killed, memory, a broken jar) must not lose the numbers of the others
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
        if reason is not None:
            for name in _BLEUS if scorer == "Bleu" else (scorer,):
                corpus[name] = None
                notes[name] = f"not computed: {reason}"
        for name, (value, values) in scores.items():
            corpus[name] = 100 * float(value)
            for i, image_value in zip(ids, values, strict=True):
                per_image[i][name] = 100 * float(image_value)
    if len(ids) == 1 and corpus.get("CIDEr") is not None:
        notes["CIDEr"] = "always 0 for a single image: each of its words is in every image of the set"
    return CaptionScores(corpus, per_image, notes)


def _check(references: Mapping[str, Sequence[str]], captions: Mapping[str, str], scorers: Sequence[str]) -> None:
    problems = [f"caption scorer {name!r} is not known (known: {', '.join(SCORERS)})" for name in scorers
                if name not in SCORERS]  # fmt: skip
    if not captions:
        problems.append("there are no captions to score")
    missing = [i for i in captions if not references.get(i)]
    if missing:
        problems.append(f"{len(missing)} of {len(captions)} images have no reference captions (first: {missing[0]})")
    if problems:
        raise InputError(problems)


def _bleu(truth: Captions, result: Captions) -> Result:
    values, per_image = Bleu(4).compute_score(truth, result, verbose=0)
    return dict(zip(_BLEUS, zip(values, per_image, strict=True), strict=True))


def _rouge(truth: Captions, result: Captions) -> Result:
    return {"ROUGE_L": Rouge().compute_score(truth, result)}


def _cider(truth: Captions, result: Captions) -> Result:
    return {"CIDEr": Cider().compute_score(truth, result)}


def _meteor(truth: Captions, result: Captions) -> Result:
    # the line protocol of METEOR separates references by |||
    truth = {i: [text.replace("|||", "") for text in texts] for i, texts in truth.items()}
    scorer = meteor.Meteor()
    try:
        return {"METEOR": scorer.compute_score(truth, result)}
    finally:
        # if Java crashed, pycocoevalcap still has its lock, and its __del__ would wait for it forever
        if scorer.lock.locked():
            scorer.lock.release()
        for pipe in (scorer.meteor_p.stdin, scorer.meteor_p.stdout, scorer.meteor_p.stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _spice(truth: Captions, result: Captions) -> Result:
    value, per_image = spice.Spice().compute_score(truth, result)
    # pycocoevalcap sorts the images
    by_image = dict(zip(sorted(truth), (scores["All"]["f"] for scores in per_image), strict=True))
    return {"SPICE": (value, np.nan_to_num([by_image[i] for i in truth]))}


_RUN: dict[str, Callable[[Captions, Captions], Result]] = {
    "Bleu": _bleu, "METEOR": _meteor, "ROUGE_L": _rouge, "CIDEr": _cider, "SPICE": _spice,
}  # fmt: skip
