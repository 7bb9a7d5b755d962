"""What is GQA here: official question files or LXMERT's lists, one right answer, exact match, official results."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from multitask_vl.config.schema import Positive, TaskConfig
from multitask_vl.metrics.bootstrap import interval_of_mean
from multitask_vl.metrics.gqa import GQAQuestion, GQAScores, gqa_scores, kinds_of
from multitask_vl.registry import TASKS
from multitask_vl.tasks.base import Example, HiddenAnswers, Paths, Scores, SplitConfig, Task, check_ids, key_template
from multitask_vl.tasks.readers.formats import soft_label
from multitask_vl.tasks.readers.json_stream import Problems, read_results, short, walk, write_json
from multitask_vl.tasks.readers.submissions import check_results, ids_of, one_line

ImageKey = key_template("imageId")


class GQASplit(SplitConfig):
    """The files of a split. Which layout each has, its content says, never its name."""

    questions: Paths
    """Files, folders (the ten shards of train_all) or patterns: the official `{train,val,testdev,...}_{balanced,all}_
    questions.json`, or LXMERT's lists (`train.json`, `valid.json`, `testdev.json`, `submit.json`)."""
    image_key: ImageKey = "{imageId}"
    """How a picture is called in the feature store; `{imageId}` is `img_id` in LXMERT's lists."""


class GQAConfig(TaskConfig):
    """Published defaults (VL-Adapter, table of section 8.2), but a text over its limit is an error.

    The published runs have the prompt `gpa: `, a slip; set it to repeat them.
    """

    prompt: str = "gqa: "
    max_input_tokens: Positive | None = 20
    batch_share: float = 100 / 60
    splits: dict[str, GQASplit] = {}


@TASKS.register("gqa")
class GQA(Task[GQAConfig]):
    """GQA: compositional questions with one right answer each."""

    Config = GQAConfig
    headline = "accuracy"
    submission_name = "gqa_submit.json"

    def sources(self, split: str) -> list[Path]:
        self.where(split)
        return self.existing({f"splits.{split}.questions": self.config.splits[split].questions})

    def read(self, split: str) -> Iterator[Example]:
        config = self.config.splits[split]
        problems = self.collected(split)
        answered = hidden = 0
        for path in self.files(config.questions):
            for id_, item, where in _questions(path, problems):
                image_id = problems.field(item, "imageId", str, where)
                text = problems.field(item, "question", str, where)
                answer = problems.field(item, "answer", str, where) if "answer" in item else None
                if image_id is None or text is None:
                    continue
                answered, hidden = answered + (answer is not None), hidden + (answer is None)
                question = _scored(item, where, problems)
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
        problems.raise_any()

    def score(self, examples: Sequence[Example], predictions: Mapping[str, str], **options: Any) -> Scores:
        texts = self.ordered(examples, predictions)
        if not all(example.answers for example in examples):
            raise HiddenAnswers(self.name)
        found = gqa_scores(
            {e.id: text for e, text in zip(examples, texts, strict=True)},
            {
                e.id: GQAQuestion(e.answers[0], e.meta["types"], e.meta["entailed"], e.meta.get("balanced", True))
                for e in examples
            },
        )
        return Scores(
            headline=self.headline,
            metrics={"accuracy": found.accuracy, "consistency": found.consistency},
            per_example=found.per_question,
            groups=found.groups,
            notes=_notes(found),
            version=self.version,
            intervals={"accuracy": interval_of_mean(list(found.counted.values()), "questions")},
        )

    def kinds(self, meta: Mapping[str, Any]) -> dict[str, str]:
        """Of the questions that count: those of the balanced part."""
        return kinds_of(meta["types"]) if meta.get("balanced", True) else {}

    @classmethod
    def score_files(cls, references: Path, predictions: Path, **options: Any) -> dict[str, Any]:
        problems, questions = Problems(str(references)), {}
        for id_, item, where in _questions(references, problems):
            if problems.field(item, "answer", str, where) is not None:
                questions[id_] = _scored(item, where, problems)
        problems.raise_any()
        results = read_results(predictions, "questionId", "prediction", str(predictions))
        check_ids(questions, results, str(predictions))
        found: GQAScores = gqa_scores(results, questions)
        return {
            "overall": found.accuracy,
            "intervals": {"overall": interval_of_mean(list(found.counted.values()), "questions").as_json()},
            "consistency": found.consistency,
            "notes": _notes(found),
            "groups": found.groups,
            "per_question": found.per_question,
        }

    def submission(self, predictions: Mapping[str, str], path: Path) -> None:
        write_json(path, [{"questionId": id_, "prediction": one_line(text)} for id_, text in predictions.items()])

    @classmethod
    def official_ids(cls, questions: Sequence[Path], **options: Any) -> list[int | str]:
        problems = Problems(", ".join(map(str, questions)))
        items = (({"id": id_}, where) for path in questions for id_, _, where in _questions(path, problems))
        return ids_of(items, "id", problems)

    @classmethod
    def check_submission(cls, submission: Path, ids: Collection[int | str]) -> None:
        """Ids are text, as they are in the question files."""
        check_results(submission, "questionId", "prediction", map(str, ids))


def _questions(path: Path, problems: Problems) -> Iterator[tuple[str, dict, str]]:
    """Id, question and place of each member of a question file; LXMERT's items with the official names."""
    for id_, item, where in walk(path, whole=True):
        if not isinstance(item, dict):
            problems.add(
                "an object {question id: {imageId, question, answer, ...}} or LXMERT's list is expected", where
            )
        elif id_ is not None:
            yield id_, item, where
        elif (found := _official(item, where, problems)) is not None:
            yield *found, where


def _official(item: dict, where: str, problems: Problems) -> tuple[str, dict] | None:
    """Id and question of an item of LXMERT's lists, with the names that the official files have."""
    id_ = problems.field(item, "question_id", (str, int), where)
    question = {
        "imageId": problems.field(item, "img_id", str, where),
        "question": problems.field(item, "sent", str, where),
    }
    if id_ is None or None in question.values():
        return None
    if "label" in item and (label := soft_label(item, where, problems)) is not None:
        if list(label.values()) == [1.0]:
            question["answer"] = next(iter(label))
        else:
            problems.add("'label' of GQA must be {the right answer: 1}", f"{where} has {short(item['label'])}")
    return str(id_), question


def _scored(item: dict, where: str, problems: Problems) -> GQAQuestion:
    """What scoring a question of the official file needs; breakdowns and entailments are kept where they are given."""
    types = item.get("types")
    kinds = {name: kind for name, kind in types.items() if isinstance(kind, str)} if isinstance(types, dict) else {}
    entailed = item["entailed"] if isinstance(item.get("entailed"), list) else []
    if not all(isinstance(id_, str) for id_ in entailed):
        problems.add("'entailed' must list ids of questions, as text", f"{where} has {short(entailed)}")
    return GQAQuestion(
        answer=item.get("answer", ""),
        types=kinds,
        entailed=entailed,
        balanced=item.get("isBalanced") is not False,
    )


def _notes(found: GQAScores) -> dict[str, str]:
    """What is not as in the official evaluation: metric -> remark."""
    notes = {}
    if found.consistency is None:
        notes["consistency"] = "not computed: no rightly answered question entails another one of the set"
    elif found.unasked:
        notes["consistency"] = (
            f"{found.unasked:,} entailed questions are not in the set and were left out; the official number asks all "
            "of them (..._all_questions.json)"
        )
    others = len(found.per_question) - len(found.counted)
    if others:
        notes["accuracy"] = f"of the {len(found.counted):,} balanced questions; {others:,} others were asked too"
    return notes
