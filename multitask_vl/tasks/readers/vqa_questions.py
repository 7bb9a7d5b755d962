"""Where do VQA's questions come from: official files, LXMERT's lists, A-OKVQA, Visual Genome; content says which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multitask_vl.config.schema import Section
from multitask_vl.errors import InputError
from multitask_vl.metrics.vqa_accuracy import HumanAnswers, normalize
from multitask_vl.tasks.base import Names, Paths, SplitConfig, Task, key_template
from multitask_vl.tasks.readers.formats import (
    KarpathyImages,
    Subset,
    answer_texts,
    genome_coco_ids,
    genome_questions,
    karpathy_images,
    key_of,
    soft_label,
    text_or_none,
)
from multitask_vl.tasks.readers.json_stream import Problems, short, walk

ImageKey = key_template("image_id", "subtype", "img_id")
GenomeKey = key_template("image_id")
WithoutTarget = Literal["keep", "leave_out"]
_OFFICIAL_KEY = "COCO_{subtype}_{image_id:012d}"


class GenomeOptions(Section):
    """How Visual Genome's questions are read, where a split has some."""

    image_key: GenomeKey = "{image_id}"
    """How its pictures are called in the feature store."""
    image_data: Path | None = None
    """Its `image_data.json`, needed where the split has `karpathy`: half of its pictures are COCO's, and questions
    about those of Karpathy's other splits are left out."""
    answers: Literal["normalized", "as_written"] = "normalized"
    """Its answers are sentences ("It is green."). `normalized`: in the form in which VQA answers are compared, in lower
    case, without punctuation and articles ("it is green")."""


class VQASplit(SplitConfig):
    """The files of a split. Which layout each has, its content says, never its name."""

    questions: Paths
    """Files, folders or patterns: the official `..._questions.json`; LXMERT's and VL-T5's lists (`train.json`,
    `nominival.json`, `karpathy_train.json`, ...), where `label` holds the soft scores; A-OKVQA's list; Visual Genome's
    `question_answers.json`, whose one answer has the score 1."""
    annotations: Paths | None = None
    """`..._annotations.json`. Official questions need one each; without any, their answers are hidden (test, test-dev).
    A list needs them only for the official accuracy, and they may be of more questions than it has."""
    image_key: ImageKey | None = None
    """How a picture is called in the feature store. None: `COCO_{subtype}_{image_id:012d}`, and `{img_id}` for items of
    a list that have it."""
    subtype: str | None = None
    """What `{subtype}` stands for, e.g. val2014. None: each questions file's own `data_subtype`."""
    karpathy: Path | None = None
    """Karpathy's `dataset_coco.json`: only questions about the images of its `subset` are taken, so that the published
    splits come from the official train2014 and val2014 files."""
    subset: Names | None = None
    """Which of Karpathy's splits; `train` stands for train and restval. None: the split's own name under `splits:`.
    Without `karpathy`: only questions are taken whose own field `split` has one of these values."""
    without_target: WithoutTarget = "keep"
    """A question none of whose answers may be a target keeps the target '' with weight 0 (published), or is left out of
    the split; how many there are is told in either case."""
    visual_genome: GenomeOptions = GenomeOptions()
    """For Visual Genome's files among `questions`."""


@dataclass(slots=True)
class Question:
    """A question of any layout.

    Attributes:
        image_id: what an annotation must name too; None where the item has only LXMERT's name of its picture.
        key: of its picture in the feature store.
        label: soft scores that come with it; None where there are none.
        human: human answers, of a list or of the annotations; None where there are none.
        listed: whether it is an item of a list, not of an official file.
        genome: whether it is Visual Genome's, which no annotation is about.
    """

    id: str
    text: str
    where: str
    image_id: int | str | None
    key: str = ""
    label: dict[str, float] | None = None
    human: HumanAnswers | None = None
    listed: bool = False
    genome: bool = False


