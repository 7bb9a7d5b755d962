"""What are questions of one's own: lines or a list of image, question and answers; VQA accuracy or exact match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from multitask_vl.config.schema import Positive, Section
from multitask_vl.errors import InputError
from multitask_vl.metrics.bootstrap import interval_of_mean
from multitask_vl.metrics.vqa_accuracy import HumanAnswers, normalize
from multitask_vl.registry import TASKS
from multitask_vl.tasks.base import Example, HiddenAnswers, Names, Scores
from multitask_vl.tasks.readers.formats import answer_texts, text_or_none
from multitask_vl.tasks.readers.jsonl_items import IMAGE_FIELDS, OwnSplit, first_of, own_items
from multitask_vl.tasks.readers.vqa_questions import Question, WithoutTarget
from multitask_vl.tasks.vqa import VQA, VQAConfig

TEN = 10
"""Human answers of a question in VQA v2, whose accuracy is defined on them."""


class OwnQuestionSplit(OwnSplit):
    """The files of a split of one's own questions."""

    without_target: WithoutTarget = "keep"
    """A question none of whose answers is in `answer_list` keeps the target '' with weight 0, or is left out of the
    split; how many there are is told in either case."""


class QuestionFields(Section):
    """Under which name an item has what; of several names, the first that the item has."""

    image: Names = IMAGE_FIELDS
    """The picture's file name or id, or a list of them."""
    question: Names = ("question", "sent")
    """The question."""
    answers: Names = ("answers", "answer", "direct_answers")
    """A text, a number, or a list of those or of `{answer: text}`. No item has it: the answers are hidden."""
    id: Names = ("id", "question_id", "qid")
    """Text or a whole number, no two alike. No item has it: its number in the files, from 1."""


class JsonlVQAConfig(VQAConfig):
    """As VQA v2's, without limits of length: `target` policy, soft scores of ten answers and list of answers."""

    max_input_tokens: Positive | None = None
    max_target_tokens: Positive | None = None
    splits: dict[str, OwnQuestionSplit] = {}
    fields: QuestionFields = QuestionFields()
    metric: Literal["auto", "vqa_accuracy", "exact_match"] = "auto"
    """`vqa_accuracy`: the official one of VQA v2, on ten answers a question. `exact_match`: the share of predictions
    equal to one of the answers. `auto`: the former where every question of the split has ten answers."""
    match: Literal["normalized", "exact"] = "normalized"
    """For `exact_match`: compare in lower case, without punctuation and articles, as VQA v2 does, or as written."""


@TASKS.register("jsonl_vqa")
class JsonlVQA(VQA):
    """Questions about one's own pictures.

    Ten answers get VQA v2's soft scores. Of fewer, or more, the most frequent ones have the score 1 and the others in
    proportion, so that each of several different answers is as good as the next.
    """

    Config = JsonlVQAConfig

    def __init__(self, name: str, config: JsonlVQAConfig, data_dir: Path):
        super().__init__(name, config, data_dir)
        self.submission_name = f"{name}_results.json"  # a run may have several tasks of this type

    def sources(self, split: str) -> list[Path]:
        self.where(split)
        answers = self.config.answer_list
        return self.existing(
            {f"splits.{split}.items": self.config.splits[split].items, "answer_list": [answers] if answers else []}
        )

    def read(self, split: str) -> Iterator[Example]:
        fields, problems = self.config.fields, self.collected(split)
        vocabulary = self._vocabulary(problems)
        named = answered = count = 0
        for number, item, keys, where in own_items(self, split, fields.image, problems):
            id_name, answers_name = (_first(item, names) for names in (fields.id, fields.answers))
            named, answered, count = named + (id_name is not None), answered + (answers_name is not None), count + 1
            id_ = number if id_name is None else problems.field(item, id_name, (int, str), where)
            name = first_of(item, fields.question, where, problems)
            text = None if name is None else problems.field(item, name, str, where)
            answers = None if answers_name is None else answer_texts(item[answers_name], where, problems)
            if text is not None and not text.strip():
                problems.add("a question is blank", where)
            if None in (id_, text) or (answers is None and answers_name is not None):
                continue
            types = [text_or_none(item, kind) for kind in ("answer_type", "question_type")]
            human = None if answers is None else HumanAnswers(answers, *types)
            question = Question(str(id_), text.strip(), where, None, human=human)
            yield from (replace(one, images=keys) for one in self._examples(question, split, vocabulary, problems))
        for what, some in (("an id", named), ("answers", answered)):
            if 0 < some < count:
                problems.add(f"some items have {what} and some have none", f"{count - some:,} of {count:,}")
        problems.raise_any()

    def soft_targets(
        self, humans: Sequence[str], vocabulary: frozenset[str] | None = None
    ) -> tuple[tuple[str, ...], tuple[float, ...]]:
        if len(humans) == TEN:
            return super().soft_targets(humans, vocabulary)
        counts = Counter(answer for answer in humans if answer and (vocabulary is None or answer in vocabulary))
        most = max(counts.values(), default=1)
        return tuple(answer for answer, _ in counts.most_common()), tuple(n / most for _, n in counts.most_common())

    def score(self, examples: Sequence[Example], predictions: Mapping[str, str], **options: Any) -> Scores:
        texts = self.ordered(examples, predictions)
        if any("answers" not in example.meta for example in examples):
            raise HiddenAnswers(self.name)
        others = [example.id for example in examples if len(example.meta["answers"]) != TEN]
        if self.config.metric == "vqa_accuracy" and others:
            raise InputError(
                f"tasks.{self.name}.metric: vqa_accuracy needs {TEN} answers a question; {len(others):,} have another "
                f"number (first: {others[0]}). Set tasks.{self.name}.metric=exact_match"
            )
        if self.config.metric == "vqa_accuracy" or (self.config.metric == "auto" and not others):
            return super().score(examples, predictions, **options)
        same = normalize if self.config.match == "normalized" else str.strip
        right = {
            example.id: 100.0 * (same(text) in {same(answer) for answer in example.meta["answers"]})
            for example, text in zip(examples, texts, strict=True)
        }
        groups: dict[str, dict[str, list[float]]] = {}
        for example in examples:
            for kind in ("answer_type", "question_type"):
                if example.meta[kind] is not None:
                    groups.setdefault(kind, {}).setdefault(example.meta[kind], []).append(right[example.id])
        return Scores(
            headline=self.headline,
            metrics={"accuracy": sum(right.values()) / len(right)},
            per_example=right,
            groups={
                kind: {value: sum(found) / len(found) for value, found in sorted(values.items())}
                for kind, values in groups.items()
            },
            notes={"accuracy": f"exact match of one of the answers, {self.config.match}"},
            version=self.version,
            intervals={"accuracy": interval_of_mean(list(right.values()), "questions")},
        )


def _first(item: dict, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in item), None)
