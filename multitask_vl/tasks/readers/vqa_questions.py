"""VQA questions from official files, LXMERT's lists, A-OKVQA and Visual Genome."""

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
    SubsetFilter,
    answer_texts,
    format_image_key,
    karpathy_images,
    optional_text,
    soft_label,
    visual_genome_coco_ids,
    visual_genome_questions,
)
from multitask_vl.tasks.readers.json_stream import ErrorCollector, stream_json, truncate_repr

ImageKey = key_template("image_id", "subtype", "img_id")
VisualGenomeKey = key_template("image_id")
UnanswerablePolicy = Literal["keep", "drop"]
_OFFICIAL_KEY = "COCO_{subtype}_{image_id:012d}"


class VisualGenomeOptions(Section):
    """How the Visual Genome questions of a split are read."""

    image_key: VisualGenomeKey = "{image_id}"
    """Template of an image's key in the feature store."""
    image_data: Path | None = None
    """Its `image_data.json`, needed if the split has `karpathy`: half of the Visual Genome images are COCO images, and
    questions about those of other Karpathy splits are dropped."""
    answers: Literal["normalized", "as_written"] = "normalized"
    """Its answers are sentences ("It is green."). `normalized`: in the form in which VQA answers are compared, in lower
    case, without punctuation and articles ("it is green")."""


class VQASplit(SplitConfig):
    """Files of a split. The format of each file is detected by its content, never by its name."""

    questions: Paths
    """Files, folders or patterns: the official `..._questions.json`; LXMERT's and VL-T5's lists (`train.json`,
    `nominival.json`, `karpathy_train.json`, ...), whose `label` has the soft scores; A-OKVQA's list; Visual Genome's
    `question_answers.json`, whose one answer has the score 1."""
    annotations: Paths | None = None
    """`..._annotations.json`. Every official question needs one; without this key the answers are hidden (test,
    test-dev). A list needs annotations only for the official accuracy; they may cover more questions than it has."""
    image_key: ImageKey | None = None
    """Template of an image's key in the feature store. None: `COCO_{subtype}_{image_id:012d}`, and `{img_id}` for items
    of a list that have it."""
    subtype: str | None = None
    """Value of `{subtype}`, e.g. val2014. None: the `data_subtype` of each questions file."""
    karpathy: Path | None = None
    """Karpathy's `dataset_coco.json`: only questions about the images of its `subset` are read, which gives the
    published splits from the official train2014 and val2014 files."""
    subset: Names | None = None
    """Which Karpathy splits; `train` means train and restval. None: the name of the split under `splits:`. Without
    `karpathy`: only questions whose own field `split` has one of these values are read."""
    unanswerable: UnanswerablePolicy = "keep"
    """Questions without an answer that may be a target. `keep`: with the target '' and weight 0 (published). `drop`:
    not in the split. Their number is reported in either case."""
    visual_genome: VisualGenomeOptions = VisualGenomeOptions()
    """For Visual Genome files among `questions`."""


@dataclass(slots=True)
class Question:
    """A question of any format.

    Attributes:
        where: ``file:line``.
        image_id: what an annotation must name too; None if the item has only LXMERT's name of its image.
        key: key of its image in the feature store.
        label: soft scores of the item; None if it has none.
        human_answers: answers of a list or of the annotations; None if there are none.
        from_list: whether it is an item of a list, not of an official file.
        from_visual_genome: whether it is from Visual Genome, which has no annotations.
    """

    id: str
    text: str
    where: str
    image_id: int | str | None
    key: str = ""
    label: dict[str, float] | None = None
    human_answers: HumanAnswers | None = None
    from_list: bool = False
    from_visual_genome: bool = False


