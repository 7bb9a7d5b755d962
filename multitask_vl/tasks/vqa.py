"""What is visual question answering here: VQA v2 files, soft-scored answers, the official accuracy and results file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from multitask_vl.config.schema import Positive, Share, TaskConfig
from multitask_vl.errors import InputError
from multitask_vl.metrics.vqa_accuracy import HumanAnswers, vqa_accuracy
from multitask_vl.registry import TASKS
from multitask_vl.tasks.base import Example, Names, Paths, Scores, SplitConfig, Task, check_ids, key_template
from multitask_vl.tasks.files import Problems, items_of, official_id, read_results, walk, write_json
from multitask_vl.tasks.submissions import check_results, ids_of, one_line

ImageKey = key_template("image_id", "subtype")


class VQASplit(SplitConfig):
    """The official files of a split."""

    questions: Paths
    """`..._questions.json`, one or several."""
    annotations: Paths | None = None
    """`..._annotations.json` of the same questions. None: answers are hidden (test, test-dev)."""
    image_key: ImageKey = "COCO_{subtype}_{image_id:012d}"
    """How a picture is called in the feature store."""
    subtype: str | None = None
    """What `{subtype}` stands for, e.g. val2014. None: each questions file's own `data_subtype`."""
    karpathy: Path | None = None
    """Karpathy's `dataset_coco.json`: only questions about the images of its `subset` are taken, so that the published
    splits come from the official train2014 and val2014 files."""
    subset: Names | None = None
    """Which of Karpathy's splits; `train` stands for train and restval. None: the split's own name under `splits:`."""


class VQAConfig(TaskConfig):
    """Published defaults (VL-Adapter, table of section 8.2), but a text over its limit is an error."""

    prompt: str = "vqa: "
    max_input_tokens: Positive | None = 20
    max_target_tokens: Positive | None = 10
    splits: dict[str, VQASplit] = {}
    soft_scores: tuple[Share, ...] = (0.3, 0.6, 0.9, 1.0)
    """Soft score of an answer that 1, 2, 3, ... humans gave; the last holds for more."""
    answer_list: Path | None = None
    """Only these answers are targets (LXMERT's list or its answer-to-index mapping). A question without any keeps the
    target '' with weight 0, as published. None: whatever humans said."""
    draw: Literal["by_score", "most_frequent"] = "by_score"
    """Target of a visit: drawn by soft score (published), or always the answer most humans gave."""
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
        files = self.config.splits[split]
        return self.existing(
            {
                f"splits.{split}.questions": files.questions,
                f"splits.{split}.annotations": files.annotations or (),
                f"splits.{split}.karpathy": [files.karpathy] if files.karpathy else [],
                "answer_list": [self.config.answer_list] if self.config.answer_list else [],
            }
        )

    def read(self, split: str) -> Iterator[Example]:
        config = self.config.splits[split]
        problems = Problems(self.where(split))
        images = None
        if config.karpathy is not None:
            images = _karpathy(self.resolve(config.karpathy), config.subset or (split,), problems)
        questions: dict[str, tuple[Any, str, str]] = {}
        left_out: set[str] = set()
        for path in config.questions:
            for id_, image_id, key, text in self._questions(self.resolve(path), config, problems):
                if id_ in questions or id_ in left_out:
                    problems.add("a second question of the same id", f"{path} (question {id_})")
                if images is not None and image_id not in images:
                    left_out.add(id_)
                else:
                    questions[id_] = (image_id, key, text)
        if config.annotations is None:
            problems.raise_any()
            for id_, (_, key, text) in questions.items():
                yield Example(id_, (key,), text, (), ())
            return
        vocabulary = self._vocabulary()
        for path in config.annotations:
            for id_, image_id, human, where in _annotations(self.resolve(path), problems):
                if id_ in left_out:
                    continue
                if id_ not in questions:
                    problems.add("annotation of an unknown question, or a second one", f"{where} (question {id_})")
                    continue
                asked_of, key, text = questions.pop(id_)
                if image_id != asked_of:
                    problems.add("question and annotation name different images", f"{where} (question {id_})")
                answers, scores = self.soft_targets(human.answers, vocabulary)
                meta = {
                    "answers": list(human.answers),
                    "answer_type": human.answer_type,
                    "question_type": human.question_type,
                }
                yield Example(id_, (key,), text, answers, scores, meta)
        for id_ in questions:
            problems.add("question without annotation", f"question {id_}", "Give the annotations of the same split")
        problems.raise_any()

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

    def reduce(
        self, token_loss: torch.Tensor, valid: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean over all rows, weight 0 included, of weight times the mean over a row's tokens."""
        rows = token_loss.sum(1) / valid.sum(1).clamp(min=1)
        return (weights.to(rows) * rows).sum(), token_loss.new_tensor(float(len(rows)))

    def score(self, examples: Sequence[Example], predictions: Mapping[str, str], **options: Any) -> Scores:
        texts = self.ordered(examples, predictions)
        if any("answers" not in example.meta for example in examples):
            raise InputError(f"tasks.{self.name}: the split hides its answers; send the submission file to the server")
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
        )

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

    def _questions(self, path: Path, config: VQASplit, problems: Problems) -> Iterator[tuple[str, int | str, str, str]]:
        """Id, image id, image key and text of each question of a file."""
        subtype = config.subtype
        if subtype is None and "{subtype" in config.image_key:
            subtype = _subtype_of(path, problems.subject)
        for item, where in items_of(path, "questions", problems):
            id_ = problems.field(item, "question_id", (int, str), where)
            image_id = problems.field(item, "image_id", (int, str), where)
            text = problems.field(item, "question", str, where)
            if None in (id_, image_id, text):
                continue
            try:
                key = config.image_key.format(image_id=image_id, subtype=subtype)
            except ValueError as error:
                problems.add(
                    f"image_id does not fit image_key {config.image_key!r} ({error})", f"{where} ({image_id!r})"
                )
                continue
            yield str(id_), image_id, key, text

    def _vocabulary(self) -> frozenset[str] | None:
        if self.config.answer_list is None:
            return None
        return frozenset(value if key is None else key for key, value, _ in walk(self.resolve(self.config.answer_list)))


def _subtype_of(path: Path, subject: str) -> str:
    """The `data_subtype` of a questions file. Pictures of test-dev2015 are those of test2015, and called so."""
    for key, value, _ in walk(path):
        if key == "data_subtype" and isinstance(value, str):
            return value.replace("test-dev", "test")
    raise InputError(
        f"{subject}.image_key: {{subtype}} is not known, for {path} has no data_subtype. Set {subject}.subtype, e.g. "
        f"train2014, or an image_key without it, e.g. '{{image_id:012d}}'"
    )


def _karpathy(path: Path, wanted: Sequence[str], problems: Problems) -> set[int]:
    """COCO ids of the images in some of Karpathy's splits."""
    names = {*wanted, "restval"} if "train" in wanted else set(wanted)
    images, found = set(), set()
    for item, where in items_of(path, "images", problems):
        id_, subset = problems.field(item, "cocoid", int, where), problems.field(item, "split", str, where)
        found.add(subset)
        if subset in names:
            images.add(id_)
    if not images:
        problems.add(
            "the file has no image of the split", f"{path} has {sorted(map(str, found))}", "Choose with subset"
        )
    return images


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
        types = [item.get("answer_type"), item.get("question_type")]
        yield str(id_), item.get("image_id"), HumanAnswers(answers, *types), where
