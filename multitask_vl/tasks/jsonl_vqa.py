"""Custom VQA data: a JSON list or JSON lines of images, questions and answers; VQA accuracy or exact match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from multitask_vl.config.schema import PositiveInt, Section
from multitask_vl.errors import InputError
from multitask_vl.metrics.bootstrap import bootstrap_mean_ci
from multitask_vl.metrics.vqa_accuracy import HumanAnswers, normalize
from multitask_vl.registry import TASKS
from multitask_vl.tasks.base import Example, LabelsHidden, Names, Scores
from multitask_vl.tasks.readers.formats import answer_texts, optional_text
from multitask_vl.tasks.readers.json_stream import ErrorCollector
from multitask_vl.tasks.readers.jsonl_items import IMAGE_FIELDS, JsonlSplit, first_field, iter_items
from multitask_vl.tasks.readers.vqa_questions import Question, UnanswerablePolicy
from multitask_vl.tasks.vqa import VQA, VQAConfig

NUM_HUMAN_ANSWERS = 10
"""Human answers per question in VQA v2, whose accuracy is defined on them."""


class JsonlQuestionSplit(JsonlSplit):
    """Files of a split of custom questions."""

    unanswerable: UnanswerablePolicy = "keep"
    """Questions without an answer in `answer_list`. `keep`: with the target '' and weight 0. `drop`: not in the split.
    Their number is reported in either case."""


class QuestionFields(Section):
    """Names of the fields of an item. Of several names, the first that the item has is used."""

    image: Names = IMAGE_FIELDS
    """The image's file name or id, or a list of them."""
    question: Names = ("question", "sent")
    """The question."""
    answers: Names = ("answers", "answer", "direct_answers")
    """A text, a number, or a list of those or of `{answer: text}`. If no item has it, the answers are hidden."""
    id: Names = ("id", "question_id", "qid")
    """Text or an integer, unique. If no item has it: the number of the item in the files, from 1."""


class JsonlVQAConfig(VQAConfig):
    """Settings of `vqa` (target sampling, soft scores of ten answers, answer list), without length limits."""

    max_input_tokens: PositiveInt | None = None
    max_target_tokens: PositiveInt | None = None
    splits: dict[str, JsonlQuestionSplit] = {}
    fields: QuestionFields = QuestionFields()
    metric: Literal["auto", "vqa_accuracy", "exact_match"] = "auto"
    """`vqa_accuracy`: the official metric of VQA v2, on ten answers per question. `exact_match`: percentage of
    predictions equal to one of the answers. `auto`: the former if every question of the split has ten answers."""
    match: Literal["normalized", "exact"] = "normalized"
    """For `exact_match`: compare in lower case, without punctuation and articles, as VQA v2 does, or as written."""


