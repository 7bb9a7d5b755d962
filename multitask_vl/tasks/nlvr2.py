"""NLVR2 task: true/false statements about images, JSON lines or LXMERT's lists, accuracy, consistency, official csv."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from multitask_vl.config.schema import DecodingConfig, DecodingMode, TaskConfig
from multitask_vl.errors import InputError
from multitask_vl.metrics.bootstrap import ConfidenceInterval, bootstrap_mean_ci
from multitask_vl.metrics.nlvr2 import NLVR2Scores, nlvr2_scores
from multitask_vl.registry import TASKS
from multitask_vl.storage.atomic import atomic_write
from multitask_vl.tasks.base import Example, LabelsHidden, Paths, Scores, SplitConfig, Task, check_ids, key_template
from multitask_vl.tasks.readers.formats import format_image_key
from multitask_vl.tasks.readers.json_stream import ErrorCollector, read_jsonl, read_lines, read_records
from multitask_vl.tasks.readers.submissions import check_lines, expected_ids

ImageKey = key_template("identifier", "pair", "img0", "img1")
_OFFICIAL_KEYS, _LXMERT_KEYS = ("{pair}-img0", "{pair}-img1"), ("{img0}", "{img1}")
_TRUTH = {"true": True, "false": False}
_LINE = re.compile("(?P<id>[^,]+),(True|False)")


class NLVR2Split(SplitConfig):
    """Files of a split. The format of each file is detected by its content, never by its name."""

    items: Paths
    """Files, folders or patterns: the official `{train,dev,test1,...}.json` with one object per line (NLVR version 1
    also, see `image_keys`), or LXMERT's lists (`train.json`, `valid.json`, `test.json`)."""
    image_keys: Annotated[tuple[ImageKey, ...], Field(min_length=1)] | None = None
    """Templates of the images' keys in the feature store, left to right. `{pair}` is the identifier without its last
    part (the sentence number). None: `{pair}-img0` and `{pair}-img1`, the official names; `{img0}` and `{img1}` for
    items of a list. NLVR version 1 items have one image: `['dev-{identifier}-0']`."""


class NLVR2Decoding(DecodingConfig):
    """Classification between false and true. The first choice wins a tie, so a tie means false."""

    mode: DecodingMode = "classify"
    choices: tuple[str, ...] = ("false", "true")


class NLVR2Config(TaskConfig):
    """Published defaults (VL-Adapter, tables of sections 8.2 and 11.1)."""

    prompt: str = "nlvr: "
    batch_size_ratio: float = 20 / 60
    splits: dict[str, NLVR2Split] = {}
    decoding: NLVR2Decoding = NLVR2Decoding()


