"""How far does one come without looking: ``python -m multitask_vl.synthetic.text_only_baseline --world DIR [--json]``.

The blind reader sees a question with its attribute words blanked ("what color is the _ _?") and knows the train split.
For each such skeleton it gives the answer that scores best there: a constant, or the first or second attribute word of
the question ("is the star red or blue?" -> "red"). It is scored on another split with the task's own measure. For
captions it writes one caption under every picture.
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

from multitask_vl.errors import InputError, exits_cleanly
from multitask_vl.metrics.caption import caption_scores
from multitask_vl.synthetic.language import noun
from multitask_vl.synthetic.scenes import SHAPES, VALUES, Filter
from multitask_vl.synthetic.writers import FILES, KARPATHY_SPLITS, SPLITS

CEILINGS = {"vqa": 40.0, "gqa": 40.0, "nlvr2": 52.0}
"""Most that the blind reader may score on the report split, 0 to 100."""
EXIT_TOO_EASY = 1
_ATTRIBUTE_WORDS = {value for values in VALUES.values() for value in values} | {
    noun(Filter(shape=shape), plural=True) for shape in SHAPES
}


@dataclass(frozen=True)
class Item:
    """A question or statement with what its scoring needs: answer -> score of giving it, 0 to 1."""

    text: str
    scores: dict[str, float]
    group: str


@dataclass(frozen=True)
class Blind:
    """What the blind reader scores, 0 to 100 (captions: CIDEr times 100).

    Attributes:
        learnt: constants learnt on train, scored on the split.
        fitted: constants fitted on the very split that they are scored on, which no reader could do; to keep chance out
            of it, every description counts as one blank here.
        majority: the one most frequent answer of train, whatever is asked.
        groups: kind of question -> (`learnt` there, items).
        ceiling: most that `learnt` may be; None for no limit.
    """

    task: str
    split: str
    learnt: float
    fitted: float
    majority: float
    ceiling: float | None
    count: int
    groups: dict[str, tuple[float, int]]


def skeleton(text: str) -> str:
    """The text with every color, pattern, shape and size blanked."""
    return re.sub(r"[a-z]+", lambda word: "_" if word[0] in _ATTRIBUTE_WORDS else word[0], text)


def template(text: str) -> str:
    """The text with every description blanked, however many words it has: "what color is the _ left of the _?"."""
    return re.sub(r"_( _)*( things?)?|\bthings?", "_", skeleton(text))


def read_blind(task: str, world: Path, split: str = "report") -> Blind:
    """Score the blind reader on one task of a world; InputError if a file is missing."""
    train, items = _ITEMS[task](world, "train"), _ITEMS[task](world, split)
    rules = _best_rules(train, skeleton)
    fitted, every = _best_rules(items, template), _best_rules(train, _anything)
    groups: dict[str, list[float]] = defaultdict(list)
    for item in items:
        groups[item.group].append(_score(item, rules, skeleton))
    return Blind(
        task,
        split,
        _mean(_score(item, rules, skeleton) for item in items),
        _mean(_score(item, fitted, template) for item in items),
        _mean(_score(item, every, _anything) for item in items),
        CEILINGS.get(task) if split == "report" else None,
        len(items),
        {name: (_mean(found), len(found)) for name, found in sorted(groups.items())},
    )


Rule = str | int
"""A constant answer, or which of the question's attribute words to repeat."""
_UNKNOWN = "a shape never met"


def _anything(text: str) -> str:
    return ""


def _best_rules(items: Sequence[Item], shape_of: Callable[[str], str]) -> dict[str, Rule]:
    """Shape of a text -> the rule with the best sum of scores; the first in order wins a tie."""
    totals: dict[str, Counter] = defaultdict(Counter)
    for item in items:
        for tally in (totals[shape_of(item.text)], totals[_UNKNOWN]):
            for answer, score in item.scores.items():
                tally[answer] += score
            for place, word in enumerate(_attribute_words(item.text)):
                tally[place] += item.scores.get(word, 0.0)
    return {shape: max(sorted(tally, key=str), key=tally.__getitem__) for shape, tally in totals.items()}


def _attribute_words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", text) if word in _ATTRIBUTE_WORDS]


