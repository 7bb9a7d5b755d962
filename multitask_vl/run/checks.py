"""Checks of everything a run needs before its model is built."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from multitask_vl.config.schema import Config
from multitask_vl.data.collate import image_keys, missing_features
from multitask_vl.data.example_table import arrow_column, load_table, table_provenance
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.manifest import check_manifest
from multitask_vl.data.store.open import open_store
from multitask_vl.data.token_limits import check_token_limits
from multitask_vl.errors import InputError
from multitask_vl.evaluation.candidates import choice_token_ids, tokenize_candidates
from multitask_vl.models.build import load_tokenizer
from multitask_vl.tasks.base import Task
from multitask_vl.tasks.build import build_tasks

T = TypeVar("T")
TRAIN = "train"


@dataclass
class Check:
    """Outcome of one check.

    Attributes:
        name: what is checked.
        detail: what was found, in one line; empty if the check failed.
        problems: what keeps a run from starting, each with the command or setting that fixes it.
        warnings: what is worth knowing although nothing is wrong.
        ran: False for a skipped check.
    """

    name: str
    detail: str = ""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ran: bool = True

    @property
    def state(self) -> str:
        """Outcome as shown in a table."""
        if self.problems:
            return "problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        return "ok" if self.ran else "skipped"

    def skip(self, reason: str) -> None:
        """Mark the check as skipped."""
        self.detail, self.ran = reason, False

    def run(self, get: Callable[[], T], describe: Callable[[T], str]) -> T | None:
        """Return what ``get`` returns and keep its description; None, with the problems kept, on InputError."""
        try:
            value = get()
        except InputError as error:
            self.problems += error.problems
            return None
        self.detail = describe(value)
        return value


@dataclass
class RunInputs:
    """Inputs of a run. What is missing is None or absent, and a check has the reason.

    Attributes:
        checks: in the order in which they ran.
        tables: examples by (task, split).
    """

    checks: list[Check] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None
    store: FeatureStore | None = None
    tables: dict[tuple[str, str], Dataset] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """Problems of all checks; one that several splits share is listed once."""
        return list(dict.fromkeys(problem for check in self.checks for problem in check.problems))

    @property
    def warnings(self) -> list[str]:
        """Warnings of all checks."""
        return [warning for check in self.checks for warning in check.warnings]

    def add_check(self, name: str) -> Check:
        """Add a check."""
        self.checks.append(Check(name))
        return self.checks[-1]


def configured_splits(config: Config) -> list[str]:
    """Return the splits of a training run: the one to train on and those to evaluate."""
    return list(dict.fromkeys([TRAIN, *config.evaluation.eval_splits, *config.evaluation.final_splits]))


def check_inputs(
    config: Config,
    splits: list[str],
    main_process_first: Callable[[], AbstractContextManager] = nullcontext,
) -> RunInputs:
    """Check tasks, tokenizer, features, the examples of every task's splits and what scoring them needs.

    The tables of examples are built on the way, so a run that starts next finds them.

    Args:
        splits: names under ``splits:``; a task that lacks one of them is skipped for it.
        main_process_first: creates a context in which the main process goes first.
    """
    inputs = RunInputs()
    inputs.tasks = inputs.add_check("tasks").run(lambda: _tasks(config), ", ".join) or {}
    tokenizer = inputs.add_check("tokenizer")
    inputs.tokenizer = tokenizer.run(lambda: load_tokenizer(config.backbone), lambda loaded: f"{len(loaded):,} tokens")
    features = inputs.add_check("feature store")
    inputs.store = features.run(lambda: open_store(config.features, config.data_dir), _describe_store)
    if inputs.store is not None:
        features.problems += check_manifest(inputs.store.manifest, config.vision, config.visual)
    for task in inputs.tasks.values():
        for split in splits:
            _check_examples(inputs, config, task, split, main_process_first)
        _check_scoring(inputs, config, task, splits)
    _check_keep_best(inputs, config, splits)
    return inputs


def _tasks(config: Config) -> dict[str, Task]:
    tasks = build_tasks(config)
    if not tasks:
        raise InputError("tasks: at least one task is needed; compose one of configs/tasks/*.yaml")
    return tasks


def _describe_store(store: FeatureStore) -> str:
    manifest = store.manifest
    shape = " x ".join(map(str, (*manifest.grid, manifest.dim)))
    return f"{len(store):,} images, {shape}, by {manifest.encoder} ({manifest.weights_tag})"


def _check_examples(
    inputs: RunInputs,
    config: Config,
    task: Task,
    split: str,
    main_process_first: Callable[[], AbstractContextManager],
) -> None:
    check = inputs.add_check(f"{task.name} {split}")
    if split not in task.config.splits:
        if split == TRAIN:
            check.problems.append(f"tasks.{task.name}.splits: there is no 'train' among {sorted(task.config.splits)}")
        check.warnings.append(f"task {task.name} has no split '{split}' and is skipped for it")
        check.detail = "no such split"
        return
    cache = config.cache_dir or config.data_dir / ".cache"
    expected = " as expected" if getattr(task.config.splits[split], "expected_count", None) else ""
    with main_process_first():
        table = check.run(lambda: load_table(task, split, cache), lambda rows: f"{len(rows):,} examples{expected}")
    if table is None:
        return
    inputs.tables[task.name, split] = table
    where = f"task {task.name}, split {split}"
    reading = table_provenance(table)["warnings"]
    check.warnings += [f"{where}: {message}: {count:,}" for message, count in reading.items()]
    max_images = pc.max(pc.list_value_length(arrow_column(table, "images"))).as_py()
    if max_images > config.visual.max_images:
        check.problems.append(
            f"tasks.{task.name}: an example of split '{split}' has {max_images} images; set "
            f"visual.max_images={max_images}"
        )
    keys = image_keys(table)
    check.detail += f", {len(keys):,} images"
    if inputs.store is not None:
        missing = inputs.store.missing(keys)
        check.problems += missing_features(task, missing, len(keys), split)
        check.detail += f", {len(missing):,} of them without features" if missing else ""
    if inputs.tokenizer is not None:
        problems, truncated = check_token_limits(task, table, inputs.tokenizer, split, with_targets=split == TRAIN)
        check.problems += problems
        check.warnings += [f"{where}: {count} {kind}s are truncated" for kind, count in truncated.items()]


def _check_keep_best(inputs: RunInputs, config: Config, splits: list[str]) -> None:
    """Check that the scores that choose the best checkpoint are computed."""
    settings = config.training.keep_best
    if settings is None or TRAIN not in splits or not inputs.tasks:
        return
    scored = [task.name for task in inputs.tasks.values() if settings.split in task.config.splits]
    absent = [name for name in settings.metrics if name not in scored and (name in inputs.tasks or not scored)]
    if absent:
        inputs.add_check("best checkpoint").problems.append(
            f"training.keep_best: split {settings.split!r} has no score {' and no score '.join(absent)} (tasks that "
            f"have it: {', '.join(scored) or 'none'}); set another split or other metrics"
        )


def _check_scoring(inputs: RunInputs, config: Config, task: Task, splits: list[str]) -> None:
    """Check how predictions are decoded and scored, if any split of the task is evaluated."""
    train_only = {TRAIN} - {*config.evaluation.eval_splits, *config.evaluation.final_splits}
    if not [split for split in splits if split in task.config.splits and split not in train_only]:
        return
    check, tokenizer = inputs.add_check(f"{task.name} scores"), inputs.tokenizer
    if task.decoding.mode == "classify" and tokenizer is not None:
        check.run(lambda: choice_token_ids(task, tokenizer), lambda _: "")
    if task.decoding.mode == "rank" and tokenizer is not None:
        check.run(lambda: tokenize_candidates(task, tokenizer), lambda found: f"{len(found[0]):,} answers to rank")
    caption_tokenizer = config.evaluation.caption_tokenizer
    warnings = check.run(lambda: task.check_scoring(caption_tokenizer=caption_tokenizer), lambda _: task.primary_metric)
    check.warnings += [f"task {task.name}: {warning}" for warning in warnings or []]