@TASKS.register("nlvr2")
class NLVR2(Task[NLVR2Config]):
    """NLVR2 (two photographs) and NLVR version 1 (one drawing)."""

    Config = NLVR2Config
    primary_metric = "accuracy"
    submission_name = "nlvr_submit.csv"
    num_images = 2

    def sources(self, split: str) -> list[Path]:
        self.config_path(split)
        return self.resolve_files({f"splits.{split}.items": self.config.splits[split].items})

    def read(self, split: str) -> Iterator[Example]:
        config = self.config.splits[split]
        problems = self.new_collector(split)
        labeled = unlabeled = 0
        for path in self.expand_paths(config.items):
            for item, where in read_records(path, problems):
                from_lxmert = "sent" in item
                identifier = problems.require_field(item, "identifier", str, where)
                sentence = problems.require_field(item, "sent" if from_lxmert else "sentence", str, where)
                truth = _label(item, where, problems) if "label" in item else None
                if identifier is None or sentence is None:
                    continue
                templates = config.image_keys or (_LXMERT_KEYS if from_lxmert else _OFFICIAL_KEYS)
                if "structured_rep" in item and len(templates) > 1:
                    problems.add(
                        "an item of NLVR version 1 has one image", where, "Set image_keys: ['dev-{identifier}-0']"
                    )
                    continue
                labeled, unlabeled = labeled + (truth is not None), unlabeled + (truth is None)
                fields = {name: item[name] for name in ("img0", "img1") if isinstance(item.get(name), str)}
                fields |= {"identifier": identifier, "pair": identifier.rpartition("-")[0]}
                keys = [format_image_key(template, fields, where, problems, "image_keys") for template in templates]
                if None in keys:
                    continue
                yield Example(
                    id=identifier,
                    images=tuple(keys),
                    text=sentence,
                    answers=() if truth is None else (str(truth).lower(),),
                    scores=() if truth is None else (1.0,),
                )
        if labeled and unlabeled:
            problems.add("some items have labels and some have none", f"{unlabeled:,} of {labeled + unlabeled:,}")
        problems.raise_if_any()

    def score(self, examples: Sequence[Example], predictions: Mapping[str, str], **options: Any) -> Scores:
        texts = self.aligned_predictions(examples, predictions)
        if not all(example.answers for example in examples):
            raise LabelsHidden(self.name)
        result = nlvr2_scores(
            {e.id: _TRUTH.get(text) for e, text in zip(examples, texts, strict=True)},
            {e.id: _TRUTH[e.answers[0]] for e in examples},
        )
        return Scores(
            primary_metric=self.primary_metric,
            metrics={"accuracy": result.accuracy, "consistency": result.consistency},
            per_example=result.per_item,
            version=self.version,
            intervals=_intervals(result),
        )

    @classmethod
    def score_files(cls, references: Path, predictions: Path, **options: Any) -> dict[str, Any]:
        problems, truth = ErrorCollector(str(references)), {}
        for item, where in read_jsonl(references):
            identifier = problems.require_field(item, "identifier", str, where)
            if identifier in truth:
                problems.add("a second item with the same identifier", f"{where} ({identifier})")
            truth[identifier] = _label(item, where, problems)
        problems.raise_if_any()
        if not truth:
            raise InputError(f"{references}: contains no examples")
        results = _read_submission(predictions)
        check_ids(truth, results, str(predictions))
        scores: NLVR2Scores = nlvr2_scores(results, truth)
        intervals = {name: interval.as_json() for name, interval in _intervals(scores).items()}
        return {
            "overall": scores.accuracy,
            "consistency": scores.consistency,
            "intervals": {"overall": intervals["accuracy"], "consistency": intervals["consistency"]},
            "per_item": scores.per_item,
        }

    def submission(self, predictions: Mapping[str, str], path: Path) -> None:
        invalid = [id_ for id_, text in predictions.items() if text not in _TRUTH]
        if invalid:
            raise InputError(
                f"tasks.{self.name}: {len(invalid):,} predictions are neither 'true' nor 'false' (first: {invalid[0]}, "
                f"{predictions[invalid[0]]!r}). Use decoding.mode=classify"
            )
        atomic_write(path, "".join(f"{id_},{_TRUTH[text]}\n" for id_, text in predictions.items()))

    @classmethod
    def submission_ids(cls, questions: Sequence[Path], **options: Any) -> list[int | str]:
        problems = ErrorCollector(", ".join(map(str, questions)))
        return expected_ids((item for path in questions for item in read_jsonl(path)), "identifier", problems)

    @classmethod
    def check_submission(cls, submission: Path, ids: Collection[int | str]) -> None:
        check_lines(submission, _LINE, "identifier,True or identifier,False", "identifier", map(str, ids))


def _intervals(scores: NLVR2Scores) -> dict[str, ConfidenceInterval]:
    return {
        "accuracy": bootstrap_mean_ci(list(scores.per_item.values()), "items"),
        "consistency": bootstrap_mean_ci(list(scores.per_sentence.values()), "sentences"),
    }


def _label(item: dict, where: str, problems: ErrorCollector) -> bool | None:
    """Label of an item; LXMERT's lists have 1 and 0."""
    label = item.get("label")
    if isinstance(label, int) and not isinstance(label, bool) and label in (0, 1):
        return label == 1
    label = problems.require_field(item, "label", (str, bool), where)
    truth = label if isinstance(label, bool) else _TRUTH.get(str(label).lower())
    if truth is None and label is not None:
        problems.add("'label' must be True or False", f"{where} has {label!r}")
    return truth


def _read_submission(path: Path) -> dict[str, bool]:
    """Read a submission file as identifier -> predicted label."""
    problems, results = ErrorCollector(str(path)), {}
    for line, where in read_lines(path):
        identifier, _, text = line.strip().rpartition(",")
        if not identifier or text.strip().lower() not in _TRUTH:
            problems.add("a line must read identifier,True or identifier,False", f"{where} has {line!r}")
        elif identifier in results:
            problems.add("a second result for an identifier", f"{where} ({identifier})")
        else:
            results[identifier] = _TRUTH[text.strip().lower()]
    problems.raise_if_any()
    return results
