"""Is that other run a blind control of this one, and in what else do the two differ."""

from __future__ import annotations

from typing import Any

from multitask_vl.errors import InputError
from multitask_vl.reports.run import Run

# Settings that decide where and how fast a run goes, not what it learns.
INCIDENTAL = frozenset(
    {
        "run_dir",
        "cache_dir",
        "training.resume",
        "training.workers",
        "training.log_every",
        "training.checkpoint_every",
        "training.keep_checkpoints",
        "features.workers",
        "features.batch_size",
        "training.on_oom",
        "training.micro_batch_size",
        "tracking.trackers",
        "tracking.project",
        "tracking.init",
        "tracking.line_every",
    }
)


def flat(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    """A configuration as dotted path -> value, incidental settings left out."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{above}{key}"
        if isinstance(value, dict) and value:
            values |= flat(value, f"{path}.")
        elif path not in INCIDENTAL:
            values[path] = value
    return values


def check_control(run: Run, control: Run, split: str | None = None) -> list[str]:
    """What a reader must know about the comparison, as sentences for notes; empty where the two runs are twins.

    Args:
        split: shown beside those of the run's report.

    Raises:
        InputError: the other run saw its own pictures, or was scored on other tasks, splits or examples.
    """
    if not control.is_control:
        raise InputError(
            f"{control.folder} is not a blind control: features.control is 'none' in its resolved.yaml, so it saw the "
            f"right pictures. Run: {control_command(run)}"
        )
    problems = []
    shown = {*run.splits, *([split] if split in run.scores.splits else [])}
    scored = control.scores.splits
    if shown - scored.keys():
        problems.append(f"it has no scores for split {_names(shown - scored.keys())}")
    for name in sorted(shown & scored.keys()):
        ours, theirs = run.scores.splits[name].tasks, scored[name].tasks
        if ours.keys() != theirs.keys():
            problems.append(f"on split {name} it was scored on {_names(theirs)}, this run on {_names(ours)}")
        for task in (task for task in ours if task in theirs):
            for what in ("headline", "version", "count"):
                mine, other = getattr(ours[task], what), getattr(theirs[task], what)
                if mine != other:
                    problems.append(f"{task} on split {name}: its {what} is {other}, this run's is {mine}")
    if problems:
        raise InputError(f"{control.folder} cannot be the control of {run.folder}: {problem}" for problem in problems)
    return _differences(run, control)


def control_command(run: Run) -> str:
    """The command that trains the blind control of a run."""
    config = run.folder / "resolved.yaml"
    launch = f"accelerate launch launch/train_multitask.py --config {config}"
    return f"{launch} features.control=shuffled run_dir={run.folder}_blind"


def _differences(run: Run, control: Run) -> list[str]:
    notes = []
    if run.steps != control.steps:
        notes.append(f"The control was trained for {control.steps:,} steps, this run for {run.steps:,}.")
    ours, theirs = flat(run.config), flat(control.config)
    others = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    others = [key for key in others if key != "features.control"]
    if others:
        notes.append(f"The control differs from this run in more than its pictures: {', '.join(others)}.")
    if run.is_control:
        notes.append("This run is a blind control itself.")
    return notes


def _names(names) -> str:
    return ", ".join(sorted(names))
