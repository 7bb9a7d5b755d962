"""What is NLVR2 here: a sentence is true or false of its pictures; lines or lists, accuracy, consistency, csv."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from multitask_vl.config.schema import DecodingConfig, DecodingKind, TaskConfig
from multitask_vl.errors import InputError
from multitask_vl.metrics.bootstrap import Interval, interval_of_mean
from multitask_vl.metrics.nlvr2 import NLVR2Scores, nlvr2_scores
from multitask_vl.registry import TASKS
from multitask_vl.storage.atomic import write_whole
from multitask_vl.tasks.base import Example, HiddenAnswers, Paths, Scores, SplitConfig, Task, check_ids, key_template
from multitask_vl.tasks.readers.formats import key_of
from multitask_vl.tasks.readers.json_stream import Problems, json_lines, lines, records
from multitask_vl.tasks.readers.submissions import check_lines, ids_of

ImageKey = key_template("identifier", "pair", "img0", "img1")
_OFFICIAL_KEYS, _LISTED_KEYS = ("{pair}-img0", "{pair}-img1"), ("{img0}", "{img1}")
_TRUTH = {"true": True, "false": False}
_LINE = re.compile("(?P<id>[^,]+),(True|False)")


class NLVR2Split(SplitConfig):
    """The files of a split. Which layout each has, its content says, never its name."""

    items: Paths
    """Files, folders or patterns: the official `{train,dev,test1,...}.json` with one object a line (NLVR version 1 as
    well, see `image_keys`), or LXMERT's lists (`train.json`, `valid.json`, `test.json`)."""
    image_keys: Annotated[tuple[ImageKey, ...], Field(min_length=1)] | None = None
    """How the pictures are called in the feature store, left to right. `{pair}` is the identifier without its last part
    (the sentence number). None: `{pair}-img0` and `{pair}-img1`, the official names; `{img0}` and `{img1}` for items
    of a list. NLVR version 1 items show one picture: `['dev-{identifier}-0']`."""


class NLVR2Decoding(DecodingConfig):
    """The first choice wins a tie, so a tie means false."""

    kind: DecodingKind = "choice"
    choices: tuple[str, ...] = ("false", "true")


class NLVR2Config(TaskConfig):
    """Published defaults (VL-Adapter, tables of sections 8.2 and 11.1)."""

    prompt: str = "nlvr: "
    batch_share: float = 20 / 60
    splits: dict[str, NLVR2Split] = {}
    decoding: NLVR2Decoding = NLVR2Decoding()


