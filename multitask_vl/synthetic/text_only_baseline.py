"""Text-only baseline: the score that answers without the image can reach.

    python -m multitask_vl.synthetic.text_only_baseline --world DIR [--json]

The baseline sees a question with its attribute words blanked ("what color is the _ _?") and knows the train split. For
each such skeleton it gives the answer with the best score there: a constant, or the first or second attribute word of
the question ("is the star red or blue?" -> "red"). It is scored on another split with the metric of the task. For
captions it gives one caption for every image.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from multitask_vl.errors import InputError, cli_errors
from multitask_vl.metrics.caption import caption_scores
from multitask_vl.synthetic.language import noun_phrase
from multitask_vl.synthetic.scenes import SHAPES, SPLITS, VALUES, Filter
from multitask_vl.synthetic.writers import FILES

MAX_TEXT_ONLY_SCORE = {"vqa": 40.0, "gqa": 40.0, "nlvr2": 52.0}
"""Maximum score of the baseline on the test split, 0 to 100."""
EXIT_TOO_EASY = 1
_ATTRIBUTE_WORDS = {value for values in VALUES.values() for value in values} | {
    noun_phrase(Filter(shape=shape), plural=True) for shape in SHAPES
}


@dataclass(frozen=True)
class Item:
    """Question or statement with the score of each answer, 0 to 1."""

    text: str
    scores: dict[str, float]
    group: str


@dataclass(frozen=True)
class BaselineScores:
    """Scores of the baseline, 0 to 100 (captions: CIDEr times 100).

    Attributes:
        train_fit: answers chosen on train, scored on the split.
        oracle_fit: answers chosen on the split itself, which no model could do; to reduce overfitting, every
            description counts as one blank here.
        majority: the most frequent answer of train to every question.
        max_score: maximum for ``train_fit``; None for no limit.
        count: number of items.
        groups: question group -> (``train_fit`` of its items, number of items).
    """

    task: str
    split: str
    train_fit: float
    oracle_fit: float
    majority: float
    max_score: float | None
    count: int
    groups: dict[str, tuple[float, int]]

    @property
    def is_too_easy(self) -> bool:
        """Whether the baseline exceeds its maximum score."""
        return self.max_score is not None and self.train_fit > self.max_score


def skeleton(text: str) -> str:
    """Blank every color, pattern, shape and size."""
    return re.sub(r"[a-z]+", lambda word: "_" if word[0] in _ATTRIBUTE_WORDS else word[0], text)


def template(text: str) -> str:
    """Blank every description, however many words it has: "what color is the _ left of the _?"."""
    return re.sub(r"_( _)*( things?)?|\bthings?", "_", skeleton(text))


def score_baseline(task: str, world: Path, split: str = "test") -> BaselineScores:
    """Score the baseline on VQA, GQA or NLVR2.

    Raises:
        InputError: a file of the world is missing or damaged.
    """
    train, items = _ITEM_READERS[task](world, "train"), _ITEM_READERS[task](world, split)
    rules, oracle_rules = _best_rules(train, skeleton), _best_rules(items, template)
    majority_rules = _best_rules(train, _ignore_text)
    scores = [_score(item, rules, skeleton) for item in items]
    groups: dict[str, list[float]] = defaultdict(list)
    for item, score in zip(items, scores, strict=True):
        groups[item.group].append(score)
    return BaselineScores(
        task,
        split,
        _mean(scores),
        _mean(_score(item, oracle_rules, template) for item in items),
        _mean(_score(item, majority_rules, _ignore_text) for item in items),
        MAX_TEXT_ONLY_SCORE.get(task) if split == "test" else None,
        len(items),
        {name: (_mean(members), len(members)) for name, members in sorted(groups.items())},
    )


Rule = str | int
"""Constant answer, or index of the question's attribute word to repeat."""
_UNSEEN = "a pattern that train lacks"


def _ignore_text(text: str) -> str:
    return ""


def _best_rules(items: Sequence[Item], pattern_of: Callable[[str], str]) -> dict[str, Rule]:
    """Pattern of a text -> the rule with the best sum of scores; the first in order wins a tie."""
    totals: dict[str, Counter] = defaultdict(Counter)
    for item in items:
        for tally in (totals[pattern_of(item.text)], totals[_UNSEEN]):
            for answer, score in item.scores.items():
                tally[answer] += score
            for index, word in enumerate(_attribute_words(item.text)):
                tally[index] += item.scores.get(word, 0.0)
    return {pattern: max(sorted(tally, key=str), key=tally.__getitem__) for pattern, tally in totals.items()}


def _attribute_words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", text) if word in _ATTRIBUTE_WORDS]


