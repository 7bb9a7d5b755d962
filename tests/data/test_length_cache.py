"""Token counts of an example table: right, counted once per tokenizer, and checked against the limits."""

import numpy as np
import pytest

from multitask_vl.config import load_config
from multitask_vl.data import length_cache
from multitask_vl.data.example_table import load_table
from multitask_vl.data.length_cache import row_lengths, token_counts
from multitask_vl.data.token_limits import check_token_limits
from multitask_vl.models.build import load_tokenizer
from multitask_vl.tasks.build import build_tasks
from tests import tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Tasks, tables and tokenizer of a tiny run."""
    folder = tmp_path_factory.mktemp("rows")
    tiny_run.write_dataset(folder)
    config = load_config(tiny_run.write_config(folder, cache_dir=str(folder / "cache")))
    tasks = build_tasks(config)
    tables = {name: load_table(task, "train", config.cache_dir) for name, task in tasks.items()}
    return tasks, tables, load_tokenizer(config.backbone)


def limited(task, **options):
    return type(task)(task.name, task.config.model_copy(update=options), task.data_dir)


def test_row_lengths_order_by_target_then_input_tokens(run):
    tasks, tables, tokenizer = run
    for name, task in tasks.items():
        table = tables[name]
        inputs = [len(tokenizer(task.config.prompt + text).input_ids) for text in table["text"]]
        targets = [max(len(tokenizer(answer).input_ids) for answer in answers) for answers in table["answers"]]
        pairs = [divmod(key, 1 + max(inputs)) for key in row_lengths(task, table, tokenizer)]
        assert pairs == list(zip(targets, inputs, strict=True))


def test_row_lengths_are_after_truncation(run):
    tasks, tables, tokenizer = run
    task, table = tasks["vqa"], tables["vqa"]
    truncated = limited(task, max_input_tokens=4)
    assert row_lengths(truncated, table, tokenizer).max() < row_lengths(task, table, tokenizer).max()


def test_token_counts_are_cached_per_tokenizer_and_prompt(run, monkeypatch):
    _, tables, tokenizer = run
    table = tables["coco_caption"]
    first = token_counts(table, "answers", "", tokenizer)
    longer = token_counts(table, "answers", "a thing ", tokenizer)
    assert (longer > first).all()
    monkeypatch.setattr(length_cache, "_count", lambda *_: pytest.fail("counted again"))
    tokenizer(["what"], truncation=True, max_length=2)  # truncation of the last call is not part of the key
    assert np.array_equal(token_counts(table, "answers", "", tokenizer), first)


def test_token_counts_without_writable_cache(run, monkeypatch):
    _, tables, tokenizer = run
    expected = token_counts(tables["gqa"], "text", "x ", tokenizer)

    def read_only(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(length_cache, "atomic_write", read_only)
    assert np.array_equal(token_counts(tables["gqa"], "text", "x ", tokenizer), expected)
    counts = token_counts(tables["gqa"], "text", "y ", tokenizer)
    assert len(counts) == len(tables["gqa"])


def test_token_limits_report_longest_text_or_count_truncated(run):
    tasks, tables, tokenizer = run
    task, table = tasks["coco_caption"], tables["coco_caption"]
    targets = token_counts(table, "answers", "", tokenizer)
    limit = int(targets.max()) - 1
    strict = limited(task, max_target_tokens=limit)
    problems, truncated = check_token_limits(strict, table, tokenizer, "train", with_targets=True)
    (problem,) = problems
    assert f"{(targets > limit).sum()} targets of split 'train' are longer than max_target_tokens={limit}" in problem
    assert f"(longest: {targets.max()} tokens, '" in problem
    assert truncated == {}
    lenient = limited(task, max_target_tokens=limit, overflow="truncate")
    assert check_token_limits(lenient, table, tokenizer, "train", True) == ([], {"target": (targets > limit).sum()})
    assert check_token_limits(strict, table, tokenizer, "train", with_targets=False) == ([], {})
