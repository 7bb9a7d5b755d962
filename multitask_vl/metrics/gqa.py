"""GQA accuracy, accuracy per group, and consistency over entailed questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GQAQuestion:
    """Fields of a question that scoring needs.

    Attributes:
        answer: the correct answer.
        types: breakdown -> group, e.g. ``{"structural": "choose", "semantic": "attr"}``; may be empty.
        entailed: ids of questions whose answers follow from this one's.
        balanced: whether it is in the balanced subset, on which GQA is scored.
    """

    answer: str
    types: Mapping[str, str]
    entailed: Sequence[str] = ()
    balanced: bool = True


@dataclass(frozen=True)
class GQAScores:
    """GQA scores in percent.

    Attributes:
        accuracy: percentage of predictions equal to the answer (case and spaces count).
        consistency: over correctly answered questions that entail others in the set, the mean accuracy on those; None
            if there are none.
        missing_entailed: number of questions entailed by correctly answered ones that are not in the set, which
            consistency ignores. The official number needs all of them (``{val,testdev}_all_questions.json``).
        balanced: question -> 0 or 100, for the questions whose mean is the accuracy.
        per_question: question -> 0 or 100, for every question of the set.
        groups: breakdown -> group -> accuracy. ``answer`` is the official division into open (structural type query)
            and binary (all others).
    """

    accuracy: float
    consistency: float | None
    missing_entailed: int
    balanced: dict[str, float]
    per_question: dict[str, float]
    groups: dict[str, dict[str, float]]


def gqa_scores(predictions: Mapping[str, str], questions: Mapping[str, GQAQuestion]) -> GQAScores:
    """Score predictions by question id (at least one), as the answer-based part of GQA's official evaluation.

    As there, only balanced questions count, and the others of an ``all`` file are used as entailed ones. If no question
    is balanced, all count.
    """
    correct = {id_: text == questions[id_].answer for id_, text in predictions.items()}
    balanced = {id_: value for id_, value in correct.items() if questions[id_].balanced} or correct
    members: dict[str, dict[str, list[bool]]] = {}
    for id_, value in balanced.items():
        for breakdown, group in question_groups(questions[id_].types).items():
            members.setdefault(breakdown, {}).setdefault(group, []).append(value)
    consistent, missing = [], 0
    for id_ in (id_ for id_, value in balanced.items() if value):
        others = [other for other in questions[id_].entailed if other != id_]
        entailed = [correct[other] for other in others if other in correct]
        missing += len(others) - len(entailed)
        if entailed:
            consistent.append(sum(entailed) / len(entailed))
    return GQAScores(
        accuracy=_percent(list(balanced.values())),
        consistency=_percent(consistent) if consistent else None,
        missing_entailed=missing,
        balanced={id_: 100.0 * value for id_, value in balanced.items()},
        per_question={id_: 100.0 * value for id_, value in correct.items()},
        groups={
            breakdown: {group: _percent(values) for group, values in sorted(groups.items())}
            for breakdown, groups in members.items()
        },
    )


def question_groups(types: Mapping[str, str]) -> dict[str, str]:
    """Breakdown -> group of a question with these types; ``answer`` follows from the structural type."""
    groups = dict(types)
    if "structural" in groups:
        groups["answer"] = "open" if groups["structural"] == "query" else "binary"
    return groups


def _percent(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values)