def read_questions(task: Task, split: str, problems: Problems, left_out: set[str]) -> Iterator[Question]:
    """The questions of a split's files.

    Args:
        task: whose splits are `VQASplit`.
        left_out: gets the ids of questions that `karpathy` or `subset` does not take.
    """
    config: VQASplit = task.config.splits[split]
    images = coco_ids = None
    if config.karpathy is not None:
        images = karpathy_images(task.resolve(config.karpathy), config.subset or (split,), problems)
    if config.visual_genome.image_data is not None:
        coco_ids = genome_coco_ids(task.resolve(config.visual_genome.image_data), problems)
    own = Subset(config.subset if images is None else None)
    for path in task.files(config.questions):
        seen, subtype = set(), config.subtype
        for member, item, where in walk(path):
            seen.add(member)
            if member not in ("questions", None):
                continue
            if not isinstance(item, dict):
                problems.add("a question must be an object", f"{where} has {short(item)}")
            elif "qas" in item:
                yield from _genome(item, where, config.visual_genome, images, coco_ids, problems)
            elif (question := _question(item, where, member is None, problems)) is not None:
                if images is not None and question.image_id is None:
                    problems.add("karpathy selects by image_id, which the item does not have", where)
                takes = own.wanted is None or own.takes(problems.field(item, "split", str, where))
                if not takes or (images is not None and question.image_id not in images.wanted):
                    left_out.add(question.id)
                    continue
                template = config.image_key or ("{img_id}" if question.image_id is None else _OFFICIAL_KEY)
                if subtype is None and "{subtype" in template:
                    subtype = _subtype_of(path, problems.subject)
                names = {name: item[name] for name in ("image_id", "img_id") if name in item}
                key = key_of(template, {**names, "subtype": subtype}, where, problems)
                if key is not None:
                    question.key = key
                    yield question
        if not seen & {"questions", None}:
            holds = ", ".join(sorted(map(str, seen))[:8]) or "nothing"
            problems.add("there is no item under 'questions'", f"{path} (it holds {holds})")
    own.tell("split", ", ".join(map(str, config.questions)), problems, "Choose with subset")


def _question(item: dict, where: str, listed: bool, problems: Problems) -> Question | None:
    """A question of an official file, or of a list: LXMERT's names for its fields, or the official ones."""
    own_name = listed and "img_id" in item
    id_ = problems.field(item, "question_id", (int, str), where)
    text = problems.field(item, "sent" if listed and "sent" in item else "question", str, where)
    image_id = problems.field(item, "img_id" if own_name else "image_id", (int, str), where)
    if None in (id_, text, image_id):
        return None
    question = Question(str(id_), text, where, None if own_name else image_id, listed=listed)
    if listed and "label" in item:
        question.label = soft_label(item, where, problems)
    humans = next((name for name in ("answers", "direct_answers") if listed and name in item), None)
    if humans is not None and (answers := answer_texts(item[humans], where, problems)) is not None:
        question.human = HumanAnswers(answers, text_or_none(item, "answer_type"), text_or_none(item, "question_type"))
    return question


def _genome(
    item: dict,
    where: str,
    options: GenomeOptions,
    images: KarpathyImages | None,
    coco_ids: dict[int, int | None] | None,
    problems: Problems,
) -> Iterator[Question]:
    """Visual Genome's questions about one picture; none if it is of another one of Karpathy's splits."""
    for id_, image_id, text, answer in genome_questions(item, where, problems):
        if images is not None:
            if coco_ids is None:
                problems.add(
                    "some of Visual Genome's pictures are in karpathy's other splits, but which is not known", where,
                    "Set visual_genome.image_data to its image_data.json",
                )  # fmt: skip
            elif image_id not in coco_ids:
                problems.add("a picture is not in visual_genome.image_data", f"{where} ({image_id})")
            elif coco_ids[image_id] in images.others:
                problems.remark("questions of Visual Genome about pictures of karpathy's other splits, left out")
                continue
        key = key_of(options.image_key, {"image_id": image_id}, where, problems, "visual_genome.image_key")
        if key is not None:
            answer = normalize(answer.strip()) if options.answers == "normalized" else answer.strip()
            yield Question(id_, text, where, image_id, key, label={answer: 1.0}, listed=True, genome=True)


def _subtype_of(path: Path, subject: str) -> str:
    """The `data_subtype` of a questions file. Pictures of test-dev2015 are those of test2015, and called so."""
    for key, value, _ in walk(path):
        if key == "data_subtype" and isinstance(value, str):
            return value.replace("test-dev", "test")
    raise InputError(
        f"{subject}.image_key: {{subtype}} is not known, for {path} has no data_subtype. Set {subject}.subtype, e.g. "
        f"train2014, or an image_key without it, e.g. '{{image_id:012d}}'"
    )