@TASKS.register("jsonl_vqa")
class JsonlVQA(VQA):
    """Questions about custom images.

    Ten answers per question get the soft scores of VQA v2. With any other number, the most frequent answers have score
    1 and the others a proportional one, so that several different answers have equal scores.
    """

    Config = JsonlVQAConfig

    def __init__(self, name: str, config: JsonlVQAConfig, data_dir: Path):
        super().__init__(name, config, data_dir)
        self.submission_name = f"{name}_results.json"  # a run may have several tasks of this type

    def sources(self, split: str) -> list[Path]:
        self.config_path(split)
        answers = self.config.answer_list
        return self.resolve_files(
            {f"splits.{split}.items": self.config.splits[split].items, "answer_list": [answers] if answers else []}
        )

    def read(self, split: str) -> Iterator[Example]:
        fields, problems = self.config.fields, self.new_collector(split)
        vocabulary = self._read_answer_list(problems)
        with_id = with_answers = count = 0
        for number, item, keys, where in iter_items(self, split, fields.image, problems):
            id_field, answers_field = (
                next((name for name in names if name in item), None) for names in (fields.id, fields.answers)
            )
            with_id, with_answers = with_id + (id_field is not None), with_answers + (answers_field is not None)
            count += 1
            id_ = number if id_field is None else problems.require_field(item, id_field, (int, str), where)
            question = self._read_question(item, id_, answers_field, where, problems)
            if question is not None:
                examples = self._examples(question, split, vocabulary, problems)
                yield from (replace(example, images=keys) for example in examples)
        for what, some in (("an id", with_id), ("answers", with_answers)):
            if 0 < some < count:
                problems.add(f"some items have {what} and some have none", f"{count - some:,} of {count:,}")
        problems.raise_if_any()

    def _read_question(
        self, item: dict, id_: int | str | None, answers_field: str | None, where: str, problems: ErrorCollector
    ) -> Question | None:
        """Parse the question and the answers of an item; None, and problems, if it is malformed."""
        name = first_field(item, self.config.fields.question, where, problems)
        text = None if name is None else problems.require_field(item, name, str, where)
        answers = None if answers_field is None else answer_texts(item[answers_field], where, problems)
        if text is not None and not text.strip():
            problems.add("a question is blank", where)
        if None in (id_, text) or (answers is None and answers_field is not None):
            return None
        types = [optional_text(item, breakdown) for breakdown in ("answer_type", "question_type")]
        human_answers = None if answers is None else HumanAnswers(answers, *types)
        return Question(str(id_), text.strip(), where, None, human_answers=human_answers)

    def soft_targets(
        self, answers: Sequence[str], vocabulary: frozenset[str] | None = None
    ) -> tuple[tuple[str, ...], tuple[float, ...]]:
        if len(answers) == NUM_HUMAN_ANSWERS:
            return super().soft_targets(answers, vocabulary)
        counts = Counter(answer for answer in answers if answer and (vocabulary is None or answer in vocabulary))
        highest = max(counts.values(), default=1)
        return tuple(answer for answer, _ in counts.most_common()), tuple(n / highest for _, n in counts.most_common())

    def score(self, examples: Sequence[Example], predictions: Mapping[str, str], **options: Any) -> Scores:
        texts = self.aligned_predictions(examples, predictions)
        if any("answers" not in example.meta for example in examples):
            raise LabelsHidden(self.name)
        others = [example.id for example in examples if len(example.meta["answers"]) != NUM_HUMAN_ANSWERS]
        if self.config.metric == "vqa_accuracy" and others:
            raise InputError(
                f"tasks.{self.name}.metric: vqa_accuracy needs {NUM_HUMAN_ANSWERS} answers per question; "
                f"{len(others):,} have another number (first: {others[0]}). Set tasks.{self.name}.metric=exact_match"
            )
        if self.config.metric == "vqa_accuracy" or (self.config.metric == "auto" and not others):
            return super().score(examples, predictions, **options)
        return self._exact_match(examples, texts)

    def _exact_match(self, examples: Sequence[Example], texts: Sequence[str]) -> Scores:
        convert = normalize if self.config.match == "normalized" else str.strip
        correct = {
            example.id: 100.0 * (convert(text) in {convert(answer) for answer in example.meta["answers"]})
            for example, text in zip(examples, texts, strict=True)
        }
        groups: dict[str, dict[str, list[float]]] = {}
        for example in examples:
            for breakdown, group in self.groups(example.meta).items():
                groups.setdefault(breakdown, {}).setdefault(group, []).append(correct[example.id])
        return Scores(
            primary_metric=self.primary_metric,
            metrics={"accuracy": sum(correct.values()) / len(correct)},
            per_example=correct,
            groups={
                breakdown: {group: sum(scores) / len(scores) for group, scores in sorted(by_group.items())}
                for breakdown, by_group in groups.items()
            },
            notes={"accuracy": f"exact match with one of the answers, {self.config.match}"},
            version=self.version,
            intervals={"accuracy": bootstrap_mean_ci(list(correct.values()), "questions")},
        )
