"""The shuffled-image control of a run: whether another run is one, and how the two differ."""

from __future__ import annotations

from collections.abc import Iterable

from multitask_vl.config.compatibility import training_settings
from multitask_vl.errors import InputError
from multitask_vl.reports.run import Run


def check_control(run: Run, control: Run, split: str | None = None) -> list[str]:
    """Check that ``control`` is a shuffled-image control of ``run``.

    Args:
        run: the run.
        control: the candidate.
        split: a split that is reported in addition to those of the run.

    Returns:
        Notes on further differences; empty if the runs differ only in the images.

    Raises:
        InputError: the candidate was trained without shuffled images, or scored on other tasks, splits or examples.
    """
    if not control.is_control:
        raise InputError(
            f"{control.folder} is not a shuffled-image control: features.shuffle_images is false in its resolved.yaml. "
            f"Run: {control_command(run)}"
        )
    problems = []
    reported = {*run.splits, *([split] if split in run.scores.splits else [])}
    control_splits = control.scores.splits
    if reported - control_splits.keys():
        problems.append(f"it has no scores for split {_names(reported - control_splits.keys())}")
    for name in sorted(reported & control_splits.keys()):
        tasks, control_tasks = run.scores.splits[name].tasks, control_splits[name].tasks
        if tasks.keys() != control_tasks.keys():
            problems.append(f"on split {name} it was scored on {_names(control_tasks)}, this run on {_names(tasks)}")
        for task in (task for task in tasks if task in control_tasks):
            for attribute in ("primary_metric", "version", "count"):
                value, control_value = getattr(tasks[task], attribute), getattr(control_tasks[task], attribute)
                if value != control_value:
                    problems.append(
                        f"{task} on split {name}: its {attribute} is {control_value}, but that of this run is {value}"
                    )
    if problems:
        raise InputError(f"{control.folder} cannot be the control of {run.folder}: {problem}" for problem in problems)
    return _differences(run, control)


def control_command(run: Run) -> str:
    """The command that trains the shuffled-image control of a run."""
    config = run.folder / "resolved.yaml"
    launch = f"accelerate launch launch/train_multitask.py --config {config}"
    return f"{launch} features.shuffle_images=true run_dir={run.folder}_shuffled"


def _differences(run: Run, control: Run) -> list[str]:
    notes = []
    if run.steps != control.steps:
        notes.append(f"The control was trained for {control.steps:,} steps, this run for {run.steps:,}.")
    settings, control_settings = (training_settings(one.config, include_metrics=True) for one in (run, control))
    keys = sorted(
        key for key in settings.keys() | control_settings.keys() if settings.get(key) != control_settings.get(key)
    )
    keys = [key for key in keys if key != "features.shuffle_images"]
    if keys:
        notes.append(f"The control differs from this run in more than its images: {', '.join(keys)}.")
    if run.is_control:
        notes.append("This run is a shuffled-image control itself.")
    return notes


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