def _score(item: Item, rules: dict[str, Rule], pattern_of: Callable[[str], str]) -> float:
    rule = rules.get(pattern_of(item.text), rules[_UNSEEN])
    if isinstance(rule, int):
        words = _attribute_words(item.text)
        rule = words[rule] if rule < len(words) else ""
    return 100 * item.scores.get(rule, 0.0)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))


def _vqa_items(world: Path, split: str) -> list[Item]:
    questions = _read_json(world / FILES["vqa_questions"].format(split=split))["questions"]
    annotations = _read_json(world / FILES["vqa_annotations"].format(split=split))["annotations"]
    by_id = {annotation["question_id"]: annotation for annotation in annotations}
    items = []
    for question in questions:
        annotation = by_id[question["question_id"]]
        votes = Counter(answer["answer"] for answer in annotation["answers"])
        scores = {answer: human_accuracy(number) for answer, number in votes.items()}
        items.append(Item(question["question"], scores, annotation["question_type"]))
    return items


def human_accuracy(votes: int, annotators: int = 10) -> float:
    """VQA accuracy of an answer with this many votes: min(1, other votes / 3), averaged over leaving one vote out."""
    return (votes * min(1.0, (votes - 1) / 3) + (annotators - votes) * min(1.0, votes / 3)) / annotators


def _gqa_items(world: Path, split: str) -> list[Item]:
    rows = _read_json(world / FILES["gqa"].format(split=split)).values()
    return [Item(row["question"], {row["answer"]: 1.0}, row["types"]["detailed"]) for row in rows]


def _nlvr2_items(world: Path, split: str) -> list[Item]:
    rows = [json.loads(line) for line in _read_text(world / FILES["nlvr2"].format(split=split)).splitlines()]
    return [Item(row["sentence"], {row["label"]: 1.0}, row["query"]) for row in rows]


def score_caption_baseline(
    world: Path, split: str = "test", num_candidates: int = 12, num_images: int = 200
) -> BaselineScores:
    """CIDEr of one caption for all images: the best of train's most frequent ones on ``num_images`` of train."""
    images = _read_json(world / FILES["captions"])["images"]

    def references(name: str) -> dict[str, list[str]]:
        chosen = (image for image in images if image["split"] == name)
        return {str(image["imgid"]): [sentence["raw"] for sentence in image["sentences"]] for image in chosen}

    def cider(targets: dict[str, list[str]], caption: str) -> float:
        scores = caption_scores(targets, dict.fromkeys(targets, caption), "python", ("CIDEr",))
        return scores.corpus["CIDEr"] or 0.0

    train, targets = references("train"), references(split)
    tally = Counter(caption for captions in train.values() for caption in captions)
    frequent = [caption for caption, _ in tally.most_common(num_candidates)]
    selection = dict(list(train.items())[:num_images])
    train_fit = cider(targets, max(frequent, key=lambda caption: cider(selection, caption)))
    oracle_fit = max(cider(targets, caption) for caption in frequent)
    return BaselineScores("captions", split, train_fit, oracle_fit, cider(targets, frequent[0]), None, len(targets), {})


_ITEM_READERS: dict[str, Callable[[Path, str], list[Item]]] = {
    "vqa": _vqa_items,
    "gqa": _gqa_items,
    "nlvr2": _nlvr2_items,
}


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; is this a synthetic world? Make one: multitask-vl make-synthetic --out DIR"
        )
    return path.read_text()


def _read_json(path: Path):
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg}); build the world again") from error


@cli_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Print the baseline's scores on each task; exit code 1 if a maximum is exceeded."""
    parser = argparse.ArgumentParser(
        prog="python -m multitask_vl.synthetic.text_only_baseline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--world", type=Path, required=True, help="folder written by multitask-vl make-synthetic")
    parser.add_argument("--split", default="test", choices=SPLITS[1:], help="split to score (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    results = [score_baseline(task, options.world, options.split) for task in _ITEM_READERS]
    results.append(score_caption_baseline(options.world, options.split))
    if options.json:
        print(json.dumps({result.task: asdict(result) for result in results}, indent=1))
    else:
        for result in results:
            _print_scores(result)
    return EXIT_TOO_EASY if any(result.is_too_easy for result in results) else 0


def _print_scores(result: BaselineScores) -> None:
    limit = "" if result.max_score is None else f"at most {result.max_score:g}; "
    print(f"{result.task:6} {result.train_fit:5.1f}  ({limit}{result.count} examples of {result.split})")
    print(f"       {result.oracle_fit:5.1f}  with answers chosen on these examples")
    print(f"       {result.majority:5.1f}  with one answer to every question")
    for name, (score, number) in result.groups.items():
        print(f"         {score:5.1f}  {name} ({number})")


if __name__ == "__main__":
    sys.exit(main())
