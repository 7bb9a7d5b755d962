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
        balanced: whether it is of the balanced part, on which GQA is scored.
    """

    answer: str
    types: Mapping[str, str]
    entailed: Sequence[str] = ()
    balanced: bool = True


@dataclass(frozen=True)
class GQAScores:
    """Scores in percent.

    Attributes:
        accuracy: share of questions answered by exactly the right string (case and blanks count).
        consistency: over rightly answered questions that entail others in the set, the mean accuracy on those; None
            where there are none.
        unasked: how many entailed questions of rightly answered ones are not in the set and so were left out of
            consistency. The official number needs all of them (``{val,testdev}_all_questions.json``).
        counted: question -> 0 or 100, for the questions that accuracy is the mean of.
        per_question: the same for every question of the set.
        groups: breakdown -> kind -> accuracy. ``answer`` is the official split in open (structural type query) and
            binary (all others).
    """

    accuracy: float
    consistency: float | None
    unasked: int
    counted: dict[str, float]
    per_question: dict[str, float]
    groups: dict[str, dict[str, float]]


def gqa_scores(predictions: Mapping[str, str], questions: Mapping[str, GQAQuestion]) -> GQAScores:
    """Score predictions by question id (at least one), as GQA's own evaluation does where it uses answers only.

    Like there, only balanced questions count, and the others of an ``all`` file serve as entailed ones. A set without
    any balanced question counts as a whole.
    """
    right = {id_: text == questions[id_].answer for id_, text in predictions.items()}
    counted = {id_: correct for id_, correct in right.items() if questions[id_].balanced} or right
    members: dict[str, dict[str, list[bool]]] = {}
    for id_, correct in counted.items():
        for breakdown, kind in kinds_of(questions[id_].types).items():
            members.setdefault(breakdown, {}).setdefault(kind, []).append(correct)
    agreeing, unasked = [], 0
    for id_ in (id_ for id_, correct in counted.items() if correct):
        others = [other for other in questions[id_].entailed if other != id_]
        entailed = [right[other] for other in others if other in right]
        unasked += len(others) - len(entailed)
        if entailed:
            agreeing.append(sum(entailed) / len(entailed))
    return GQAScores(
        accuracy=_percent(list(counted.values())),
        consistency=_percent(agreeing) if agreeing else None,
        unasked=unasked,
        counted={id_: 100.0 * correct for id_, correct in counted.items()},
        per_question={id_: 100.0 * correct for id_, correct in right.items()},
        groups={
            breakdown: {kind: _percent(found) for kind, found in sorted(kinds.items())}
            for breakdown, kinds in members.items()
        },
    )


def kinds_of(types: Mapping[str, str]) -> dict[str, str]:
    """Breakdown -> kind of a question with these types; ``answer`` follows from the structural one."""
    kinds = dict(types)
    if "structural" in kinds:
        kinds["answer"] = "open" if kinds["structural"] == "query" else "binary"
    return kinds


def _percent(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values)
