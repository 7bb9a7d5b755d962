"""Official VQA v2 accuracy, per question and per group, with all details of the official scorer."""

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
_MAX_DELETED_PERIODS = 32  # the official code passes a regex flag of this value as the count
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = {"a", "an", "the"}
# As in the official list, whose keys are these without any one apostrophe (dont, couldnt've, couldn'tve). Its few keys
# with capitals can never match, because the words are in lower case by then.
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
"""Group -> question types, from Table 3 of the routing-function paper."""


@dataclass(frozen=True)
class HumanAnswers:
    """Human answers to a question (ten in VQA v2), and the official types if they are given."""

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
        per_group_macro: the same -> mean over its question types (the paper does not specify which of the two it uses).
    """

    overall: float
    per_question: dict[str, float]
    per_answer_type: dict[str, float]
    per_question_type: dict[str, float]
    per_group: dict[str, float]
    per_group_macro: dict[str, float]


def vqa_accuracy(predictions: Mapping[str, str], humans: Mapping[str, HumanAnswers]) -> VQAAccuracy:
    """Compute the official accuracy (VQAEval of GT-Vision-Lab/VQA) of predictions by question id; at least one."""
    accuracy = {id_: question_accuracy(text, humans[id_].answers) for id_, text in predictions.items()}
    by_answer, by_question = {}, {}
    for id_, value in accuracy.items():
        by_answer.setdefault(humans[id_].answer_type, []).append(value)
        by_question.setdefault(humans[id_].question_type, []).append(value)
    groups = {
        group: members
        for group, types in QUESTION_GROUPS.items()
        if (members := [by_question[type_] for type_ in types if type_ in by_question])
    }
    return VQAAccuracy(
        overall=_percent(list(accuracy.values())),
        per_question={id_: round(100 * value, 2) for id_, value in accuracy.items()},
        per_answer_type={type_: _percent(values) for type_, values in by_answer.items() if type_ is not None},
        per_question_type={type_: _percent(values) for type_, values in by_question.items() if type_ is not None},
        per_group={
            group: _percent([value for values in members for value in values]) for group, members in groups.items()
        },
        per_group_macro={
            group: _percent([sum(values) / len(values) for values in members]) for group, members in groups.items()
        },
    )


def question_accuracy(prediction: str, humans: Sequence[str]) -> float:
    """Accuracy in [0, 1] of one answer: leaving out each human in turn, the mean of min(1, others who agree / 3).

    As in the official scorer, both sides are normalized only if the humans did not all write the same string: with ten
    times "Yes", the prediction "yes" is wrong.
    """
    prediction = _strip(prediction)
    humans = [_strip(answer) for answer in humans]
    if len(set(humans)) > 1:
        prediction = normalize(prediction)
        humans = [normalize(answer) for answer in humans]
    agree = [answer == prediction for answer in humans]
    total = sum(agree)
    return sum(min(1.0, (total - own) / 3) for own in agree) / len(agree)


def _percent(values: Sequence[float]) -> float:
    return round(100 * sum(values) / len(values), 2)


def _strip(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


@functools.lru_cache(maxsize=1 << 16)
def normalize(answer: str) -> str:
    """Normalize an answer as the official scorer does: no punctuation, no articles, numbers as digits, lower case."""
    out = answer
    has_digit_comma = _DIGIT_COMMA_DIGIT.search(answer) is not None
    for sign in _PUNCTUATION:
        # decided by the original text: a sign next to a space anywhere is deleted everywhere, else it becomes a space
        deleted = has_digit_comma or sign + " " in answer or " " + sign in answer
        out = out.replace(sign, "" if deleted else " ")
    out = _PERIOD.sub("", out, count=_MAX_DELETED_PERIODS)
    words = (_NUMBERS.get(word, word) for word in out.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
