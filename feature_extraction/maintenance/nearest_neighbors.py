"""Nearest neighbors of images by their features, and a contact sheet that shows them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from feature_extraction.images.image_sources import ImageFile
from feature_extraction.images.preprocessing import ImageDecodeError, load_rgb
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.errors import InputError

GAP, TITLE_HEIGHT, CAPTION_HEIGHT = 6, 22, 14
BATCH = 256


def find_neighbors(
    store: FeatureStore, queries: Sequence[str], candidates: Sequence[str], count: int
) -> list[list[tuple[str, float]]]:
    """Find the nearest other images of each query, nearest first, with their cosine similarity.

    An image is represented by the mean of its grid cells, minus the mean over `candidates`, which removes what all
    images share.

    Args:
        store: the features.
        queries: image keys, all of them in `candidates`.
        candidates: image keys to search.
        count: neighbors per query.
    """
    pooled = np.concatenate(
        [
            store.get_many(candidates[start : start + BATCH]).astype(np.float32).mean(1)
            for start in range(0, len(candidates), BATCH)
        ]
    )
    pooled -= pooled.mean(0)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True).clip(1e-12)
    position = {key: index for index, key in enumerate(candidates)}
    neighbors = []
    for key in queries:
        cosines = pooled @ pooled[position[key]]
        order = [index for index in np.argsort(-cosines, kind="stable") if candidates[index] != key][:count]
        neighbors.append([(candidates[index], float(cosines[index])) for index in order])
    return neighbors


def contact_sheet(
    files: dict[str, ImageFile],
    queries: Sequence[str],
    columns: Sequence[tuple[str, list[list[tuple[str, float]]]]],
    side: int = 96,
) -> tuple[Image.Image, dict[str, str]]:
    """Draw one line per query: the image, then its neighbors by each store, with their cosines.

    Args:
        files: image key -> file.
        queries: image keys, one per line.
        columns: title and `find_neighbors` of each store.
        side: side of an image in pixels; images are cropped to squares.

    Returns:
        the sheet, and key -> reason of the images that cannot be decoded; they are drawn gray.
    """
    unreadable: dict[str, str] = {}
    counts = [len(neighbors[0]) for _, neighbors in columns]
    width = side + sum(3 * GAP + count * (side + GAP) for count in counts) + 2 * GAP
    line_height = side + CAPTION_HEIGHT + GAP
    sheet = Image.new("RGB", (width, TITLE_HEIGHT + len(queries) * line_height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((GAP, 4), "image", "black", font)
    for line, key in enumerate(queries):
        sheet.paste(_thumbnail(key, files, side, unreadable), (GAP, TITLE_HEIGHT + line * line_height))
    left = side + GAP
    for (title, rows), count in zip(columns, counts, strict=True):
        left += 3 * GAP
        draw.text((left, 4), title, "black", font)
        for line, neighbors in enumerate(rows):
            top = TITLE_HEIGHT + line * line_height
            for column, (key, cosine) in enumerate(neighbors):
                x = left + column * (side + GAP)
                sheet.paste(_thumbnail(key, files, side, unreadable), (x, top))
                draw.text((x, top + side), f"{cosine:.2f}", "black", font)
        left += count * (side + GAP)
    return sheet, unreadable


def sample_keys(keys: Sequence[str], count: int, seed: int) -> list[str]:
    """Draw keys at random without replacement, sorted; all of them if there are fewer than ``count``."""
    indices = np.random.default_rng(seed).choice(len(keys), min(count, len(keys)), replace=False)
    return [keys[index] for index in sorted(indices)]


def common_keys(stores: Sequence[FeatureStore], files: dict[str, ImageFile]) -> list[str]:
    """Return the keys of the images that have features in all stores.

    Raises:
        InputError: there are fewer than two.
    """
    keys = [key for key in files if all(key in store for store in stores)]
    if len(keys) < 2:
        raise InputError(
            f"{len(keys)} of {len(files):,} images have features in every store; at least two are needed. List them: "
            "multitask-vl store verify STORE --images FOLDER"
        )
    return keys


def _thumbnail(key: str, files: dict[str, ImageFile], side: int, unreadable: dict[str, str]) -> Image.Image:
    try:
        image, _ = load_rgb(files[key])
    except ImageDecodeError as error:
        unreadable[key] = str(error)
        return Image.new("RGB", (side, side), "gray")
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
