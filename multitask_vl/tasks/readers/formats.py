"""What do the items of a file say in whichever layout people have: keys of pictures, answers, soft labels, subsets."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multitask_vl.tasks.readers.json_stream import Problems, items_of, short, walk

_ENDINGS = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"))


def key_of(
    template: str, fields: Mapping[str, Any], where: str, problems: Problems, key: str = "image_key"
) -> str | None:
    """A picture's key in the feature store: a template of the configuration, filled with an item's own fields.

    Args:
        key: name of the template in the configuration, for messages.
    """
    try:
        return template.format_map(fields)
    except KeyError as error:
        name = error.args[0]
        problems.add(f"{key} {template!r} names {{{name}}}, which the item does not have", where)
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        problems.add(f"image_id does not fit {key} {template!r} ({error})", f"{where} ({dict(fields)!r:.80})")
    return None


def stem_of(name: Any) -> str:
    """A picture's file name without folders and without its ending, as `launch/extract_features.py` calls it."""
    name = Path(str(name)).name
    stem, dot, ending = name.rpartition(".")
    return stem if dot and ending.lower() in _ENDINGS else name


def text_or_none(item: Mapping[str, Any], name: str) -> str | None:
    """A field that may be missing, without outer blanks; None where it holds no text."""
    value = item.get(name)
    return value.strip() if isinstance(value, str) else None


def soft_label(item: Mapping[str, Any], where: str, problems: Problems) -> dict[str, float] | None:
    """LXMERT's ``label``, {answer: soft score in [0, 1]}, highest first; empty where no answer is in its list."""
    label = problems.field(item, "label", dict, where)
    if label is None:
        return None
    for answer, score in label.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            problems.add("'label' must be {answer: score from 0 to 1}", f"{where} has {short({answer: score})}")
            return None
    return {answer: float(score) for answer, score in sorted(label.items(), key=lambda pair: -pair[1])}


def answer_texts(given: Any, where: str, problems: Problems) -> list[str] | None:
    """Answers as people write them down: a text, a number, or a list of those or of ``{answer: text}``.

    Returns:
        texts without outer blanks, at least one of them not empty; None, and a problem, for anything else.
    """
    texts = []
    for one in given if isinstance(given, list) else [given]:
        text = one.get("answer") if isinstance(one, dict) else one
        if isinstance(text, int | float) and not isinstance(text, bool):
            problems.remark("answers that are numbers, read as text")
            text = str(text)
        if not isinstance(text, str):
            problems.add(
                "answers must be text, a list of texts or a list of {answer: text}", f"{where} has {short(given)}"
            )
            return None
        if text != text.strip():
            problems.remark("answers with outer blanks, which are taken off")
        texts.append(text.strip())
    if not any(texts):
        problems.add("there is no answer, or only blank ones", f"{where} has {short(given)}")
        return None
    return texts


class Subset:
    """Takes the items whose field has one of some values; a value that no item has is told.

    Args:
        wanted: values to take; None takes every item.
    """

    def __init__(self, wanted: Collection[str] | None):
        self.wanted = wanted
        self.found: dict[str, int] = {}

    def takes(self, value: str | None) -> bool:
        """Whether an item with this value is taken; it is counted."""
        if value is not None:
            self.found[value] = self.found.get(value, 0) + 1
        return self.wanted is None or value in self.wanted

    def tell(self, what: str, path: Path | str, problems: Problems, mend: str) -> None:
        """A problem for each wanted value that no item had."""
        for value in self.wanted or ():
            if value not in self.found:
                found = ", ".join(f"{name} ({count:,})" for name, count in sorted(self.found.items())[:12]) or "none"
                problems.add(f"no item has the {what} {value!r}", f"{path} has {found}", mend)


@dataclass(frozen=True)
class KarpathyImages:
    """COCO ids of the images in the wanted ones of Karpathy's splits, and of all other images of his file."""

    wanted: frozenset[int]
    others: frozenset[int]


def karpathy_images(path: Path, wanted: Sequence[str], problems: Problems) -> KarpathyImages:
    """The images of some of Karpathy's splits, from his ``dataset_coco.json``; `train` stands for train and restval."""
    names = {*wanted, "restval"} if "train" in wanted else set(wanted)
    images, others, found = set(), set(), set()
    for item, where in items_of(path, "images", problems):
        id_, subset = problems.field(item, "cocoid", int, where), problems.field(item, "split", str, where)
        found.add(subset)
        (images if subset in names else others).add(id_)
    if not images:
        problems.add(
            "the file has no image of the split", f"{path} has {sorted(map(str, found))}", "Choose with subset"
        )
    return KarpathyImages(frozenset(images), frozenset(others))


def genome_questions(item: Mapping[str, Any], where: str, problems: Problems) -> Iterator[tuple[str, int, str, str]]:
    """Id, image id, question and answer of each pair of an item of Visual Genome's ``question_answers.json``.

    An item is ``{id, qas: [{qa_id, question, answer, image_id}]}``, one an image. Ids begin with ``vg-``, since their
    numbers are VQA question ids as well.
    """
    image_id = problems.field(item, "image_id" if "image_id" in item else "id", int, where)
    for pair in problems.field(item, "qas", list, where) or ():
        if not isinstance(pair, dict):
            problems.add("an item of 'qas' must be an object", f"{where} has {short(pair)}")
            continue
        id_ = problems.field(pair, "qa_id", int, where)
        text = problems.field(pair, "question", str, where)
        answer = problems.field(pair, "answer", str, where)
        if "image_id" in pair and pair["image_id"] != image_id:
            problems.add("'id' and 'image_id' of a pair differ", f"{where} (qa_id {id_})")
        elif None not in (image_id, id_, text, answer):
            yield f"vg-{id_}", image_id, text, answer


def genome_coco_ids(path: Path, problems: Problems) -> dict[int, int | None]:
    """COCO id of each Visual Genome image, None where it has none, from ``image_data.json``."""
    found: dict[int, int | None] = {}
    for key, item, where in walk(path):
        if key is not None or not isinstance(item, dict):
            problems.add("a list of {image_id, coco_id} is expected", where)
            continue
        id_ = problems.field(item, "image_id" if "image_id" in item else "id", int, where)
        coco_id = item.get("coco_id")
        if coco_id is not None and not isinstance(coco_id, int):
            problems.add("'coco_id' must be a whole number or null", f"{where} has {short(coco_id)}")
        elif id_ is not None:
            found[id_] = coco_id
    return found
