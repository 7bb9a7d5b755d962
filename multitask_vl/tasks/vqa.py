"""What is visual question answering here: VQA v2 in every layout, soft-scored answers, official accuracy, results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from multitask_vl.config.schema import Positive, Share, TaskConfig
from multitask_vl.metrics.bootstrap import interval_of_mean
from multitask_vl.metrics.vqa_accuracy import HumanAnswers, vqa_accuracy
from multitask_vl.registry import TASKS
from multitask_vl.tasks.base import Example, HiddenAnswers, Scores, Task, check_ids
from multitask_vl.tasks.readers.formats import text_or_none
from multitask_vl.tasks.readers.json_stream import (
    Problems,
    items_of,
    official_id,
    read_results,
    short,
    walk,
    write_json,
)
from multitask_vl.tasks.readers.submissions import check_results, ids_of, one_line
from multitask_vl.tasks.readers.vqa_questions import Question, VQASplit, read_questions


class VQAConfig(TaskConfig):
    """Published defaults (VL-Adapter, table of section 8.2), but a text over its limit is an error."""

    prompt: str = "vqa: "
    max_input_tokens: Positive | None = 20
    max_target_tokens: Positive | None = 10
    splits: dict[str, VQASplit] = {}
    soft_scores: tuple[Share, ...] = (0.3, 0.6, 0.9, 1.0)
    """Soft score of an answer that 1, 2, 3, ... humans gave; the last holds for more."""
    answer_list: Path | None = None
    """Only these answers are targets (LXMERT's list or its answer-to-index mapping). None: whatever humans said."""
    draw: Literal["by_score", "most_frequent", "all"] = "by_score"
    """Target of a visit: one answer drawn by soft score (published); always the answer most humans gave; or `all`, the
    expectation of `by_score`: the sum over answers of share x loss, the share being score / sum of scores; with
    `weight_by_score`, of share x score x loss. `all` puts a row into the batch for every answer. Ten steps of
    `soft_scores` (0.1 to 1.0) without weights give each of the ten raw answers the same share."""
    weight_by_score: bool = True
    """Weigh a target's loss by its soft score (published)."""


@TASKS.register("vqa")
class VQA(Task[VQAConfig]):
    """VQA v2. An answer's soft score counts how many humans wrote exactly that string (outer blanks aside)."""

    Config = VQAConfig
    headline = "accuracy"
    submission_name = "vqa_submit.json"

    def sources(self, split: str) -> list[Path]:
        self.where(split)
        files, answers = self.config.splits[split], self.config.answer_list
        image_data = files.visual_genome.image_data
        return self.existing(
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
        problems = self.collected(split)
        vocabulary = self._vocabulary(problems)
        asked: dict[str, Question] = {}
        left_out, done = set(), set()
        answered, hidden, listed = 0, 0, False
        for question in read_questions(self, split, problems, left_out):
            if not config.annotations or question.genome:
                known = question.label is not None or question.human is not None
                answered, hidden = answered + known, hidden + (not known)
                yield from self._examples(question, split, vocabulary, problems)
                continue
            if question.id in asked or question.id in left_out:
                problems.add("a second question of the same id", f"{question.where} (question {question.id})")
            asked[question.id] = question
            listed |= question.listed
        if answered and hidden:
            problems.add("some questions have answers and some have none", f"{hidden:,} of {answered + hidden:,}")
        for path in self.files(config.annotations or ()):
            for id_, image_id, human, where in _annotations(path, problems):
                question = asked.pop(id_, None)
                if question is None:
                    if id_ in done or not (listed or id_ in left_out):
                        problems.add("annotation of an unknown question, or a second one", f"{where} (question {id_})")
                    continue
                if question.image_id not in (None, image_id):
                    problems.add("question and annotation name different images", f"{where} (question {id_})")
                done.add(id_)
                question.human = human
                yield from self._examples(question, split, vocabulary, problems)
        for id_ in asked:
            problems.add("question without annotation", f"question {id_}", "Give the annotations of the same split")
        problems.raise_any()

    def _examples(
        self, question: Question, split: str, vocabulary: frozenset[str] | None, problems: Problems
    ) -> Iterator[Example]:
        """The example of a question, or none where the configuration leaves it out."""
        human, label = question.human, question.label
        if label is None:
            answers, scores = self.soft_targets(human.answers if human else (), vocabulary)
        else:
            label = {one: score for one, score in label.items() if one and (vocabulary is None or one in vocabulary)}
            answers, scores = tuple(label), tuple(label.values())
        meta = {}
        if human is not None:
            meta = {
                "answers": list(human.answers),
                "answer_type": human.answer_type,
                "question_type": human.question_type,
            }
        if not any(scores) and (human is not None or question.label is not None):
            left_out = self.config.splits[split].without_target == "leave_out"
            problems.remark(f"questions without a target, {'left out' if left_out else 'kept with weight 0'}")
            if left_out:
                return
        yield Example(question.id, (question.key,), question.text, answers, scores, meta)

    def soft_targets(
        self, humans: Sequence[str], vocabulary: frozenset[str] | None = None
    ) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Answers and their soft scores, the most frequent first; blank answers are no targets."""
        counts = Counter(answer.strip() for answer in humans)
        table = self.config.soft_scores
        kept = [
            (answer, table[min(count, len(table)) - 1])
            for answer, count in counts.most_common()
            if answer and (vocabulary is None or answer in vocabulary)
        ]
        return tuple(answer for answer, _ in kept), tuple(score for _, score in kept)

    def target(self, answers: Sequence[str], scores: Sequence[float], rng: np.random.Generator) -> tuple[str, float]:
        if self.config.draw == "most_frequent":
            answers, scores = answers[:1], scores[:1]
        text, weight = super().target(answers, scores, rng)
        return text, weight if self.config.weight_by_score else float(weight > 0)

    def targets(
        self, answers: Sequence[str], scores: Sequence[float], rng: np.random.Generator
    ) -> list[tuple[str, float, float]]:
        total = float(sum(scores))
        if self.config.draw != "all" or total <= 0:
            return super().targets(answers, scores, rng)
        return [
            (answer, float(score) if self.config.weight_by_score else 1.0, float(score) / total)
            for answer, score in zip(answers, scores, strict=True)
            if score > 0
        ]

    def reduce(
        self,
        token_loss: torch.Tensor,
        valid: torch.Tensor,
        weights: torch.Tensor,
        shares: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean over all examples, weight 0 included, of weight times the mean over a row's tokens."""
        rows = token_loss.sum(1) / valid.sum(1).clamp(min=1)
        shares = torch.ones_like(rows) if shares is None else shares.to(rows)
        return (weights.to(rows) * shares * rows).sum(), shares.sum()

    def score(self, examples: Sequence[Example], predictions: Mapping[str, str], **options: Any) -> Scores:
        texts = self.ordered(examples, predictions)
        if any("answers" not in example.meta for example in examples):
            raise HiddenAnswers(self.name)
        humans = {
            e.id: HumanAnswers(e.meta["answers"], e.meta["answer_type"], e.meta["question_type"]) for e in examples
        }
        found = vqa_accuracy({e.id: text for e, text in zip(examples, texts, strict=True)}, humans)
        soft = [
            dict(zip(e.answers, e.scores, strict=True)).get(text, 0.0) for e, text in zip(examples, texts, strict=True)
        ]
        return Scores(
            headline=self.headline,
            metrics={"accuracy": found.overall, "label_score": 100 * sum(soft) / len(soft)},
            per_example=found.per_question,
            groups={
                "answer_type": found.per_answer_type,
                "question_type": found.per_question_type,
                "question_group": found.per_group,
                "question_group_macro": found.per_group_macro,
            },
            notes={"label_score": "mean soft score of the target that equals the prediction; no normalisation"},
            version=self.version,
            intervals={"accuracy": interval_of_mean(list(found.per_question.values()), "questions")},
        )

    def kinds(self, meta: Mapping[str, Any]) -> dict[str, str]:
        return {name: meta[name] for name in ("answer_type", "question_type") if meta.get(name) is not None}

    @classmethod
    def score_files(cls, references: Path, predictions: Path, **options: Any) -> dict[str, Any]:
        problems, humans = Problems(str(references)), {}
        for id_, _, human, where in _annotations(references, problems):
            if id_ in humans:
                problems.add("a second annotation of a question", f"{where} (question {id_})")
            humans[id_] = human
        problems.raise_any()
        results = read_results(predictions, "question_id", "answer", str(predictions))
        check_ids(humans, results, str(predictions))
        found = vqa_accuracy(results, humans)
        return {
            "overall": found.overall,
            "intervals": {"overall": interval_of_mean(list(found.per_question.values()), "questions").as_json()},
            "perAnswerType": found.per_answer_type,
            "perQuestionType": found.per_question_type,
            "per_group": found.per_group,
            "per_group_macro": found.per_group_macro,
            "per_question": found.per_question,
        }

    def submission(self, predictions: Mapping[str, str], path: Path) -> None:
        results = [{"question_id": official_id(id_), "answer": one_line(text)} for id_, text in predictions.items()]
        write_json(path, results)

    @classmethod
    def official_ids(cls, questions: Sequence[Path], **options: Any) -> list[int | str]:
        problems = Problems(", ".join(map(str, questions)))
        items = (found for path in questions for found in items_of(path, "questions", problems))
        return ids_of(items, "question_id", problems)

    @classmethod
    def check_submission(cls, submission: Path, ids: Collection[int | str]) -> None:
        check_results(submission, "question_id", "answer", ids)

    def _vocabulary(self, problems: Problems) -> frozenset[str] | None:
        if self.config.answer_list is None:
            return None
        answers = set()
        for key, value, where in walk(self.resolve(self.config.answer_list)):
            answer = value if key is None else key
            if isinstance(answer, str):
                answers.add(answer)
            else:
                problems.add(
                    "answer_list must be a list of answers, or {answer: number}", f"{where} has {short(answer)}"
                )
        return frozenset(answers)


def _annotations(path: Path, problems: Problems) -> Iterator[tuple[str, int | str, HumanAnswers, str]]:
    """Question id, image id, human answers and place of each annotation of a file."""
    for item, where in items_of(path, "annotations", problems):
        id_ = problems.field(item, "question_id", (int, str), where)
        given = problems.field(item, "answers", list, where)
        if id_ is None or given is None:
            continue
        answers = [one.get("answer") if isinstance(one, dict) else None for one in given]
        if not answers or not all(isinstance(answer, str) for answer in answers):
            problems.add("'answers' must be a list of {answer: text}, not empty", f"{where} (question {id_})")
            continue
        types = [text_or_none(item, name) for name in ("answer_type", "question_type")]
        yield str(id_), item.get("image_id"), HumanAnswers(answers, *types), where
