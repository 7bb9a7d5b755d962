"""Items of custom data: a JSON list or JSON lines, with configurable field names, image keys and a filter."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from multitask_vl.tasks.base import Names, Paths, SplitConfig, Task
from multitask_vl.tasks.readers.formats import SubsetFilter, format_image_key, image_stem
from multitask_vl.tasks.readers.json_stream import ErrorCollector, read_records, truncate_repr


def _check_template(template: str) -> str:
    for _, name, _, _ in string.Formatter().parse(template):
        if name is not None and not name:
            raise ValueError("a field in braces needs a name, such as {stem}")
    return template


class JsonlSplit(SplitConfig):
    """Files of a split of custom data."""

    items: Paths
    """Files, folders or patterns. Each file is a JSON list of objects or has one object per line; its first character
    decides."""
    filter: dict[str, Names] = {}
    """Field -> accepted values, such as `{split: val}`; other items are skipped. Empty: every item."""
    image_key: Annotated[str, AfterValidator(_check_template)] = "{stem}"
    """Template of an image's key in the feature store, filled with the item's fields, such as `{image_id:012d}`.
    `{stem}` is the image's file name without folders and extension, as in `launch/extract_features.py`. If the image
    field is a list, `{stem}` and that field are filled with each entry in turn."""


IMAGE_FIELDS = ("image", "images", "image_name", "image_id", "img_id")
"""Default names of the image field: the first of these that an item has."""


def iter_items(
    task: Task, split: str, image_fields: Sequence[str], problems: ErrorCollector
) -> Iterator[tuple[int, dict, tuple[str, ...], str]]:
    """Yield the items of a split that pass its `filter`.

    Args:
        task: task whose splits are `JsonlSplit`.
        image_fields: names of the field with the image, or list of images; the first that an item has is used.

    Yields:
        number of the item in its files (from 1, filtered items included), item, image keys, ``file:line``.
    """
    config: JsonlSplit = task.config.splits[split]
    filters = {name: SubsetFilter(values) for name, values in config.filter.items()}
    number, num_images = 0, None
    for path in task.expand_paths(config.items):
        for item, where in read_records(path, problems):
            number += 1
            if not all(_accepts(filter_, item, name, where, problems) for name, filter_ in filters.items()):
                continue
            keys = _image_keys(item, image_fields, config.image_key, where, problems)
            if keys is None:
                continue
            if num_images not in (None, len(keys)):
                problems.add(
                    "items have different numbers of images", f"{where} has {len(keys)}, others before {num_images}"
                )
                continue
            num_images = len(keys)
            yield number, item, keys, where
    for name, filter_ in filters.items():
        filter_.report_unused(name, ", ".join(map(str, config.items)), problems, "Choose with filter")


def first_field(item: dict, names: Sequence[str], where: str, problems: ErrorCollector) -> str | None:
    """The first of some names that is a field of the item; None, and a problem, if there is none."""
    name = next((name for name in names if name in item), None)
    if name is None:
        missing = f"field '{names[0]}'" if len(names) == 1 else f"one of the fields {', '.join(names)}"
        problems.add(
            f"{missing} is missing", f"{where} (it has {', '.join(list(item)[:8]) or 'nothing'})", "Set fields"
        )
    return name


def _accepts(filter_: SubsetFilter, item: dict, name: str, where: str, problems: ErrorCollector) -> bool:
    if name not in item:
        problems.add(f"field '{name}', which filter selects by, is missing", where)
        return False
    value = item[name]
    return filter_.accepts(value.strip() if isinstance(value, str) else json.dumps(value))


def _image_keys(
    item: dict, names: Sequence[str], template: str, where: str, problems: ErrorCollector
) -> tuple[str, ...] | None:
    name = first_field(item, names, where, problems)
    if name is None:
        return None
    images: list[Any] = item[name] if isinstance(item[name], list) else [item[name]]
    if not images or not all(_is_image_name(image) for image in images):
        problems.add(
            f"field '{name}' must name an image, or a list of them", f"{where} has {truncate_repr(item[name])}"
        )
        return None
    keys = tuple(
        format_image_key(template, {**item, name: image, "stem": image_stem(image)}, where, problems)
        for image in images
    )
    return None if None in keys else keys


def _is_image_name(image: Any) -> bool:
    if isinstance(image, str):
        return bool(image.strip())
    return isinstance(image, int) and not isinstance(image, bool)
