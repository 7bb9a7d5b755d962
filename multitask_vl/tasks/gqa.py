"""GQA task: official question files or LXMERT's lists, one correct answer, exact match, official results file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from multitask_vl.config.schema import PositiveInt, TaskConfig
from multitask_vl.metrics.bootstrap import bootstrap_mean_ci
from multitask_vl.metrics.gqa import GQAQuestion, GQAScores, gqa_scores, question_groups
from multitask_vl.registry import TASKS
from multitask_vl.storage.atomic import atomic_write_json
from multitask_vl.tasks.base import Example, LabelsHidden, Paths, Scores, SplitConfig, Task, check_ids, key_template
from multitask_vl.tasks.readers.formats import soft_label
from multitask_vl.tasks.readers.json_stream import ErrorCollector, read_results, stream_json, truncate_repr
from multitask_vl.tasks.readers.submissions import check_results, expected_ids, strip_control_chars

ImageKey = key_template("imageId")


class GQASplit(SplitConfig):
    """Files of a split. The format of each file is detected by its content, never by its name."""

    questions: Paths
    """Files, folders (the ten shards of train_all) or patterns: the official `{train,val,testdev,...}_{balanced,all}_
    questions.json`, or LXMERT's lists (`train.json`, `valid.json`, `testdev.json`, `submit.json`)."""
    image_key: ImageKey = "{imageId}"
    """Template of an image's key in the feature store; `{imageId}` is `img_id` in LXMERT's lists."""


class GQAConfig(TaskConfig):
    """Published defaults (VL-Adapter, table of section 8.2), but a text over its limit is an error.

    The published runs have the prompt `gpa: `, a typing error; set it to reproduce them.
    """

    prompt: str = "gqa: "
    max_input_tokens: PositiveInt | None = 20
    batch_size_ratio: float = 100 / 60
    splits: dict[str, GQASplit] = {}


@TASKS.register("gqa")
class GQA(Task[GQAConfig]):
    """GQA: compositional questions with one correct answer each."""

    Config = GQAConfig
    primary_metric = "accuracy"
    submission_name = "gqa_submit.json"

    def sources(self, split: str) -> list[Path]:
        self.config_path(split)
        return self.resolve_files({f"splits.{split}.questions": self.config.splits[split].questions})

    def read(self, split: str) -> Iterator[Example]:
        config = self.config.splits[split]
        problems = self.new_collector(split)
        answered = hidden = 0
        for path in self.expand_paths(config.questions):
            for id_, item, where in _questions(path, problems):
                image_id = problems.require_field(item, "imageId", str, where)
                text = problems.require_field(item, "question", str, where)
                answer = problems.require_field(item, "answer", str, where) if "answer" in item else None
                if image_id is None or text is None:
                    continue
                answered, hidden = answered + (answer is not None), hidden + (answer is None)
                question = _scoring_fields(item, where, problems)
                yield Example(
                    id=id_,
                    images=(config.image_key.format(imageId=image_id),),
                    text=text,
                    answers=() if answer is None else (answer,),
                    scores=() if answer is None else (1.0,),
                    meta={
                        "types": dict(question.types),
                        "entailed": list(question.entailed),
                        "balanced": question.balanced,
                    },
                )
        if answered and hidden:
            problems.add("some questions have answers and some have none", f"{hidden:,} of {answered + hidden:,}")
        problems.raise_if_any()

    def score(self, examples: Sequence[Example], predictions: Mapping[str, str], **options: Any) -> Scores:
        texts = self.aligned_predictions(examples, predictions)
        if not all(example.answers for example in examples):
            raise LabelsHidden(self.name)
        result = gqa_scores(
            {e.id: text for e, text in zip(examples, texts, strict=True)},
            {
                e.id: GQAQuestion(e.answers[0], e.meta["types"], e.meta["entailed"], e.meta.get("balanced", True))
                for e in examples
            },
        )
        return Scores(
            primary_metric=self.primary_metric,
            metrics={"accuracy": result.accuracy, "consistency": result.consistency},
            per_example=result.per_question,
            groups=result.groups,
            notes=_notes(result),
            version=self.version,
            intervals={"accuracy": bootstrap_mean_ci(list(result.balanced.values()), "questions")},
        )

    def groups(self, meta: Mapping[str, Any]) -> dict[str, str]:
        """Groups of the questions that accuracy is computed on, which are those of the balanced subset."""
        return question_groups(meta["types"]) if meta.get("balanced", True) else {}

    @classmethod
    def score_files(cls, references: Path, predictions: Path, **options: Any) -> dict[str, Any]:
        problems, questions = ErrorCollector(str(references)), {}
        for id_, item, where in _questions(references, problems):
            if problems.require_field(item, "answer", str, where) is not None:
                questions[id_] = _scoring_fields(item, where, problems)
        problems.raise_if_any()
        results = read_results(predictions, "questionId", "prediction", str(predictions))
        check_ids(questions, results, str(predictions))
        scores: GQAScores = gqa_scores(results, questions)
        return {
            "overall": scores.accuracy,
            "intervals": {"overall": bootstrap_mean_ci(list(scores.balanced.values()), "questions").as_json()},
            "consistency": scores.consistency,
            "notes": _notes(scores),
            "groups": scores.groups,
            "per_question": scores.per_question,
        }

    def submission(self, predictions: Mapping[str, str], path: Path) -> None:
        results = [{"questionId": id_, "prediction": strip_control_chars(text)} for id_, text in predictions.items()]
        atomic_write_json(path, results)

    @classmethod
    def submission_ids(cls, questions: Sequence[Path], **options: Any) -> list[int | str]:
        problems = ErrorCollector(", ".join(map(str, questions)))
        items = (({"id": id_}, where) for path in questions for id_, _, where in _questions(path, problems))
        return expected_ids(items, "id", problems)

    @classmethod
    def check_submission(cls, submission: Path, ids: Collection[int | str]) -> None:
        """Check a results file. Ids are text, as in the question files."""
        check_results(submission, "questionId", "prediction", map(str, ids))


