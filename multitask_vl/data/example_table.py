"""Example tables: the examples of each split, read once and cached as a memory-mapped Arrow file."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, List, Value

from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import atomic_write_json
from multitask_vl.storage.file_lock import FileLock
from multitask_vl.storage.hashing import file_sha256, json_sha256
from multitask_vl.tasks import base
from multitask_vl.tasks.base import Example, Task
from multitask_vl.tasks.readers import json_stream

# Increment when the columns or their meaning change, so that cached tables are rebuilt.
FORMAT = 1
FEATURES = Features(
    {
        "id": Value("string"),
        "images": List(Value("string")),
        "text": Value("string"),
        "answers": List(Value("string")),
        "scores": List(Value("float64")),
        "meta": Value("string"),
    }
)
_TABLE_FILE, _INFO_FILE = "examples.arrow", "about.json"
_ROWS_PER_BATCH = 10_000
_READER_PACKAGES = ("multitask_vl.tasks.", "multitask_vl.metrics.")


def load_table(task: Task, split: str, cache_dir: Path) -> Dataset:
    """Return the examples of a split as a memory-mapped table, built at the first call and cached.

    The cache key covers the content of the source files, the options that reading depends on and the code of the
    readers, so that a changed file, option or reader leads to a new table. Processes that start together wait for the
    first; a process killed while writing leaves no file that could be mistaken for a table. The caches, fingerprints
    and progress bars of `datasets` are not used: the file is an Arrow stream that `Dataset.from_file` maps.

    Args:
        cache_dir: gets ``examples/<task>-<split>-<key>/`` with the table and ``about.json``; safe to delete.

    Returns:
        columns id, images, text, answers, scores, meta (a JSON object as text); see `Example`.

    Raises:
        InputError: missing or malformed sources, a duplicate id, no examples, or not `expected_count` of them.
    """
    key_parts = _cache_key_parts(task, split)
    parent = Path(cache_dir).expanduser() / "examples"
    folder = parent / f"{task.name}-{split}-{json_sha256(key_parts)[:16]}"
    if not (folder / _TABLE_FILE).is_file():
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with FileLock(parent / f".{folder.name}", wait=True):
                if not (folder / _TABLE_FILE).is_file():
                    _build(task, split, folder, key_parts)
        except OSError as error:
            raise InputError(
                f"cache_dir: cannot write to {parent}: {error.strerror or error}. Set cache_dir to a folder with room"
            ) from error
    return Dataset.from_file(str(folder / _TABLE_FILE))


def example_from_row(row: dict[str, Any]) -> Example:
    """Return the example in a row of an example table."""
    return Example(
        id=row["id"],
        images=tuple(row["images"]),
        text=row["text"],
        answers=tuple(row["answers"]),
        scores=tuple(row["scores"]),
        meta=json.loads(row["meta"]),
    )


def arrow_column(table: Dataset, name: str) -> pa.ChunkedArray:
    """Return a column in Arrow form, for computations over every row without Python objects."""
    return table.select_columns([name]).with_format("arrow")[:][name]


def table_provenance(table: Dataset) -> dict[str, Any]:
    """Return ``{"examples": rows, "files": {name: SHA-256}, "warnings": {message: number of items}}`` of a table.

    Warnings are about items that reading changed, or dropped as configured.
    """
    info = json.loads((Path(table.cache_files[0]["filename"]).parent / _INFO_FILE).read_text(encoding="utf-8"))
    files = dict(zip(_shortest_unique_names(info["files"]), info["sources"], strict=True))
    return {"examples": len(table), "files": files, "warnings": info["warnings"]}


def _shortest_unique_names(paths: Sequence[str]) -> list[str]:
    """File names, each with as many parent folders as make them distinct."""
    for count in itertools.count(1):
        names = ["/".join(Path(path).parts[-count:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names


def _cache_key_parts(task: Task, split: str) -> dict[str, Any]:
    """Everything that determines the content of a table; JSON-serializable."""
    code = [getattr(sys.modules[name], "__file__", None) for name in sorted(_reader_modules(task))]
    return {
        "format": FORMAT,
        "sources": [file_sha256(path) for path in task.sources(split)],
        "options": task.reading_options(split),
        "code": [file_sha256(Path(path)) for path in code if path],
    }


def _reader_modules(task: Task) -> set[str]:
    """Names of the modules whose code determines what a task reads: its own and, transitively, those it imports."""
    found: set[str] = set()
    remaining = {cls.__module__ for cls in type(task).__mro__ if issubclass(cls, base.Task)}
    while remaining:
        name = remaining.pop()
        found.add(name)
        imported = {getattr(value, "__module__", None) for value in vars(sys.modules[name]).values()}
        remaining |= {module for module in imported if module and module.startswith(_READER_PACKAGES)} - found
    return found


def _build(task: Task, split: str, folder: Path, key_parts: dict[str, Any]) -> None:
    # the lock excludes other writers, so an unfinished folder was left by a killed process
    for leftover in folder.parent.glob(f".{folder.name}.*.writing"):
        shutil.rmtree(leftover)
    # not by tempfile, whose folders are private to their creator: a cache may be shared
    writing = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.writing")
    writing.mkdir()
    try:
        with (writing / _TABLE_FILE).open("wb") as file:
            count = _write_rows(task, split, file)
            file.flush()
            os.fsync(file.fileno())
        files, warnings = [str(path) for path in task.sources(split)], task.warnings.get(split, {})
        info = {**key_parts, "count": count, "files": files, "warnings": warnings}
        atomic_write_json(writing / _INFO_FILE, info)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(writing, folder)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def _write_rows(task: Task, split: str, file: Any) -> int:
    schema = FEATURES.arrow_schema
    config_path = task.config_path(split)
    seen: set[str] = set()
    problems = json_stream.ErrorCollector(config_path)
    with pa.ipc.new_stream(file, schema) as writer:
        for rows in _batches(task.read(split)):
            for example in rows:
                if example.id in seen:
                    problems.add("two examples have the same id", example.id)
                if len(example.answers) != len(example.scores):
                    problems.add("an example has different numbers of answers and scores", example.id)
                seen.add(example.id)
            writer.write_batch(_record_batch(rows, schema, config_path))
    if not seen:
        problems.add("the split is empty", ", ".join(map(str, task.sources(split))))
    expected = getattr(task.config.splits[split], "expected_count", None)
    if expected is not None and len(seen) != expected:
        problems.add(
            "the number of examples differs from expected_count", f"{len(seen):,} found, {expected:,} expected"
        )
    problems.raise_if_any()
    return len(seen)


def _batches(examples: Iterator[Example]) -> Iterator[list[Example]]:
    rows: list[Example] = []
    for example in examples:
        rows.append(example)
        if len(rows) == _ROWS_PER_BATCH:
            yield rows
            rows = []
    if rows:
        yield rows


def _record_batch(rows: Sequence[Example], schema: pa.Schema, config_path: str) -> pa.RecordBatch:
    columns = {
        "id": [row.id for row in rows],
        "images": [row.images for row in rows],
        "text": [row.text for row in rows],
        "answers": [row.answers for row in rows],
        "scores": [row.scores for row in rows],
        "meta": [json.dumps(row.meta, ensure_ascii=False) for row in rows],
    }
    try:
        return pa.record_batch([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
    except UnicodeEncodeError as error:
        # JSON can contain half of a surrogate pair, which is not a character
        raise InputError(f"{config_path}: text that is not valid Unicode: {error.object[:80]!r}") from None