def _score(item: Item, rules: dict[str, Rule], shape_of: Callable[[str], str]) -> float:
    rule = rules.get(shape_of(item.text), rules[_UNKNOWN])
    if isinstance(rule, int):
        words = _attribute_words(item.text)
        rule = words[rule] if rule < len(words) else ""
    return 100 * item.scores.get(rule, 0.0)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))


def _vqa(world: Path, split: str) -> list[Item]:
    questions = _json(world / FILES["vqa_questions"].format(split=split))["questions"]
    annotations = _json(world / FILES["vqa_annotations"].format(split=split))["annotations"]
    known = {one["question_id"]: one for one in annotations}
    items = []
    for question in questions:
        one = known[question["question_id"]]
        given = Counter(answer["answer"] for answer in one["answers"])
        items.append(Item(question["question"], {a: human_accuracy(n) for a, n in given.items()}, one["question_type"]))
    return items


def human_accuracy(given: int, people: int = 10) -> float:
    """VQA's score of an answer that ``given`` of ten people gave: min(1, others / 3), meant over leaving one out."""
    return (given * min(1.0, (given - 1) / 3) + (people - given) * min(1.0, given / 3)) / people


def _gqa(world: Path, split: str) -> list[Item]:
    found = _json(world / FILES["gqa"].format(split=split))
    return [Item(one["question"], {one["answer"]: 1.0}, one["types"]["detailed"]) for one in found.values()]


def _nlvr2(world: Path, split: str) -> list[Item]:
    path = world / FILES["nlvr2"].format(split=split)
    rows = [json.loads(line) for line in _text(path).splitlines()]
    return [Item(row["sentence"], {row["label"]: 1.0}, row["query"]) for row in rows]


def caption_blind(world: Path, split: str = "report", candidates: int = 12, pictures: int = 200) -> Blind:
    """CIDEr of the one caption that does best, among the most frequent ones of train, under ``pictures`` of train."""
    images = _json(world / FILES["captions"])["images"]

    def references(name: str) -> dict[str, list[str]]:
        chosen = (image for image in images if image["split"] == KARPATHY_SPLITS[name])
        return {str(image["imgid"]): [one["raw"] for one in image["sentences"]] for image in chosen}

    def cider(truth: dict[str, list[str]], caption: str) -> float:
        found = caption_scores(truth, dict.fromkeys(truth, caption), "python", ("CIDEr",))
        return found.corpus["CIDEr"] or 0.0

    train, asked = references("train"), references(split)
    tally = Counter(caption for captions in train.values() for caption in captions)
    frequent = [caption for caption, _ in tally.most_common(candidates)]
    some = dict(list(train.items())[:pictures])
    learnt = cider(asked, max(frequent, key=lambda caption: cider(some, caption)))
    fitted = max(cider(asked, caption) for caption in frequent)
    return Blind("captions", split, learnt, fitted, cider(asked, frequent[0]), None, len(asked), {})


_ITEMS: dict[str, Callable[[Path, str], list[Item]]] = {"vqa": _vqa, "gqa": _gqa, "nlvr2": _nlvr2}


def _text(path: Path) -> str:
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; is this a world? Make one: python -m multitask_vl.synthetic.build --out DIR"
        )
    return path.read_text()


def _json(path: Path):
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg}); build the world anew") from error


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> int:
    """Print what the blind reader scores on each task; exit code 1 if a ceiling is passed."""
    parser = argparse.ArgumentParser(prog="python -m multitask_vl.synthetic.text_only_baseline", description=__doc__)
    parser.add_argument("--world", type=Path, required=True, help="folder that the build command made")
    parser.add_argument("--split", default="report", choices=[s for s in SPLITS if s != "train"])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(argv)
    found = [read_blind(task, options.world, options.split) for task in _ITEMS]
    found.append(caption_blind(options.world, options.split))
    if options.json:
        print(json.dumps({one.task: asdict(one) for one in found}, indent=1))
    else:
        for one in found:
            limit = "" if one.ceiling is None else f"at most {one.ceiling:g}; "
            print(f"{one.task:6} {one.learnt:5.1f}  ({limit}{one.count} items of {one.split})")
            print(f"       {one.fitted:5.1f}  were the constants fitted on these very items")
            print(f"       {one.majority:5.1f}  by one answer to everything")
            for name, (score, number) in one.groups.items():
                print(f"         {score:5.1f}  {name} ({number})")
    return EXIT_TOO_EASY if any(one.ceiling is not None and one.learnt > one.ceiling for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
