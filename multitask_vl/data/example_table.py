"""How do a split's examples get on disk once and are mapped into memory ever after: an Arrow table a split."""

from __future__ import annotations

import hashlib
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
from filelock import FileLock

from multitask_vl.errors import InputError
from multitask_vl.tasks import base
from multitask_vl.tasks.base import Example, Task
from multitask_vl.tasks.readers import json_stream

# Raise when the columns or their meaning change: tables made before are then made again.
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
_TABLE, _ABOUT = "examples.arrow", "about.json"
_ROWS_A_WRITE = 10_000
_READING = ("multitask_vl.tasks.", "multitask_vl.metrics.")


def compiled(task: Task, split: str, cache_dir: Path) -> Dataset:
    """The examples of a split as a memory-mapped table; made at the first call, found at every later one.

    A table is keyed by the content of the source files, the options that reading depends on and the code of the
    readers, so a changed file, setting or reader makes a new one. Processes that start together wait for the first; a
    process killed while writing leaves nothing that another would take for a table. The library's own caches,
    fingerprints and progress bars stay out of it: the file is an Arrow stream that `Dataset.from_file` maps.

    Args:
        cache_dir: gets ``examples/<task>-<split>-<key>/`` with the table and ``about.json``; safe to delete.

    Returns:
        columns id, images, text, answers, scores, meta (a JSON object as text); see `Example`.

    Raises:
        InputError: missing or malformed sources, a duplicate id, no examples, or not `expected_count` of them.
    """
    about = _about(task, split)
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    parent = Path(cache_dir).expanduser() / "examples"
    folder = parent / f"{task.name}-{split}-{key}"
    if not (folder / _TABLE).is_file():
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with FileLock(parent / f".{folder.name}.lock"):
                if not (folder / _TABLE).is_file():
                    _make(task, split, folder, about)
        except OSError as error:
            raise InputError(
                f"cache_dir: cannot write to {parent}: {error.strerror or error}. Set cache_dir to a folder with room"
            ) from error
    return Dataset.from_file(str(folder / _TABLE))


def example_from_row(row: dict[str, Any]) -> Example:
    """The example that a row of a compiled table holds."""
    return Example(
        id=row["id"],
        images=tuple(row["images"]),
        text=row["text"],
        answers=tuple(row["answers"]),
        scores=tuple(row["scores"]),
        meta=json.loads(row["meta"]),
    )


def column(table: Dataset, name: str) -> pa.ChunkedArray:
    """A column as Arrow has it: what asks something of every row need not make Python objects of them."""
    return table.select_columns([name]).with_format("arrow")[:][name]


def made_from(table: Dataset) -> dict[str, Any]:
    """``{"examples": rows, "files": {name: SHA-256}, "remarks": {what: how often}}`` of a compiled table.

    Remarks are what was read in another form than it stands in the files, or left out as the configuration says.
    """
    about = json.loads((Path(table.cache_files[0]["filename"]).parent / _ABOUT).read_text(encoding="utf-8"))
    files = dict(zip(_told_apart(about["files"]), about["sources"], strict=True))
    return {"examples": len(table), "files": files, "remarks": about["remarks"]}


def _told_apart(paths: Sequence[str]) -> list[str]:
    """The ends of paths, with as many folders as it takes to tell one from another."""
    for count in itertools.count(1):
        names = ["/".join(Path(path).parts[-count:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names


def _about(task: Task, split: str) -> dict[str, Any]:
    """What a table is made from; equal means an equal table."""
    code = [getattr(sys.modules[name], "__file__", None) for name in sorted(_readers(task))]
    return {
        "format": FORMAT,
        "sources": [_sha256(path) for path in task.sources(split)],
        "options": task.reading_options(split),
        "code": [_sha256(Path(path)) for path in code if path],
    }


def _readers(task: Task) -> set[str]:
    """Names of the modules whose code decides what a task reads: its own, and those of the project that they use."""
    found: set[str] = set()
    left = {kind.__module__ for kind in type(task).__mro__ if issubclass(kind, base.Task)}
    while left:
        name = left.pop()
        found.add(name)
        used = {getattr(value, "__module__", None) for value in vars(sys.modules[name]).values()}
        left |= {one for one in used if one and one.startswith(_READING)} - found
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make(task: Task, split: str, folder: Path, about: dict[str, Any]) -> None:
    # a process killed here before left its unfinished folder; the lock says nobody else is writing one
    for left in folder.parent.glob(f".{folder.name}.*.writing"):
        shutil.rmtree(left)
    # not by tempfile, whose folders are their maker's alone: a cache may be shared
    writing = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.writing")
    writing.mkdir()
    try:
        with (writing / _TABLE).open("wb") as file:
            count = _write_rows(task, split, file)
            file.flush()
            os.fsync(file.fileno())
        named = {"files": [str(path) for path in task.sources(split)], "remarks": task.remarks.get(split, {})}
        json_stream.write_json(writing / _ABOUT, {**about, "count": count, **named})
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(writing, folder)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def _write_rows(task: Task, split: str, file: Any) -> int:
    schema = FEATURES.arrow_schema
    where = task.where(split)
    seen: set[str] = set()
    problems = json_stream.Problems(where)
    with pa.ipc.new_stream(file, schema) as writer:
        for rows in _batches(task.read(split)):
            for example in rows:
                if example.id in seen:
                    problems.add("two examples have the same id", example.id)
                if len(example.answers) != len(example.scores):
                    problems.add("an example has other numbers of answers and scores", example.id)
                seen.add(example.id)
            writer.write_batch(_record_batch(rows, schema, where))
    if not seen:
        problems.add("the split is empty", ", ".join(map(str, task.sources(split))))
    expected = getattr(task.config.splits[split], "expected_count", None)
    if expected is not None and len(seen) != expected:
        problems.add("another number of examples than expected_count", f"{len(seen):,} found, {expected:,} expected")
    problems.raise_any()
    return len(seen)


def _batches(examples: Iterator[Example]) -> Iterator[list[Example]]:
    rows: list[Example] = []
    for example in examples:
        rows.append(example)
        if len(rows) == _ROWS_A_WRITE:
            yield rows
            rows = []
    if rows:
        yield rows


def _record_batch(rows: Sequence[Example], schema: pa.Schema, where: str) -> pa.RecordBatch:
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
        # JSON can name half of a surrogate pair, which is no character
        raise InputError(f"{where}: text that is no Unicode: {error.object[:80]!r}") from None
