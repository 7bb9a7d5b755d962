"""Item fields shared by several annotation formats: image keys, answers, soft labels, subsets, Visual Genome."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multitask_vl.tasks.readers.json_stream import ErrorCollector, stream_json, stream_list, truncate_repr

_IMAGE_EXTENSIONS = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"))


def format_image_key(
    template: str, fields: Mapping[str, Any], where: str, problems: ErrorCollector, option: str = "image_key"
) -> str | None:
    """Fill a key template of the configuration with an item's fields; None, and a problem, if that fails.

    Args:
        template: format string that gives the image's key in the feature store.
        option: name of the template in the configuration, for messages.
    """
    try:
        return template.format_map(fields)
    except KeyError as error:
        name = error.args[0]
        problems.add(f"{option} {template!r} names {{{name}}}, which the item does not have", where)
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        problems.add(f"image_id does not fit {option} {template!r} ({error})", f"{where} ({dict(fields)!r:.80})")
    return None


def image_stem(name: Any) -> str:
    """File name of an image without folders and extension, which is its key in `launch/extract_features.py`."""
    name = Path(str(name)).name
    stem, dot, extension = name.rpartition(".")
    return stem if dot and extension.lower() in _IMAGE_EXTENSIONS else name


def optional_text(item: Mapping[str, Any], name: str) -> str | None:
    """Stripped text of an optional field; None if it is missing or not text."""
    value = item.get(name)
    return value.strip() if isinstance(value, str) else None


def soft_label(item: Mapping[str, Any], where: str, problems: ErrorCollector) -> dict[str, float] | None:
    """LXMERT's ``label``, {answer: soft score in [0, 1]}, highest first; empty if no answer is in LXMERT's list."""
    label = problems.require_field(item, "label", dict, where)
    if label is None:
        return None
    for answer, score in label.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            problems.add("'label' must be {answer: score from 0 to 1}", f"{where} has {truncate_repr({answer: score})}")
            return None
    return {answer: float(score) for answer, score in sorted(label.items(), key=lambda pair: -pair[1])}


def answer_texts(value: Any, where: str, problems: ErrorCollector) -> list[str] | None:
    """Parse answers in the forms found in practice: a text, a number, or a list of those or of ``{answer: text}``.

    Returns:
        stripped texts, at least one of them not empty; None, and a problem, for anything else.
    """
    texts = []
    for answer in value if isinstance(value, list) else [value]:
        text = answer.get("answer") if isinstance(answer, dict) else answer
        if isinstance(text, int | float) and not isinstance(text, bool):
            problems.warn("answers that are numbers, read as text")
            text = str(text)
        if not isinstance(text, str):
            problems.add(
                "answers must be text, a list of texts or a list of {answer: text}",
                f"{where} has {truncate_repr(value)}",
            )
            return None
        if text != text.strip():
            problems.warn("answers with leading or trailing whitespace, which is stripped")
        texts.append(text.strip())
    if not any(texts):
        problems.add("there is no answer, or only blank ones", f"{where} has {truncate_repr(value)}")
        return None
    return texts


def read_answers(path: Path, option: str, problems: ErrorCollector) -> Iterator[str]:
    """Read a JSON file that is a list of answers, or an object whose keys are the answers.

    Args:
        option: name of the path in the configuration, for messages.
    """
    for key, value, where in stream_json(path):
        answer = value if key is None else key
        if isinstance(answer, str):
            yield answer
        else:
            problems.add(
                f"{option} must be a list of answers, or {{answer: number}}", f"{where} has {truncate_repr(answer)}"
            )


class SubsetFilter:
    """Filter on one field of the items; a wanted value that no item has is a problem.

    Args:
        wanted: accepted values; None accepts every item.
    """

    def __init__(self, wanted: Collection[str] | None):
        self.wanted = wanted
        self.counts: dict[str, int] = {}

    def accepts(self, value: str | None) -> bool:
        """Whether an item with this value is accepted; it is counted."""
        if value is not None:
            self.counts[value] = self.counts.get(value, 0) + 1
        return self.wanted is None or value in self.wanted

    def report_unused(self, field: str, path: Path | str, problems: ErrorCollector, fix: str) -> None:
        """Add a problem for each wanted value that no item had."""
        for value in self.wanted or ():
            if value not in self.counts:
                found = ", ".join(f"{name} ({count:,})" for name, count in sorted(self.counts.items())[:12]) or "none"
                problems.add(f"no item has the {field} {value!r}", f"{path} has {found}", fix)


@dataclass(frozen=True)
class KarpathyImages:
    """COCO ids of the images in the wanted Karpathy splits, and of all other images of his file."""

    wanted: frozenset[int]
    others: frozenset[int]


def karpathy_images(path: Path, wanted: Sequence[str], problems: ErrorCollector) -> KarpathyImages:
    """Read the images of some Karpathy splits from ``dataset_coco.json``; `train` means train and restval."""
    names = {*wanted, "restval"} if "train" in wanted else set(wanted)
    images, others, subsets = set(), set(), set()
    for item, where in stream_list(path, "images", problems):
        id_ = problems.require_field(item, "cocoid", int, where)
        subset = problems.require_field(item, "split", str, where)
        subsets.add(subset)
        (images if subset in names else others).add(id_)
    if not images:
        problems.add(
            "the file has no image of the split", f"{path} has {sorted(map(str, subsets))}", "Choose with subset"
        )
    return KarpathyImages(frozenset(images), frozenset(others))


def visual_genome_questions(
    item: Mapping[str, Any], where: str, problems: ErrorCollector
) -> Iterator[tuple[str, int, str, str]]:
    """Id, image id, question and answer of each pair of an item of Visual Genome's ``question_answers.json``.

    An item is ``{id, qas: [{qa_id, question, answer, image_id}]}``, one per image. Ids get the prefix ``vg-``, because
    VQA uses the same numbers.
    """
    image_id = problems.require_field(item, "image_id" if "image_id" in item else "id", int, where)
    for pair in problems.require_field(item, "qas", list, where) or ():
        if not isinstance(pair, dict):
            problems.add("an item of 'qas' must be an object", f"{where} has {truncate_repr(pair)}")
            continue
        id_ = problems.require_field(pair, "qa_id", int, where)
        text = problems.require_field(pair, "question", str, where)
        answer = problems.require_field(pair, "answer", str, where)
        if "image_id" in pair and pair["image_id"] != image_id:
            problems.add("'id' and 'image_id' of a pair differ", f"{where} (qa_id {id_})")
        elif None not in (image_id, id_, text, answer):
            yield f"vg-{id_}", image_id, text, answer


def visual_genome_coco_ids(path: Path, problems: ErrorCollector) -> dict[int, int | None]:
    """Read the COCO id of each Visual Genome image from ``image_data.json``; None for images outside COCO."""
    coco_ids: dict[int, int | None] = {}
    for key, item, where in stream_json(path):
        if key is not None or not isinstance(item, dict):
            problems.add("a list of {image_id, coco_id} is expected", where)
            continue
        id_ = problems.require_field(item, "image_id" if "image_id" in item else "id", int, where)
        coco_id = item.get("coco_id")
        if coco_id is not None and not isinstance(coco_id, int):
            problems.add("'coco_id' must be an integer or null", f"{where} has {truncate_repr(coco_id)}")
        elif id_ is not None:
            coco_ids[id_] = coco_id
    return coco_ids
