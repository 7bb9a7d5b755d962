"""Do the features see what people see: a contact sheet of pictures with their nearest neighbours in a store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from feature_extraction.images.image_sources import ImageFile
from feature_extraction.images.preprocessing import Unreadable, read_upright
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.errors import InputError

GAP, TITLE, CAPTION = 6, 22, 14
BATCH = 256


def nearest(
    store: FeatureStore, queries: Sequence[str], among: Sequence[str], count: int
) -> list[list[tuple[str, float]]]:
    """The nearest other images of each query, nearest first, with their cosine.

    An image is the mean of its cells, less the mean over `among`, so that what all images share does not count.

    Args:
        store: where the features are.
        queries: image keys, out of `among`.
        among: image keys to look through.
        count: neighbours of each.
    """
    pooled = np.concatenate(
        [store.get_many(among[at : at + BATCH]).astype(np.float32).mean(1) for at in range(0, len(among), BATCH)]
    )
    pooled -= pooled.mean(0)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True).clip(1e-12)
    at = {key: number for number, key in enumerate(among)}
    found = []
    for key in queries:
        cosines = pooled @ pooled[at[key]]
        order = [number for number in np.argsort(-cosines, kind="stable") if among[number] != key][:count]
        found.append([(among[number], float(cosines[number])) for number in order])
    return found


def contact_sheet(
    paths: dict[str, ImageFile],
    queries: Sequence[str],
    columns: Sequence[tuple[str, list[list[tuple[str, float]]]]],
    side: int = 96,
) -> tuple[Image.Image, dict[str, str]]:
    """One line for each query: the picture, then its neighbours by each store, with their cosines.

    Args:
        paths: key -> where its picture lies.
        queries: keys, one for each line.
        columns: title and `nearest` of each store.
        side: of a picture, in pixels; pictures are cut to squares.

    Returns:
        the sheet, and key -> reason of the pictures that cannot be read, for which grey stands.
    """
    unreadable: dict[str, str] = {}
    counts = [len(found[0]) for _, found in columns]
    width = side + sum(3 * GAP + count * (side + GAP) for count in counts) + 2 * GAP
    height = TITLE + len(queries) * (side + CAPTION + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((GAP, 4), "picture", "black", font)
    for line, key in enumerate(queries):
        top = TITLE + line * (side + CAPTION + GAP)
        sheet.paste(_square(key, paths, side, unreadable), (GAP, top))
    left = side + GAP
    for (title, found), count in zip(columns, counts, strict=True):
        left += 3 * GAP
        draw.text((left, 4), title, "black", font)
        for line, neighbours in enumerate(found):
            top = TITLE + line * (side + CAPTION + GAP)
            for place, (key, cosine) in enumerate(neighbours):
                x = left + place * (side + GAP)
                sheet.paste(_square(key, paths, side, unreadable), (x, top))
                draw.text((x, top + side), f"{cosine:.2f}", "black", font)
        left += count * (side + GAP)
    return sheet, unreadable


def spread_out(keys: Sequence[str], count: int, seed: int) -> list[str]:
    """Some keys drawn at random, sorted."""
    drawn = np.random.default_rng(seed).choice(len(keys), min(count, len(keys)), replace=False)
    return [keys[at] for at in sorted(drawn)]


def in_both(stores: Sequence[FeatureStore], paths: dict[str, ImageFile]) -> list[str]:
    """Keys of the pictures that all stores have features of.

    Raises:
        InputError: fewer than two.
    """
    keys = [key for key in paths if all(key in store for store in stores)]
    if len(keys) < 2:
        raise InputError(
            f"{len(keys)} of {len(paths):,} pictures have features in every store; at least two are needed. See which: "
            "python -m feature_extraction.maintenance.manage verify STORE --images FOLDER"
        )
    return keys


def _square(key: str, paths: dict[str, ImageFile], side: int, unreadable: dict[str, str]) -> Image.Image:
    try:
        picture, _ = read_upright(paths[key])
    except Unreadable as error:
        unreadable[key] = str(error)
        return Image.new("RGB", (side, side), "grey")
    return ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