def _questions(path: Path, problems: ErrorCollector) -> Iterator[tuple[str, dict, str]]:
    """Id, question and ``file:line`` of each entry of a question file; LXMERT's items get the official field names."""
    for id_, item, where in stream_json(path, split_lists=False):
        if not isinstance(item, dict):
            problems.add(
                "an object {question id: {imageId, question, answer, ...}} or LXMERT's list is expected", where
            )
        elif id_ is not None:
            yield id_, item, where
        elif (question := _from_lxmert(item, where, problems)) is not None:
            yield *question, where


def _from_lxmert(item: dict, where: str, problems: ErrorCollector) -> tuple[str, dict] | None:
    """Id and question of an item of LXMERT's lists, with the official field names."""
    id_ = problems.require_field(item, "question_id", (str, int), where)
    question = {
        "imageId": problems.require_field(item, "img_id", str, where),
        "question": problems.require_field(item, "sent", str, where),
    }
    if id_ is None or None in question.values():
        return None
    if "label" in item and (label := soft_label(item, where, problems)) is not None:
        if list(label.values()) == [1.0]:
            question["answer"] = next(iter(label))
        else:
            problems.add("'label' of GQA must be {correct answer: 1}", f"{where} has {truncate_repr(item['label'])}")
    return str(id_), question


def _scoring_fields(item: dict, where: str, problems: ErrorCollector) -> GQAQuestion:
    """Fields of an official question that scoring needs; types and entailments are optional."""
    types = item.get("types") if isinstance(item.get("types"), dict) else {}
    entailed = item["entailed"] if isinstance(item.get("entailed"), list) else []
    if not all(isinstance(id_, str) for id_ in entailed):
        problems.add("'entailed' must be a list of question ids, as text", f"{where} has {truncate_repr(entailed)}")
    return GQAQuestion(
        answer=item.get("answer", ""),
        types={breakdown: group for breakdown, group in types.items() if isinstance(group, str)},
        entailed=entailed,
        balanced=item.get("isBalanced") is not False,
    )


def _notes(scores: GQAScores) -> dict[str, str]:
    """Differences from the official evaluation: metric -> note."""
    notes = {}
    if scores.consistency is None:
        notes["consistency"] = "not computed: no correctly answered question entails another one of the set"
    elif scores.missing_entailed:
        notes["consistency"] = (
            f"{scores.missing_entailed:,} entailed questions are not in the set and were ignored; the official number "
            "needs all of them (..._all_questions.json)"
        )
    unbalanced = len(scores.per_question) - len(scores.balanced)
    if unbalanced:
        notes["accuracy"] = f"of the {len(scores.balanced):,} balanced questions; {unbalanced:,} others do not count"
    return notes
