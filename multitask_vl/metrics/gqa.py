"""How good are GQA answers: exact matches, by kind of question, and whether answers agree with what they entail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GQAQuestion:
    """What scoring one question needs.

    Attributes:
        answer: the one right answer.
        types: breakdown -> kind, e.g. ``{"structural": "choose", "semantic": "attr"}``; may be empty.
        entailed: ids of questions whose answers follow from this one's.
    """

    answer: str
    types: Mapping[str, str]
    entailed: Sequence[str] = ()


@dataclass(frozen=True)
class GQAScores:
    """Scores in percent.

    Attributes:
        accuracy: share of questions answered by exactly the right string (case and blanks count).
        consistency: over rightly answered questions that entail others in the set, the mean accuracy on those; None
            where there are none.
        per_question: question -> 0 or 100.
        groups: breakdown -> kind -> accuracy. ``answer`` is the official split in open (structural type query) and
            binary (all others).
    """

    accuracy: float
    consistency: float | None
    per_question: dict[str, float]
    groups: dict[str, dict[str, float]]


def gqa_scores(predictions: Mapping[str, str], questions: Mapping[str, GQAQuestion]) -> GQAScores:
    """Score predictions by question id (at least one), as GQA's own evaluation does where it uses answers only."""
    right = {id_: text == questions[id_].answer for id_, text in predictions.items()}
    members: dict[str, dict[str, list[bool]]] = {}
    for id_, correct in right.items():
        kinds = dict(questions[id_].types)
        if "structural" in kinds:
            kinds["answer"] = "open" if kinds["structural"] == "query" else "binary"
        for breakdown, kind in kinds.items():
            members.setdefault(breakdown, {}).setdefault(kind, []).append(correct)
    agreeing = []
    for id_, correct in right.items():
        entailed = [right[other] for other in questions[id_].entailed if other in right and other != id_]
        if correct and entailed:
            agreeing.append(sum(entailed) / len(entailed))
    return GQAScores(
        accuracy=_percent(list(right.values())),
        consistency=_percent(agreeing) if agreeing else None,
        per_question={id_: 100.0 * correct for id_, correct in right.items()},
        groups={
            breakdown: {kind: _percent(found) for kind, found in sorted(kinds.items())}
            for breakdown, kinds in members.items()
        },
    )


def _percent(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values)
