"""What are captions of one's own: lines or a list of image and caption, or captions; scored as COCO's are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from multitask_vl.config.schema import Positive, Section
from multitask_vl.registry import TASKS
from multitask_vl.tasks.base import Example, Names
from multitask_vl.tasks.coco_caption import CaptionConfig, CocoCaption
from multitask_vl.tasks.readers.json_stream import Problems, short
from multitask_vl.tasks.readers.jsonl_items import IMAGE_FIELDS, OwnSplit, own_items


class OwnCaptionSplit(OwnSplit):
    """The files of a split of one's own captions."""

    one_per: Literal["caption", "image"] | None = None
    """`caption`: every (image, caption) pair is an example. `image`: one example an image with all its captions, those
    of several items included; in training one of them is drawn a visit. None: `caption` for the split named train,
    else `image`."""


class CaptionFields(Section):
    """Under which name an item has what; of several names, the first that the item has."""

    image: Names = IMAGE_FIELDS
    """The picture's file name or id, or a list of them."""
    captions: Names = ("captions", "caption")
    """A text or a list of texts. No item has it: the captions are hidden."""


class JsonlCaptionConfig(CaptionConfig):
    """As COCO's, without limits of length."""

    max_input_tokens: Positive | None = None
    max_target_tokens: Positive | None = None
    splits: dict[str, OwnCaptionSplit] = {}
    fields: CaptionFields = CaptionFields()


@TASKS.register("jsonl_caption")
class JsonlCaption(CocoCaption):
    """Captions of one's own pictures. An example's id is its picture's key, with the caption's number behind it."""

    Config = JsonlCaptionConfig

    def __init__(self, name: str, config: JsonlCaptionConfig, data_dir: Path):
        super().__init__(name, config, data_dir)
        self.submission_name = f"{name}_results.json"  # a run may have several tasks of this type

    def sources(self, split: str) -> list[Path]:
        self.where(split)
        return self.existing({f"splits.{split}.items": self.config.splits[split].items})

    def read(self, split: str) -> Iterator[Example]:
        fields, problems = self.config.fields, self.collected(split)
        one_per = self.config.splits[split].one_per or ("caption" if split == "train" else "image")
        captions: dict[tuple[str, ...], list[str]] = {}
        count = hidden = 0
        for _, item, keys, where in own_items(self, split, fields.image, problems):
            name = next((name for name in fields.captions if name in item), None)
            count, hidden = count + 1, hidden + (name is None)
            captions.setdefault(keys, []).extend([] if name is None else _texts(item, name, where, problems))
        if 0 < hidden < count:
            problems.add("some items have captions and some have none", f"{hidden:,} of {count:,}")
        elif hidden and one_per == "caption":
            problems.add("no item has captions", ", ".join(map(str, self.config.splits[split].items)), "Set fields")
        for keys, texts in captions.items():
            id_ = "+".join(keys)
            if one_per == "image":
                yield Example(id_, keys, "", tuple(texts), (1.0,) * len(texts))
                continue
            for number, text in enumerate(texts, 1):
                yield Example(f"{id_}-{number}", keys, "", (text,), (1.0,))
        problems.raise_any()


def _texts(item: dict, name: str, where: str, problems: Problems) -> list[str]:
    """The captions of an item, without outer blanks."""
    given = item[name] if isinstance(item[name], list) else [item[name]]
    if not given or not all(isinstance(text, str) and text.strip() for text in given):
        problems.add(
            f"field '{name}' must be a caption or a list of captions, not blank", f"{where} has {short(item[name])}"
        )
        return []
    return [text.strip() for text in given]
