"""Custom captioning data: a JSON list or JSON lines of images and captions, scored as COCO captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from multitask_vl.config.schema import PositiveInt, Section
from multitask_vl.registry import TASKS
from multitask_vl.tasks.base import Example, Names
from multitask_vl.tasks.coco_caption import CaptionConfig, CocoCaption
from multitask_vl.tasks.readers.json_stream import ErrorCollector, truncate_repr
from multitask_vl.tasks.readers.jsonl_items import IMAGE_FIELDS, JsonlSplit, iter_items


class JsonlCaptionSplit(JsonlSplit):
    """Files of a split of custom captions."""

    unit: Literal["caption", "image"] | None = None
    """`caption`: every (image, caption) pair is an example. `image`: one example per image with all its captions, those
    of several items included; training samples one of them per visit. None: `caption` for the split named train, else
    `image`."""


class CaptionFields(Section):
    """Names of the fields of an item. Of several names, the first that the item has is used."""

    image: Names = IMAGE_FIELDS
    """The image's file name or id, or a list of them."""
    captions: Names = ("captions", "caption")
    """A text or a list of texts. If no item has it, the captions are hidden."""


class JsonlCaptionConfig(CaptionConfig):
    """Settings of `coco_caption`, without length limits."""

    max_input_tokens: PositiveInt | None = None
    max_target_tokens: PositiveInt | None = None
    splits: dict[str, JsonlCaptionSplit] = {}
    fields: CaptionFields = CaptionFields()


@TASKS.register("jsonl_caption")
class JsonlCaption(CocoCaption):
    """Captions of custom images. An example's id is the key of its image, with the number of the caption if needed."""

    Config = JsonlCaptionConfig

    def __init__(self, name: str, config: JsonlCaptionConfig, data_dir: Path):
        super().__init__(name, config, data_dir)
        self.submission_name = f"{name}_results.json"  # a run may have several tasks of this type

    def sources(self, split: str) -> list[Path]:
        self.config_path(split)
        return self.resolve_files({f"splits.{split}.items": self.config.splits[split].items})

    def read(self, split: str) -> Iterator[Example]:
        fields, problems = self.config.fields, self.new_collector(split)
        unit = self.config.splits[split].unit or ("caption" if split == "train" else "image")
        captions: dict[tuple[str, ...], list[str]] = {}
        count = hidden = 0
        for _, item, keys, where in iter_items(self, split, fields.image, problems):
            name = next((name for name in fields.captions if name in item), None)
            count, hidden = count + 1, hidden + (name is None)
            captions.setdefault(keys, []).extend([] if name is None else _texts(item, name, where, problems))
        if 0 < hidden < count:
            problems.add("some items have captions and some have none", f"{hidden:,} of {count:,}")
        elif hidden and unit == "caption":
            problems.add("no item has captions", ", ".join(map(str, self.config.splits[split].items)), "Set fields")
        for keys, texts in captions.items():
            id_ = "+".join(keys)
            if unit == "image":
                yield Example(id_, keys, "", tuple(texts), (1.0,) * len(texts))
                continue
            for number, text in enumerate(texts, 1):
                yield Example(f"{id_}-{number}", keys, "", (text,), (1.0,))
        problems.raise_if_any()


def _texts(item: dict, name: str, where: str, problems: ErrorCollector) -> list[str]:
    """Stripped captions of an item."""
    captions = item[name] if isinstance(item[name], list) else [item[name]]
    if not captions or not all(isinstance(text, str) and text.strip() for text in captions):
        problems.add(
            f"field '{name}' must be a caption or a list of captions, not blank",
            f"{where} has {truncate_repr(item[name])}",
        )
        return []
    return [text.strip() for text in captions]
