"""What are the items of one's own data: a JSON list or one object a line, fields by their names, pictures, a choice."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from multitask_vl.tasks.base import Names, Paths, SplitConfig, Task
from multitask_vl.tasks.readers.formats import Subset, key_of, stem_of
from multitask_vl.tasks.readers.json_stream import Problems, records, short


def _well_formed(template: str) -> str:
    for _, name, _, _ in string.Formatter().parse(template):
        if name is not None and not name:
            raise ValueError("a field in braces needs a name, such as {stem}")
    return template


class OwnSplit(SplitConfig):
    """The files of a split of one's own data."""

    items: Paths
    """Files, folders or patterns; each a JSON list of objects, or one object a line, which its first sign says."""
    only: dict[str, Names] = {}
    """Field -> its values that are taken, such as `{split: val}`; others are left out. None: every item."""
    image_key: Annotated[str, AfterValidator(_well_formed)] = "{stem}"
    """How a picture is called in the feature store, made of the item's own fields, such as `{image_id:012d}`. `{stem}`
    is the picture's file name without folders and ending, as `launch/extract_features.py` calls it. Where the picture's
    field is a list, `{stem}` and that field stand for each of its entries in turn."""


IMAGE_FIELDS = ("image", "images", "image_name", "image_id", "img_id")
"""Where a picture may stand, if the configuration does not say: the first of these that an item has."""


def own_items(
    task: Task, split: str, image_names: Sequence[str], problems: Problems
) -> Iterator[tuple[int, dict, tuple[str, ...], str]]:
    """The items of a split that `only` takes.

    Args:
        task: whose splits are `OwnSplit`.
        image_names: names of the field that says the picture, or the list of pictures; the first that an item has.

    Yields:
        the item's number in its files (from 1, items left out included), the item, keys of its pictures, its place.
    """
    config: OwnSplit = task.config.splits[split]
    subsets = {name: Subset(values) for name, values in config.only.items()}
    number, pictures = 0, None
    for path in task.files(config.items):
        for item, where in records(path, problems):
            number += 1
            if not all(_takes(subset, item, name, where, problems) for name, subset in subsets.items()):
                continue
            keys = _keys(item, image_names, config.image_key, where, problems)
            if keys is None:
                continue
            if pictures not in (None, len(keys)):
                problems.add(
                    "items show different numbers of pictures", f"{where} has {len(keys)}, others before {pictures}"
                )
                continue
            pictures = len(keys)
            yield number, item, keys, where
    for name, subset in subsets.items():
        subset.tell(name, ", ".join(map(str, config.items)), problems, "Choose with only")


def first_of(item: dict, names: Sequence[str], where: str, problems: Problems) -> str | None:
    """The first of some names that is a field of the item; None, and a problem, where there is none."""
    name = next((name for name in names if name in item), None)
    if name is None:
        what = f"field '{names[0]}'" if len(names) == 1 else f"one of the fields {', '.join(names)}"
        problems.add(f"{what} is missing", f"{where} (it has {', '.join(list(item)[:8]) or 'nothing'})", "Set fields")
    return name


def _takes(subset: Subset, item: dict, name: str, where: str, problems: Problems) -> bool:
    if name not in item:
        problems.add(f"field '{name}', by which only selects, is missing", where)
        return False
    value = item[name]
    return subset.takes(value.strip() if isinstance(value, str) else json.dumps(value))


def _keys(item: dict, names: Sequence[str], template: str, where: str, problems: Problems) -> tuple[str, ...] | None:
    name = first_of(item, names, where, problems)
    if name is None:
        return None
    pictures: list[Any] = item[name] if isinstance(item[name], list) else [item[name]]
    if not pictures or not all(_is_name(picture) for picture in pictures):
        problems.add(f"field '{name}' must name a picture, or list some", f"{where} has {short(item[name])}")
        return None
    keys = tuple(
        key_of(template, {**item, name: picture, "stem": stem_of(picture)}, where, problems) for picture in pictures
    )
    return None if None in keys else keys


def _is_name(picture: Any) -> bool:
    if isinstance(picture, str):
        return bool(picture.strip())
    return isinstance(picture, int) and not isinstance(picture, bool)
