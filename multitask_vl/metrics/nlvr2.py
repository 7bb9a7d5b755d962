"""NLVR2 accuracy, and consistency over all image pairs of a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class NLVR2Scores:
    """NLVR2 scores in percent.

    Attributes:
        accuracy: percentage of correct predictions.
        consistency: percentage of sentences whose predictions are all correct.
        per_item: identifier -> 0 or 100.
        per_sentence: `sentence_of` an identifier -> 100 if all predictions of the sentence are correct, else 0.
    """

    accuracy: float
    consistency: float
    per_item: dict[str, float]
    per_sentence: dict[str, float]


def nlvr2_scores(predictions: Mapping[str, bool | None], truth: Mapping[str, bool]) -> NLVR2Scores:
    """Score predictions by identifier, at least one; None, which is neither true nor false, is wrong."""
    correct = {identifier: value is truth[identifier] for identifier, value in predictions.items()}
    sentences: dict[str, list[bool]] = {}
    for identifier, value in correct.items():
        sentences.setdefault(sentence_of(identifier), []).append(value)
    return NLVR2Scores(
        accuracy=100 * sum(correct.values()) / len(correct),
        consistency=100 * sum(map(all, sentences.values())) / len(sentences),
        per_item={identifier: 100.0 * value for identifier, value in correct.items()},
        per_sentence={sentence: 100.0 * all(values) for sentence, values in sentences.items()},
    )


def sentence_of(identifier: str) -> str:
    """Part of an identifier that all items of one sentence share.

    NLVR2 (split-set-pair-sentence): the identifier without the pair. NLVR version 1 (sentence-image): its first part.
    Any other identifier: all of it.
    """
    parts = identifier.split("-")
    if len(parts) == 4:
        return "-".join([*parts[:2], "", parts[3]])
    return parts[0] if len(parts) == 2 else identifier
