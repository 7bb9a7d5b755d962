"""How good are true/false judgements: accuracy, and consistency over all pictures of a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class NLVR2Scores:
    """Scores in percent.

    Attributes:
        accuracy: share of right judgements.
        consistency: share of sentences all of whose judgements are right.
        per_item: identifier -> 0 or 100.
        per_sentence: `sentence_of` an identifier -> 100 if all judgements of the sentence are right, else 0.
    """

    accuracy: float
    consistency: float
    per_item: dict[str, float]
    per_sentence: dict[str, float]


def nlvr2_scores(predictions: Mapping[str, bool | None], truth: Mapping[str, bool]) -> NLVR2Scores:
    """Score judgements by identifier, at least one; None is a judgement that could not be read, and wrong."""
    right = {identifier: judged is truth[identifier] for identifier, judged in predictions.items()}
    groups: dict[str, list[bool]] = {}
    for identifier, correct in right.items():
        groups.setdefault(sentence_of(identifier), []).append(correct)
    return NLVR2Scores(
        accuracy=100 * sum(right.values()) / len(right),
        consistency=100 * sum(map(all, groups.values())) / len(groups),
        per_item={identifier: 100.0 * correct for identifier, correct in right.items()},
        per_sentence={sentence: 100.0 * all(group) for sentence, group in groups.items()},
    )


def sentence_of(identifier: str) -> str:
    """What all items of one sentence share.

    NLVR2 (split-set-pair-sentence): the identifier with the pair blanked. NLVR version 1 (sentence-picture): its first
    part. Any other identifier stands for itself.
    """
    parts = identifier.split("-")
    if len(parts) == 4:
        return "-".join([*parts[:2], "", parts[3]])
    return parts[0] if len(parts) == 2 else identifier
