"""VQA v2 task: every annotation format, soft-scored answers, official accuracy and results file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from multitask_vl.config.schema import PositiveInt, TaskConfig, UnitInterval
from multitask_vl.metrics.bootstrap import bootstrap_mean_ci
from multitask_vl.metrics.vqa_accuracy import HumanAnswers, vqa_accuracy
from multitask_vl.registry import TASKS
from multitask_vl.storage.atomic import atomic_write_json
from multitask_vl.tasks.base import Example, LabelsHidden, Scores, Target, Task, check_ids
from multitask_vl.tasks.readers.formats import optional_text, read_answers
from multitask_vl.tasks.readers.json_stream import ErrorCollector, native_id, read_results, stream_list
from multitask_vl.tasks.readers.submissions import check_results, expected_ids, strip_control_chars
from multitask_vl.tasks.readers.vqa_questions import Question, VQASplit, read_questions


class VQAConfig(TaskConfig):
    """Published defaults (VL-Adapter, table of section 8.2), but a text over its limit is an error."""

    prompt: str = "vqa: "
    max_input_tokens: PositiveInt | None = 20
    max_target_tokens: PositiveInt | None = 10
    splits: dict[str, VQASplit] = {}
    soft_scores: tuple[UnitInterval, ...] = (0.3, 0.6, 0.9, 1.0)
    """Soft score of an answer that 1, 2, 3, ... humans gave; the last one applies to higher counts."""
    answer_list: Path | None = None
    """Only these answers are targets (LXMERT's list or its answer-to-index mapping). None: all human answers."""
    target_sampling: Literal["by_score", "most_frequent", "all"] = "by_score"
    """`by_score`: each visit samples one answer by soft score (published). `most_frequent`: always the answer that most
    humans gave. `all`: the expectation of `by_score`, which is the sum over answers of fraction x loss with fraction =
    score / sum of scores; with `weight_by_score`, of fraction x score x loss. `all` puts one row per answer into the
    batch. Ten steps of `soft_scores` (0.1 to 1.0) without weights give each of the ten raw answers the same
    fraction."""
    weight_by_score: bool = True
    """Multiply a target's loss by its soft score (published)."""


@TASKS.register("vqa")
class VQA(Task[VQAConfig]):
    """VQA v2. An answer's soft score depends on how many humans gave exactly that string, surrounding spaces aside."""

    Config = VQAConfig
    primary_metric = "accuracy"
    submission_name = "vqa_submit.json"

    def sources(self, split: str) -> list[Path]:
        self.config_path(split)
        files, answers = self.config.splits[split], self.config.answer_list
        image_data = files.visual_genome.image_data
        return self.resolve_files(
            {
                f"splits.{split}.questions": files.questions,
                f"splits.{split}.annotations": files.annotations or (),
                f"splits.{split}.karpathy": [files.karpathy] if files.karpathy else [],
                f"splits.{split}.visual_genome.image_data": [image_data] if image_data else [],
                "answer_list": [answers] if answers else [],
            }
        )

    def read(self, split: str) -> Iterator[Example]:
        config = self.config.splits[split]
        problems = self.new_collector(split)
        vocabulary = self._read_answer_list(problems)
        unannotated: dict[str, Question] = {}
        dropped, done = set(), set()
        answered, hidden, from_list = 0, 0, False
        for question in read_questions(self, split, problems, dropped):
            if not config.annotations or question.from_visual_genome:
                known = question.label is not None or question.human_answers is not None
                answered, hidden = answered + known, hidden + (not known)
                yield from self._examples(question, split, vocabulary, problems)
                continue
            if question.id in unannotated or question.id in dropped:
                problems.add("a second question with the same id", f"{question.where} (question {question.id})")
            unannotated[question.id] = question
            from_list |= question.from_list
        if answered and hidden:
            problems.add("some questions have answers and some have none", f"{hidden:,} of {answered + hidden:,}")
        for path in self.expand_paths(config.annotations or ()):
            for id_, image_id, human_answers, where in _annotations(path, problems):
                question = unannotated.pop(id_, None)
                if question is None:
                    if id_ in done or not (from_list or id_ in dropped):
                        problems.add("annotation of an unknown question, or a second one", f"{where} (question {id_})")
                    continue
                if question.image_id not in (None, image_id):
                    problems.add("question and annotation name different images", f"{where} (question {id_})")
                done.add(id_)
                question.human_answers = human_answers
                yield from self._examples(question, split, vocabulary, problems)
        for id_ in unannotated:
            problems.add("question without annotation", f"question {id_}", "Give the annotations of the same split")
        problems.raise_if_any()

    def _examples(
        self, question: Question, split: str, vocabulary: frozenset[str] | None, problems: ErrorCollector
    ) -> Iterator[Example]:
        """Yield the example of a question, or none if the configuration drops it."""
        human, label = question.human_answers, question.label
        if label is None:
            answers, scores = self.soft_targets(human.answers if human else (), vocabulary)
        else:
            label = {
                answer: score
                for answer, score in label.items()
                if answer and (vocabulary is None or answer in vocabulary)
            }
            answers, scores = tuple(label), tuple(label.values())
        meta = {}
        if human is not None:
            meta = {
                "answers": list(human.answers),
                "answer_type": human.answer_type,
                "question_type": human.question_type,
            }
        if not any(scores) and (human is not None or question.label is not None):
            drop = self.config.splits[split].unanswerable == "drop"
            problems.warn(f"questions without a target, {'dropped' if drop else 'kept with weight 0'}")
            if drop:
                return
        yield Example(question.id, (question.key,), question.text, answers, scores, meta)

    def soft_targets(
        self, answers: Sequence[str], vocabulary: frozenset[str] | None = None
    ) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Distinct human answers and their soft scores, the most frequent first; blank answers are excluded."""
        counts = Counter(answer.strip() for answer in answers)
        table = self.config.soft_scores
        scored = [
            (answer, table[min(count, len(table)) - 1])
            for answer, count in counts.most_common()
            if answer and (vocabulary is None or answer in vocabulary)
        ]
        return tuple(answer for answer, _ in scored), tuple(score for _, score in scored)

    def sample_target(self, answers: Sequence[str], scores: Sequence[float], rng: np.random.Generator) -> Target:
        if self.config.target_sampling == "most_frequent":
            answers, scores = answers[:1], scores[:1]
        target = super().sample_target(answers, scores, rng)
        return target if self.config.weight_by_score else target._replace(weight=float(target.weight > 0))

    def targets(self, answers: Sequence[str], scores: Sequence[float], rng: np.random.Generator) -> list[Target]:
        total = float(sum(scores))
        if self.config.target_sampling != "all" or total <= 0:
            return super().targets(answers, scores, rng)
        return [
            Target(answer, float(score) if self.config.weight_by_score else 1.0, float(score) / total)
            for answer, score in zip(answers, scores, strict=True)
            if score > 0
        ]

    def reduce(
        self,
        token_loss: torch.Tensor,
        valid: torch.Tensor,
        weights: torch.Tensor,
        target_fraction: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean over all examples, weight 0 included, of weight times the mean over a row's tokens.

        Args:
            target_fraction: fraction of its example that each row represents [B]. None: all 1.
        """
        rows = token_loss.sum(1) / valid.sum(1).clamp(min=1)
        fractions = torch.ones_like(rows) if target_fraction is None else target_fraction.to(rows)
        return (weights.to(rows) * fractions * rows).sum(), fractions.sum()

    def score(self, examples: Sequence[Example], predictions: Mapping[str, str], **options: Any) -> Scores:
        texts = self.aligned_predictions(examples, predictions)
        if any("answers" not in example.meta for example in examples):
            raise LabelsHidden(self.name)
        humans = {
            e.id: HumanAnswers(e.meta["answers"], e.meta["answer_type"], e.meta["question_type"]) for e in examples
        }
        result = vqa_accuracy({e.id: text for e, text in zip(examples, texts, strict=True)}, humans)
        soft = [
            dict(zip(e.answers, e.scores, strict=True)).get(text, 0.0) for e, text in zip(examples, texts, strict=True)
        ]
        return Scores(
            primary_metric=self.primary_metric,
            metrics={"accuracy": result.overall, "label_score": 100 * sum(soft) / len(soft)},
            per_example=result.per_question,
            groups={
                "answer_type": result.per_answer_type,
                "question_type": result.per_question_type,
                "question_group": result.per_group,
                "question_group_macro": result.per_group_macro,
            },
            notes={"label_score": "mean soft score of the target equal to the prediction; without normalization"},
            version=self.version,
            intervals={"accuracy": bootstrap_mean_ci(list(result.per_question.values()), "questions")},
        )

    def groups(self, meta: Mapping[str, Any]) -> dict[str, str]:
        return {name: meta[name] for name in ("answer_type", "question_type") if meta.get(name) is not None}

    @classmethod
    def score_files(cls, references: Path, predictions: Path, **options: Any) -> dict[str, Any]:
        problems, humans = ErrorCollector(str(references)), {}
        for id_, _, human_answers, where in _annotations(references, problems):
            if id_ in humans:
                problems.add("a second annotation of a question", f"{where} (question {id_})")
            humans[id_] = human_answers
        problems.raise_if_any()
        results = read_results(predictions, "question_id", "answer", str(predictions))
        check_ids(humans, results, str(predictions))
        result = vqa_accuracy(results, humans)
        return {
            "overall": result.overall,
            "intervals": {"overall": bootstrap_mean_ci(list(result.per_question.values()), "questions").as_json()},
            "perAnswerType": result.per_answer_type,
            "perQuestionType": result.per_question_type,
            "per_group": result.per_group,
            "per_group_macro": result.per_group_macro,
            "per_question": result.per_question,
        }

    def submission(self, predictions: Mapping[str, str], path: Path) -> None:
        results = [
            {"question_id": native_id(id_), "answer": strip_control_chars(text)} for id_, text in predictions.items()
        ]
        atomic_write_json(path, results)

    @classmethod
    def submission_ids(cls, questions: Sequence[Path], **options: Any) -> list[int | str]:
        problems = ErrorCollector(", ".join(map(str, questions)))
        items = (item for path in questions for item in stream_list(path, "questions", problems))
        return expected_ids(items, "question_id", problems)

    @classmethod
    def check_submission(cls, submission: Path, ids: Collection[int | str]) -> None:
        check_results(submission, "question_id", "answer", ids)

    def _read_answer_list(self, problems: ErrorCollector) -> frozenset[str] | None:
        if self.config.answer_list is None:
            return None
        return frozenset(read_answers(self.resolve(self.config.answer_list), "answer_list", problems))


def _annotations(path: Path, problems: ErrorCollector) -> Iterator[tuple[str, int | str, HumanAnswers, str]]:
    """Question id, image id, human answers and ``file:line`` of each annotation of a file."""
    for item, where in stream_list(path, "annotations", problems):
        id_ = problems.require_field(item, "question_id", (int, str), where)
        entries = problems.require_field(item, "answers", list, where)
        if id_ is None or entries is None:
            continue
        answers = [entry.get("answer") if isinstance(entry, dict) else None for entry in entries]
        if not answers or not all(isinstance(answer, str) for answer in answers):
            problems.add("'answers' must be a list of {answer: text}, not empty", f"{where} (question {id_})")
            continue
        types = [optional_text(item, name) for name in ("answer_type", "question_type")]
        yield str(id_), item.get("image_id"), HumanAnswers(answers, *types), where