@TASKS.register("nlvr2")
class NLVR2(Task[NLVR2Config]):
    """NLVR2 (two photographs) and NLVR version 1 (one drawing)."""

    Config = NLVR2Config
    headline = "accuracy"
    submission_name = "nlvr_submit.csv"
    pictures = 2

    def sources(self, split: str) -> list[Path]:
        self.where(split)
        return self.existing({f"splits.{split}.items": self.config.splits[split].items})

    def read(self, split: str) -> Iterator[Example]:
        config = self.config.splits[split]
        problems = self.collected(split)
        labelled = hidden = 0
        for path in self.files(config.items):
            for item, where in records(path, problems):
                listed = "sent" in item
                identifier = problems.field(item, "identifier", str, where)
                sentence = problems.field(item, "sent" if listed else "sentence", str, where)
                truth = _label(item, where, problems) if "label" in item else None
                if identifier is None or sentence is None:
                    continue
                templates = config.image_keys or (_LISTED_KEYS if listed else _OFFICIAL_KEYS)
                if "structured_rep" in item and len(templates) > 1:
                    problems.add(
                        "an item of NLVR version 1 shows one picture", where, "Set image_keys: ['dev-{identifier}-0']"
                    )
                    continue
                labelled, hidden = labelled + (truth is not None), hidden + (truth is None)
                fields = {name: item[name] for name in ("img0", "img1") if isinstance(item.get(name), str)}
                fields |= {"identifier": identifier, "pair": identifier.rpartition("-")[0]}
                keys = [key_of(template, fields, where, problems, "image_keys") for template in templates]
                if None in keys:
                    continue
                yield Example(
                    id=identifier,
                    images=tuple(keys),
                    text=sentence,
                    answers=() if truth is None else (str(truth).lower(),),
                    scores=() if truth is None else (1.0,),
                )
        if labelled and hidden:
            problems.add("some items have labels and some have none", f"{hidden:,} of {labelled + hidden:,}")
        problems.raise_any()

    def score(self, examples: Sequence[Example], predictions: Mapping[str, str], **options: Any) -> Scores:
        texts = self.ordered(examples, predictions)
        if not all(example.answers for example in examples):
            raise HiddenAnswers(self.name)
        found = nlvr2_scores(
            {e.id: _TRUTH.get(text) for e, text in zip(examples, texts, strict=True)},
            {e.id: _TRUTH[e.answers[0]] for e in examples},
        )
        return Scores(
            headline=self.headline,
            metrics={"accuracy": found.accuracy, "consistency": found.consistency},
            per_example=found.per_item,
            version=self.version,
            intervals=_intervals(found),
        )

    @classmethod
    def score_files(cls, references: Path, predictions: Path, **options: Any) -> dict[str, Any]:
        problems, truth = Problems(str(references)), {}
        for item, where in json_lines(references):
            identifier = problems.field(item, "identifier", str, where)
            if identifier in truth:
                problems.add("a second item of the same identifier", f"{where} ({identifier})")
            truth[identifier] = _label(item, where, problems)
        problems.raise_any()
        if not truth:
            raise InputError(f"{references}: holds no examples")
        results = _results(predictions)
        check_ids(truth, results, str(predictions))
        found: NLVR2Scores = nlvr2_scores(results, truth)
        intervals = {name: one.as_json() for name, one in _intervals(found).items()}
        return {
            "overall": found.accuracy,
            "consistency": found.consistency,
            "intervals": {"overall": intervals["accuracy"], "consistency": intervals["consistency"]},
            "per_item": found.per_item,
        }

    def submission(self, predictions: Mapping[str, str], path: Path) -> None:
        unread = [id_ for id_, text in predictions.items() if text not in _TRUTH]
        if unread:
            raise InputError(
                f"tasks.{self.name}: {len(unread):,} predictions are neither 'true' nor 'false' (first: {unread[0]}, "
                f"{predictions[unread[0]]!r}). Use decoding.kind=choice"
            )
        write_whole(path, "".join(f"{id_},{_TRUTH[text]}\n" for id_, text in predictions.items()))

    @classmethod
    def official_ids(cls, questions: Sequence[Path], **options: Any) -> list[int | str]:
        problems = Problems(", ".join(map(str, questions)))
        return ids_of((found for path in questions for found in json_lines(path)), "identifier", problems)

    @classmethod
    def check_submission(cls, submission: Path, ids: Collection[int | str]) -> None:
        check_lines(submission, _LINE, "identifier,True or identifier,False", "identifier", map(str, ids))


def _intervals(found: NLVR2Scores) -> dict[str, Interval]:
    return {
        "accuracy": interval_of_mean(list(found.per_item.values()), "items"),
        "consistency": interval_of_mean(list(found.per_sentence.values()), "sentences"),
    }


def _label(item: dict, where: str, problems: Problems) -> bool | None:
    """The judgement; LXMERT's lists have 1 and 0."""
    label = item.get("label")
    if isinstance(label, int) and not isinstance(label, bool) and label in (0, 1):
        return label == 1
    label = problems.field(item, "label", (str, bool), where)
    truth = label if isinstance(label, bool) else _TRUTH.get(str(label).lower())
    if truth is None and label is not None:
        problems.add("'label' must be True or False", f"{where} has {label!r}")
    return truth


def _results(path: Path) -> dict[str, bool]:
    """A submission file as identifier -> judgement."""
    problems, results = Problems(str(path)), {}
    for line, where in lines(path):
        identifier, _, text = line.strip().rpartition(",")
        if not identifier or text.strip().lower() not in _TRUTH:
            problems.add("a line must read identifier,True or identifier,False", f"{where} has {line!r}")
        elif identifier in results:
            problems.add("a second result for an identifier", f"{where} ({identifier})")
        else:
            results[identifier] = _TRUTH[text.strip().lower()]
    problems.raise_any()
    return results
