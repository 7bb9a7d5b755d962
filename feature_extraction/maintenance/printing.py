"""Printed results of the store commands: text, or one JSON object."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from feature_extraction.maintenance.inspection import Verification
from feature_extraction.maintenance.stats import OUTLIER_THRESHOLD, QUANTILES, StoreStats
from multitask_vl.data.store.manifest import EXTRACT_COMMAND

MAX_SHOWN = 10


def print_manifest(description: dict[str, Any], as_json: bool) -> None:
    """Print the result of `inspection.describe`."""
    if as_json:
        print(json.dumps(description, ensure_ascii=False))
        return
    files, rows, done = description["files"], description["rows"], description["done"]
    on_disk = description["bytes_on_disk"]
    fields = {
        "files": ", ".join(file["path"] for file in files),
        "rows": f"{rows:,}, of which {done:,} done ({100 * done / rows:.1f} %)",
        "bytes": f"{description['bytes']:,} ({description['bytes_per_row']:,} per image)",
        "on disk": "unknown" if on_disk is None else f"{on_disk:,}",
        "first key": description["first_key"],
        **description["manifest"],
    }
    for name, value in fields.items():
        print(f"{name:<16}{_format(value)}")
    if len(files) > 1:
        for file in files:
            print(f"{'':<16}{file['path']}: {file['done']:,} of {file['rows']:,} done")


def print_verification(store: Path | str, result: Verification, as_json: bool) -> None:
    """Print the result of `inspection.verify` and how to fix the problems."""
    if as_json:
        print(json.dumps({"store": str(store), "ok": result.ok, **dataclasses.asdict(result)}, ensure_ascii=False))
        return
    print(f"{store}: {result.valid:,} of {result.rows:,} rows are valid")
    print_list("rows are corrupt (checksum)", result.corrupt)
    print_list("rows are not extracted yet", result.missing)
    print_list("images have no row", result.uncovered)
    if result.extra_rows:
        print(f"{result.extra_rows:,} rows belong to images that are not in these folders")
    if not result.ok:
        print(f"to fix all of this, run: {EXTRACT_COMMAND}")


def print_stats(store: Path | str, stats: StoreStats, as_json: bool) -> None:
    """Print the result of `stats.compute_stats`."""
    if as_json:
        print(json.dumps({"store": str(store), "ok": stats.ok, **stats.as_json()}, ensure_ascii=False))
        return
    print(f"{store}: {stats.rows_read:,} of {stats.rows:,} rows read, {len(stats.channel_means):,} channels")
    if len(stats.channel_means):
        print(f"values from {stats.min:.4g} to {stats.max:.4g}, {100 * stats.zero_fractions.mean():.1f} % are zero")
        print(f"{'':<34}{''.join(f'{name:>11}' for name in ('min', '5 %', 'median', '95 %', 'max'))}")
        for name, values in (
            ("mean of a channel", stats.channel_means),
            ("standard deviation of a channel", stats.channel_stds),
            ("fraction of zeros of a channel", stats.zero_fractions),
        ):
            _print_quantiles(name, np.quantile(values, QUANTILES))
        _print_quantiles("norm of an image (mean of cells)", stats.norms)
        if len(stats.zero_channels):
            print(f"{len(stats.zero_channels):,} channels are zero everywhere (first: {stats.zero_channels[0]})")
    print_list("rows are corrupt (checksum)", stats.corrupt)
    print_list("rows have values that are not finite", stats.nonfinite)
    print_list("rows are all zeros", stats.all_zero)
    print_list("rows are constant (all grid cells equal)", stats.constant)
    print_list(
        f"images have a norm more than {OUTLIER_THRESHOLD:g} robust standard deviations from the median",
        [f"{key}: {norm:.4g}" for key, norm in stats.outliers.items()],
    )
    print_list("groups of images have identical features", [", ".join(keys[:5]) for keys in stats.duplicates])


def print_list(description: str, entries: Iterable[str]) -> None:
    """Print the number of entries and the first `MAX_SHOWN`; nothing if there are none."""
    entries = list(entries)
    if entries:
        print(f"{len(entries):,} {description}:")
        for entry in entries[:MAX_SHOWN]:
            print(f"  {entry}")
        if len(entries) > MAX_SHOWN:
            print(f"  ... and {len(entries) - MAX_SHOWN:,} more")


def _print_quantiles(name: str, values: Iterable[float]) -> None:
    print(f"{name:<34}{''.join(f'{value:>11.4g}' for value in values)}")


def _format(value: object) -> str:
    if value is None:
        return "unknown"
    return " x ".join(map(str, value)) if isinstance(value, list) and len(value) == 2 else str(value)