def read_questions(task: Task, split: str, problems: ErrorCollector, dropped: set[str]) -> Iterator[Question]:
    """Read the questions of a split's files.

    Args:
        task: task whose splits are `VQASplit`.
        dropped: the ids of questions that `karpathy` or `subset` excludes are added to it.
    """
    config: VQASplit = task.config.splits[split]
    images = coco_ids = None
    if config.karpathy is not None:
        images = karpathy_images(task.resolve(config.karpathy), config.subset or (split,), problems)
    if config.visual_genome.image_data is not None:
        coco_ids = visual_genome_coco_ids(task.resolve(config.visual_genome.image_data), problems)
    subset = SubsetFilter(config.subset if images is None else None)
    for path in task.expand_paths(config.questions):
        members, subtype = set(), config.subtype
        for member, item, where in stream_json(path):
            members.add(member)
            if member not in ("questions", None):
                continue
            if not isinstance(item, dict):
                problems.add("a question must be an object", f"{where} has {truncate_repr(item)}")
            elif "qas" in item:
                yield from _read_visual_genome(item, where, config.visual_genome, images, coco_ids, problems)
            elif (question := _read_question(item, where, member is None, problems)) is not None:
                if not _in_subset(question, item, images, subset, problems):
                    dropped.add(question.id)
                    continue
                template = config.image_key or ("{img_id}" if question.image_id is None else _OFFICIAL_KEY)
                if subtype is None and "{subtype" in template:
                    subtype = _data_subtype(path, problems.subject)
                fields = {name: item[name] for name in ("image_id", "img_id") if name in item}
                key = format_image_key(template, {**fields, "subtype": subtype}, where, problems)
                if key is not None:
                    question.key = key
                    yield question
        if not members & {"questions", None}:
            content = ", ".join(sorted(map(str, members))[:8]) or "nothing"
            problems.add("there is no item under 'questions'", f"{path} (it contains {content})")
    subset.report_unused("split", ", ".join(map(str, config.questions)), problems, "Choose with subset")


def _in_subset(
    question: Question, item: dict, images: KarpathyImages | None, subset: SubsetFilter, problems: ErrorCollector
) -> bool:
    """Whether the options ``karpathy`` and ``subset`` include a question."""
    if images is not None and question.image_id is None:
        problems.add("karpathy selects by image_id, which the item does not have", question.where)
    if subset.wanted is not None and not subset.accepts(problems.require_field(item, "split", str, question.where)):
        return False
    return images is None or question.image_id in images.wanted


def _read_question(item: dict, where: str, from_list: bool, problems: ErrorCollector) -> Question | None:
    """Parse a question of an official file, or of a list with LXMERT's or the official field names."""
    has_img_id = from_list and "img_id" in item
    id_ = problems.require_field(item, "question_id", (int, str), where)
    text = problems.require_field(item, "sent" if from_list and "sent" in item else "question", str, where)
    image_id = problems.require_field(item, "img_id" if has_img_id else "image_id", (int, str), where)
    if None in (id_, text, image_id):
        return None
    question = Question(str(id_), text, where, None if has_img_id else image_id, from_list=from_list)
    if from_list and "label" in item:
        question.label = soft_label(item, where, problems)
    field = next((name for name in ("answers", "direct_answers") if from_list and name in item), None)
    if field is not None and (answers := answer_texts(item[field], where, problems)) is not None:
        types = [optional_text(item, name) for name in ("answer_type", "question_type")]
        question.human_answers = HumanAnswers(answers, *types)
    return question


def _read_visual_genome(
    item: dict,
    where: str,
    options: VisualGenomeOptions,
    images: KarpathyImages | None,
    coco_ids: dict[int, int | None] | None,
    problems: ErrorCollector,
) -> Iterator[Question]:
    """Visual Genome questions about one image; none if the image is in another Karpathy split."""
    for id_, image_id, text, answer in visual_genome_questions(item, where, problems):
        if images is not None:
            if coco_ids is None:
                problems.add(
                    "some Visual Genome images are in other Karpathy splits, and it is unknown which", where,
                    "Set visual_genome.image_data to its image_data.json",
                )  # fmt: skip
            elif image_id not in coco_ids:
                problems.add("an image is not in visual_genome.image_data", f"{where} ({image_id})")
            elif coco_ids[image_id] in images.others:
                problems.warn("Visual Genome questions about images of other Karpathy splits, dropped")
                continue
        key = format_image_key(options.image_key, {"image_id": image_id}, where, problems, "visual_genome.image_key")
        if key is not None:
            answer = normalize(answer.strip()) if options.answers == "normalized" else answer.strip()
            yield Question(
                id_, text, where, image_id, key, label={answer: 1.0}, from_list=True, from_visual_genome=True
            )


def _data_subtype(path: Path, subject: str) -> str:
    """The `data_subtype` of a questions file; test-dev2015 uses the images, and image names, of test2015."""
    for key, value, _ in stream_json(path):
        if key == "data_subtype" and isinstance(value, str):
            return value.replace("test-dev", "test")
    raise InputError(
        f"{subject}.image_key: {{subtype}} is unknown, because {path} has no data_subtype. Set {subject}.subtype, e.g. "
        f"train2014, or an image_key without it, e.g. '{{image_id:012d}}'"
    )
