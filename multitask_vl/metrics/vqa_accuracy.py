"""How good are VQA answers: the official VQA v2 accuracy with all its habits, per question and per group."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PUNCTUATION = (
    ";",
    "/",
    "[",
    "]",
    '"',
    "{",
    "}",
    "(",
    ")",
    "=",
    "+",
    "\\",
    "_",
    "-",
    ">",
    "<",
    "@",
    "`",
    ",",
    "?",
    "!",
)
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_DELETED = 32  # the official code passes a flag of this value where the count stands
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = {"a", "an", "the"}
# As the official list writes them; its keys are these with any one apostrophe left out (dont, couldnt've, couldn'tve).
# Its few keys with capitals can never match, for words are in lower case by then.
_CONTRACTED_FORMS = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've
    must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTED_FORMS.split()
    for i, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}

QUESTION_GROUPS = {
    "where": ("where is the", "where are the", "what is on the", "what is in the"),
    "color": ("what color", "what color is the", "what color is", "what color are the", "what is the color of the"),
    "time": ("what time",),
    "person": (
        "what is the man", "what is the woman", "is the man", "is the woman", "what is the person", "is the person",
        "is this person",
    ),
}  # fmt: skip
"""Question types of each group of the routing-function paper's Table 3."""


@dataclass(frozen=True)
class HumanAnswers:
    """What humans said to a question: their answers (ten in VQA v2) and the official types, where given."""

    answers: Sequence[str]
    answer_type: str | None = None
    question_type: str | None = None


@dataclass(frozen=True)
class VQAAccuracy:
    """Accuracies in percent, rounded to 2 decimals as the official scorer rounds them.

    Attributes:
        overall: mean over questions (of the unrounded accuracies, like every mean here).
        per_question: question id -> accuracy.
        per_answer_type, per_question_type: official type -> mean over its questions.
        per_group: group of `QUESTION_GROUPS` -> mean over its questions.
        per_group_macro: the same -> mean over its question types (the paper does not say which of the two it prints).
    """

    overall: float
    per_question: dict[str, float]
    per_answer_type: dict[str, float]
    per_question_type: dict[str, float]
    per_group: dict[str, float]
    per_group_macro: dict[str, float]


def vqa_accuracy(predictions: Mapping[str, str], humans: Mapping[str, HumanAnswers]) -> VQAAccuracy:
    """The official accuracy (VQAEval of GT-Vision-Lab/VQA) of predictions by question id; at least one."""
    accuracy = {id_: question_accuracy(text, humans[id_].answers) for id_, text in predictions.items()}
    by_answer, by_question = {}, {}
    for id_, value in accuracy.items():
        by_answer.setdefault(humans[id_].answer_type, []).append(value)
        by_question.setdefault(humans[id_].question_type, []).append(value)
    groups = {
        group: found
        for group, types in QUESTION_GROUPS.items()
        if (found := [by_question[kind] for kind in types if kind in by_question])
    }
    return VQAAccuracy(
        overall=_percent(list(accuracy.values())),
        per_question={id_: round(100 * value, 2) for id_, value in accuracy.items()},
        per_answer_type={kind: _percent(values) for kind, values in by_answer.items() if kind is not None},
        per_question_type={kind: _percent(values) for kind, values in by_question.items() if kind is not None},
        per_group={group: _percent([value for values in found for value in values]) for group, found in groups.items()},
        per_group_macro={
            group: _percent([sum(values) / len(values) for values in found]) for group, found in groups.items()
        },
    )


def question_accuracy(prediction: str, humans: Sequence[str]) -> float:
    """Accuracy in [0, 1] of one answer: over the humans left out in turn, the mean of min(1, others who agree / 3).

    Both sides are normalised only where the humans did not all write the same string: with ten times "Yes", the
    prediction "yes" is wrong. A habit of the official scorer, kept.
    """
    said = _stripped(prediction)
    humans = [_stripped(answer) for answer in humans]
    if len(set(humans)) > 1:
        said = normalize(said)
        humans = [normalize(answer) for answer in humans]
    agree = [answer == said for answer in humans]
    total = sum(agree)
    return sum(min(1.0, (total - one) / 3) for one in agree) / len(agree)


def _percent(values: Sequence[float]) -> float:
    return round(100 * sum(values) / len(values), 2)


def _stripped(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


@functools.lru_cache(maxsize=1 << 16)
def normalize(answer: str) -> str:
    """An answer without punctuation and articles, numbers as digits, in lower case, as the official scorer does it."""
    out = answer
    joined = _DIGIT_COMMA_DIGIT.search(answer) is not None
    for sign in _PUNCTUATION:
        # it looks at the original text: a sign beside a blank anywhere is deleted everywhere, else it becomes a blank
        deleted = joined or sign + " " in answer or " " + sign in answer
        out = out.replace(sign, "" if deleted else " ")
    out = _PERIOD.sub("", out, count=_PERIODS_DELETED)
    words = (_NUMBERS.get(word, word) for word in out.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
