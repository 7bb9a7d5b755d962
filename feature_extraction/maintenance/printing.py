"""How is what was found in a store told: lines for people, one JSON object for machines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from feature_extraction.maintenance.inspection import Verdict
from feature_extraction.maintenance.stats import FAR, QUANTILES, Stats

SHOWN = 10
AGAIN = "python launch/extract_features.py --config CONFIG"


def description(found: dict[str, Any], as_json: bool) -> None:
    """Print what `describe` found."""
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    files = found["files"]
    on_disk = found["bytes_on_disk"]
    lines = {
        "files": ", ".join(one["path"] for one in files),
        "rows": f"{found['rows']:,}, of which {found['done']:,} done ({100 * found['done'] / found['rows']:.1f} %)",
        "bytes": f"{found['bytes']:,} ({found['bytes_of_an_image']:,} an image)",
        "on disk": "not known" if on_disk is None else f"{on_disk:,}",
        "first key": found["first_key"],
        **found["manifest"],
    }
    for name, value in lines.items():
        print(f"{name:<16}{_shown(value)}")
    if len(files) > 1:
        for one in files:
            print(f"{'':<16}{one['path']}: {one['done']:,} of {one['rows']:,} done")


def verdict(store: Path | str, found: Verdict, as_json: bool) -> None:
    """Print what `verify` found and how to mend it."""
    if as_json:
        print(json.dumps({"store": str(store), "sound": found.sound, **dataclasses.asdict(found)}, ensure_ascii=False))
        return
    print(f"{store}: {found.good:,} of {found.rows:,} rows are good")
    listed("rows are damaged (checksum)", found.damaged)
    listed("rows are not extracted yet", found.undone)
    listed("images have no row", found.absent)
    if found.beyond:
        print(f"{found.beyond:,} rows belong to images that are not in these folders")
    if not found.sound:
        print(f"mend all of this by: {AGAIN}")


def stats(store: Path | str, found: Stats, as_json: bool) -> None:
    """Print what `look_at` found."""
    if as_json:
        print(json.dumps({"store": str(store), "sound": found.sound, **found.as_json()}, ensure_ascii=False))
        return
    print(f"{store}: {found.read:,} of {found.rows:,} rows looked at, {len(found.means):,} channels")
    if len(found.means):
        print(f"numbers from {found.least:.4g} to {found.most:.4g}, {100 * found.zeros.mean():.1f} % of them zero")
        print(f"{'':<34}{''.join(f'{name:>11}' for name in ('least', '5 %', 'median', '95 %', 'most'))}")
        for name, values in (
            ("mean of a channel", found.means),
            ("standard deviation of a channel", found.spreads),
            ("share of zeros of a channel", found.zeros),
        ):
            _quantiles(name, np.quantile(values, QUANTILES))
        _quantiles("norm of an image (mean of cells)", found.norms)
        dead = found.dead_channels
        if len(dead):
            print(f"{len(dead):,} channels are zero everywhere (first: {dead[0]})")
    listed("rows are damaged (checksum)", found.damaged)
    listed("rows hold numbers that are not finite", found.not_finite)
    listed("rows are dead (all zeros)", found.dead)
    listed("rows are constant (all cells alike)", found.constant)
    listed(
        f"images have a norm further than {FAR:g} robust deviations from the median",
        [f"{key}: {norm:.4g}" for key, norm in found.far.items()],
    )
    listed("groups of images have the same features bit by bit", [", ".join(keys[:5]) for keys in found.alike])


def listed(what: str, entries: Iterable[str]) -> None:
    """Print how many there are and the first of them; nothing where there are none."""
    entries = list(entries)
    if entries:
        print(f"{len(entries):,} {what}:")
        for entry in entries[:SHOWN]:
            print(f"  {entry}")
        if len(entries) > SHOWN:
            print(f"  ... and {len(entries) - SHOWN:,} more")


def _quantiles(name: str, values: Iterable[float]) -> None:
    print(f"{name:<34}{''.join(f'{value:>11.4g}' for value in values)}")


def _shown(value: object) -> str:
    if value is None:
        return "not known"
    return " x ".join(map(str, value)) if isinstance(value, list) and len(value) == 2 else str(value)
