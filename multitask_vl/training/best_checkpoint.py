"""Which checkpoint is the best so far, by which score: told from metrics.jsonl, kept, and found under a name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multitask_vl.config.schema import KeepBestConfig
from multitask_vl.storage.atomic import write_whole
from multitask_vl.training import checkpoint

INDEX = "best.json"
AVERAGE = "average"


@dataclass(frozen=True)
class Best:
    """The best checkpoint by one score.

    Attributes:
        step: steps it had taken.
        value: its score, 0-100.
    """

    step: int
    value: float


def evaluations(metrics: Path) -> list[dict]:
    """Rows of metrics.jsonl that hold scores, in order; a line cut short by a death is none."""
    rows = []
    for line in metrics.read_text(errors="replace").splitlines() if metrics.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "scores" in row:
            rows.append(row)
    return rows


def splits_left(metrics: Path, step: int, splits: Sequence[str]) -> list[str]:
    """Which of the splits that are scored after ``step`` have no row yet: a death may have come in between."""
    there = {row["split"] for row in evaluations(metrics) if row["step"] == step and not row.get("final")}
    return [split for split in splits if split not in there]


def find_best(
    rows: Iterable[Mapping], wanted: KeepBestConfig, steps: Iterable[int], limit: int | None = None
) -> dict[str, Best]:
    """Score -> the best of ``steps`` by it; the earlier one of equals.

    A function of what is on the disk, so a run that died between scoring and keeping finds the same.

    Args:
        rows: as of `evaluations`.
        steps: those that have a checkpoint.
        limit: `evaluation.limit`; scores of more or fewer examples are not comparable and left out.
    """
    steps, found = set(steps), {}
    for row in rows:
        if row["split"] != wanted.split or row.get("limit") != limit or row["step"] not in steps or not row["scores"]:
            continue
        scores = {**row["scores"], AVERAGE: sum(row["scores"].values()) / len(row["scores"])}
        for name in wanted.metrics:
            if name in scores and (name not in found or scores[name] > found[name].value):
                found[name] = Best(row["step"], scores[name])
    return found


def keep_best(folder: Path, metrics: Path, wanted: KeepBestConfig | None, limit: int | None = None) -> set[int]:
    """Write ``best.json`` and a link ``best-NAME`` for each score into the folder of checkpoints.

    Returns:
        steps whose checkpoints must stay.
    """
    if wanted is None or not folder.exists():
        return set()
    have = {checkpoint.step_of(path): path for path in checkpoint.steps(folder)}
    found = find_best(evaluations(metrics), wanted, have, limit)
    index = {
        name: {"split": wanted.split, "value": best.value, "step": best.step, "checkpoint": have[best.step].name}
        for name, best in found.items()
    }
    write_whole(folder / INDEX, json.dumps(index, indent=1) + "\n")
    for name, best in found.items():
        link, writing = folder / f"best-{name}", folder / f".best-{name}.writing"
        writing.unlink(missing_ok=True)
        writing.symlink_to(have[best.step].name)
        os.replace(writing, link)
    for link in folder.glob("best-*"):
        if link.is_symlink() and link.name.removeprefix("best-") not in found:
            link.unlink()
    return {best.step for best in found.values()}
