"""Token counts of the texts of an example table, cached next to the table."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from multitask_vl.data.example_table import arrow_column
from multitask_vl.errors import InputError
from multitask_vl.storage.atomic import atomic_write
from multitask_vl.storage.file_lock import FileLock
from multitask_vl.storage.hashing import json_sha256
from multitask_vl.tasks.base import Task

TEXTS_PER_CALL = 4096


def row_lengths(task: Task, table: Dataset, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return a sort key for each row [n]: rows in order of target length, rows with equal targets by input length.

    Lengths are in tokens after truncation. A row whose target is sampled from several answers counts the longest one.
    """
    config = task.config
    inputs = _truncated(token_counts(table, "text", config.prompt, tokenizer), config.max_input_tokens)
    answers = _truncated(token_counts(table, "answers", "", tokenizer), config.max_target_tokens)
    targets = np.zeros(len(table), dtype=np.int64)
    row_of_answer = pc.list_parent_indices(arrow_column(table, "answers").combine_chunks()).to_numpy()
    np.maximum.at(targets, row_of_answer, answers)
    return targets * (1 + inputs.max(initial=0)) + inputs


def token_counts(table: Dataset, column: str, prompt: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the number of tokens, special tokens included, of every text of a column.

    Counts are computed once per tokenizer and cached next to the table; processes that start together wait for the
    first. Where nothing can be written, every start counts again.

    Args:
        table: from `load_table`.
        column: ``text``, or ``answers``, whose lists are flattened.
        prompt: prepended to every text.

    Returns:
        int64 counts, one per text [n], before truncation.
    """
    path = _cache_path(table, column, prompt, tokenizer)
    if path is not None and not path.is_file():
        with contextlib.suppress(OSError, InputError), FileLock(path, wait=True):
            if not path.is_file():
                _save(path, _count(texts_of(table, column), prompt, tokenizer))
    if path is not None and path.is_file():
        return np.load(path).astype(np.int64)
    return _count(texts_of(table, column), prompt, tokenizer)


def texts_of(table: Dataset, column: str) -> pa.ChunkedArray:
    """Return the texts of a column in the order of the rows; lists are flattened."""
    texts = arrow_column(table, column)
    return pc.list_flatten(texts) if pa.types.is_list(texts.type) else texts


def _truncated(counts: np.ndarray, limit: int | None) -> np.ndarray:
    return counts if limit is None else np.minimum(counts, limit)


def _cache_path(table: Dataset, column: str, prompt: str, tokenizer: PreTrainedTokenizerBase) -> Path | None:
    """Where the counts are cached; None for a slow tokenizer, which has no serialization to identify it by."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    state = json.loads(backend.to_str())
    # truncation and padding are left over from the last call
    rules = {key: value for key, value in state.items() if key not in ("truncation", "padding")}
    key = json_sha256([tokenizers.__version__, type(tokenizer).__name__, rules, column, prompt])[:16]
    return Path(table.cache_files[0]["filename"]).with_name(f"token-counts-{key}.npy")


def _save(path: Path, counts: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, counts.astype(np.int32))
    atomic_write(path, buffer.getvalue())


def _count(texts: pa.ChunkedArray, prompt: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    # each distinct text is tokenized once: answers repeat a hundred times
    encoded = texts.dictionary_encode().combine_chunks()
    distinct: list[int] = []
    for start in range(0, len(encoded.dictionary), TEXTS_PER_CALL):
        chunk = [prompt + text for text in encoded.dictionary.slice(start, TEXTS_PER_CALL).to_pylist()]
        distinct += [len(ids) for ids in tokenizer(chunk).input_ids]
    return np.array(distinct, dtype=np.int64)[encoded.indices.to_numpy()]
