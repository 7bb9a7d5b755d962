"""What does a run need before its model, and is it there: one finding for each thing, all of them looked at."""

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
from multitask_vl.data.example_table import column, compiled, made_from
from multitask_vl.data.store.feature_store import FeatureStore, check_manifest
from multitask_vl.data.store.open import open_store
from multitask_vl.data.text_lengths import too_long
from multitask_vl.errors import InputError
from multitask_vl.evaluation.candidates import candidates, choice_ids
from multitask_vl.models.build import load_tokenizer
from multitask_vl.tasks.base import Task
from multitask_vl.tasks.build import build_tasks

T = TypeVar("T")
TRAIN = "train"


@dataclass
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is, in a word or two.
        found: what was found, in a line; empty where that could not be said.
        problems: what keeps a run from starting, each with the command or setting that mends it.
        remarks: what a user should know though nothing is wrong.
        tried: whether it was looked at.
    """

    name: str
    found: str = ""
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    tried: bool = True

    @property
    def state(self) -> str:
        """In a word."""
        if self.problems:
            return "problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        return "ok" if self.tried else "-"

    def skipped(self, why: str) -> None:
        """Note that it was not looked at."""
        self.found, self.tried = why, False

    def look(self, get: Callable[[], T], tell: Callable[[T], str]) -> T | None:
        """What ``get`` gives, told by ``tell``; None, and its problems kept, where it raises InputError."""
        try:
            value = get()
        except InputError as error:
            self.problems += error.problems
            return None
        self.found = tell(value)
        return value


@dataclass
class Needs:
    """What was found; whatever is not there is None or left out, and a finding tells why."""

    findings: list[Finding] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None
    store: FeatureStore | None = None
    tables: dict[tuple[str, str], Dataset] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """Of all findings; one that several splits share is told once."""
        return list(dict.fromkeys(problem for one in self.findings for problem in one.problems))

    @property
    def remarks(self) -> list[str]:
        """Of all findings."""
        return [remark for one in self.findings for remark in one.remarks]

    def finding(self, name: str) -> Finding:
        """A new finding."""
        self.findings.append(Finding(name))
        return self.findings[-1]


def splits_of(config: Config) -> list[str]:
    """Splits that a run works with: the one it trains, and those it scores."""
    return list(dict.fromkeys([TRAIN, *config.evaluation.during, *config.evaluation.final]))


def find_needs(config: Config, splits: list[str], in_turn: Callable[[], AbstractContextManager] = nullcontext) -> Needs:
    """Look at tasks, tokenizer, features, the examples of every task's splits and what scoring them takes.

    Examples are compiled, so what was found is at hand when the run starts.

    Args:
        splits: names under ``splits:``; a task without one of them is left out of it.
        in_turn: makes a context in which one process goes first.
    """
    needs = Needs()
    needs.tasks = needs.finding("tasks").look(lambda: _tasks(config), ", ".join) or {}
    tokenizer = needs.finding("tokenizer")
    needs.tokenizer = tokenizer.look(lambda: load_tokenizer(config.backbone), lambda one: f"{len(one):,} tokens")
    features = needs.finding("feature store")
    needs.store = features.look(lambda: open_store(config.features, config.data_dir), _told)
    if needs.store is not None:
        features.problems += check_manifest(needs.store.manifest, config.clip, config.visual)
    for task in needs.tasks.values():
        for split in splits:
            _examples(needs, config, task, split, in_turn)
        _scoring(needs, config, task, splits)
    _best(needs, config, splits)
    return needs


def _tasks(config: Config) -> dict[str, Task]:
    tasks = build_tasks(config)
    if not tasks:
        raise InputError("tasks: at least one task is needed; compose one of configs/tasks/*.yaml")
    return tasks


def _told(store: FeatureStore) -> str:
    made = store.manifest
    cells = " x ".join(map(str, (*made.grid, made.dim)))
    return f"{len(store):,} images, {cells}, by {made.encoder} ({made.weights_tag})"


def _examples(
    needs: Needs, config: Config, task: Task, split: str, in_turn: Callable[[], AbstractContextManager]
) -> None:
    finding = needs.finding(f"{task.name} {split}")
    if split not in task.config.splits:
        if split == TRAIN:
            finding.problems.append(f"tasks.{task.name}.splits: there is no 'train' among {sorted(task.config.splits)}")
        finding.remarks.append(f"task {task.name} has no split '{split}' and is left out of it")
        finding.found = "no such split"
        return
    cache = config.cache_dir or config.data_dir / ".cache"
    expected = " as expected" if getattr(task.config.splits[split], "expected_count", None) else ""
    with in_turn():
        table = finding.look(lambda: compiled(task, split, cache), lambda found: f"{len(found):,} examples{expected}")
    if table is None:
        return
    needs.tables[task.name, split] = table
    where = f"task {task.name}, split {split}"
    finding.remarks += [f"{where}: {what}: {count:,}" for what, count in made_from(table)["remarks"].items()]
    most = pc.max(pc.list_value_length(column(table, "images"))).as_py()
    if most > config.visual.max_images:
        finding.problems.append(
            f"tasks.{task.name}: an example of split '{split}' has {most} images; set visual.max_images={most}"
        )
    keys = image_keys(table)
    finding.found += f", {len(keys):,} images"
    if needs.store is not None:
        missing = needs.store.missing(keys)
        finding.problems += missing_features(task, missing, len(keys), split)
        finding.found += f", {len(missing):,} of them without features" if missing else ""
    if needs.tokenizer is not None:
        long, cut = too_long(task, table, needs.tokenizer, split, with_targets=split == TRAIN)
        finding.problems += long
        finding.remarks += [f"{where}: {count} {kind}s are cut" for kind, count in cut.items()]


def _best(needs: Needs, config: Config, splits: list[str]) -> None:
    """Scores by which a checkpoint is to be kept must be taken."""
    wanted = config.training.keep_best
    if wanted is None or TRAIN not in splits or not needs.tasks:
        return
    scored = [task.name for task in needs.tasks.values() if wanted.split in task.config.splits]
    never = [name for name in wanted.metrics if name not in scored and (name in needs.tasks or not scored)]
    if never:
        needs.finding("best").problems.append(
            f"training.keep_best: split {wanted.split!r} gives no {' and no '.join(never)} (tasks that have it: "
            f"{', '.join(scored) or 'none'}); name another split or other scores"
        )


def _scoring(needs: Needs, config: Config, task: Task, splits: list[str]) -> None:
    """How predictions are chosen and scored; nothing where no split of the task is."""
    trained_only = {TRAIN} - {*config.evaluation.during, *config.evaluation.final}
    if not [split for split in splits if split in task.config.splits and split not in trained_only]:
        return
    finding = needs.finding(f"{task.name} scores")
    if task.decoding.kind == "choice" and needs.tokenizer is not None:
        finding.look(lambda: choice_ids(task, needs.tokenizer), lambda _: "")
    if task.decoding.kind == "rank" and needs.tokenizer is not None:
        finding.look(lambda: candidates(task, needs.tokenizer), lambda found: f"{len(found[0]):,} answers to rank")
    tokenizer = config.evaluation.caption_tokenizer
    remarks = finding.look(lambda: task.check_scoring(caption_tokenizer=tokenizer), lambda _: task.headline)
    finding.remarks += [f"task {task.name}: {remark}" for remark in remarks or []]
