"""How long is each row in tokens: counted once for each tokenizer, remembered beside the compiled table."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from multitask_vl.data.example_table import column
from multitask_vl.data.text_lengths import TEXTS_AT_ONCE, place
from multitask_vl.storage.atomic import write_whole
from multitask_vl.tasks.base import Task


def row_lengths(task: Task, table: Dataset, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """A number for each row [n] that orders by the length of its target, and among equal ones by that of its input.

    Lengths are tokens after truncation; a target that is drawn among several answers counts as the longest of them.
    They are counted once for each tokenizer and remembered beside the compiled table.

    Processes that start together wait for the first. Where nothing can be written, every start counts again.
    """
    config = task.config
    about = [config.prompt, config.max_input_tokens, config.max_target_tokens]
    path = place(table, tokenizer, "lengths", about, ".npy")
    if path is None:
        return _count(task, table, tokenizer)
    if not path.is_file():
        with contextlib.suppress(OSError), FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                _write(path, _count(task, table, tokenizer))
    return np.load(path) if path.is_file() else _count(task, table, tokenizer)


def _write(path: Path, lengths: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, lengths)
    write_whole(path, buffer.getvalue())


def _count(task: Task, table: Dataset, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    config = task.config
    inputs = _tokens(column(table, "text"), config.prompt, config.max_input_tokens, tokenizer)
    answers = column(table, "answers")
    targets = np.zeros(len(table), dtype=np.int64)
    owner = pc.list_parent_indices(answers.combine_chunks()).to_numpy()
    np.maximum.at(targets, owner, _tokens(pc.list_flatten(answers), "", config.max_target_tokens, tokenizer))
    return targets * (1 + inputs.max(initial=0)) + inputs


def _tokens(texts: pa.ChunkedArray, prompt: str, limit: int | None, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Tokens of each text [n], specials included; a text is cut once, however often it stands there."""
    coded = pc.dictionary_encode(texts).combine_chunks()
    found: list[int] = []
    for start in range(0, len(coded.dictionary), TEXTS_AT_ONCE):
        words = [prompt + text for text in coded.dictionary.slice(start, TEXTS_AT_ONCE).to_pylist()]
        found += [len(ids) for ids in tokenizer(words).input_ids]
    return np.minimum(np.array(found, dtype=np.int64), limit or np.iinfo(np.int64).max)[coded.indices.to_numpy()]
