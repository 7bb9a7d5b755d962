"""Which texts are over a task's limits: counted once for each tokenizer, remembered beside the compiled table."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.compute as pc
import tokenizers
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from multitask_vl.data.example_table import column
from multitask_vl.tasks.base import Task
from multitask_vl.tasks.readers.json_stream import write_json

TEXTS_AT_ONCE = 4096


@dataclass(frozen=True)
class Over:
    """How many texts are over a limit, and the longest of them with its number of tokens."""

    count: int = 0
    tokens: int = 0
    text: str = ""


def too_long(
    task: Task, table: Dataset, tokenizer: PreTrainedTokenizerBase, split: str, with_targets: bool
) -> tuple[list[str], dict[str, int]]:
    """Texts over a task's token limits, told before anything runs.

    Args:
        table: compiled; its folder keeps what was found, so that the next start need not cut every text again.
        with_targets: whether answers count as well (training splits).

    Returns:
        problems to raise where the task says ``too_long: error``, and the number of cut texts by kind where it says
        ``truncate``.
    """
    config = task.config
    problems, cut = [], {}
    for kind, name, prompt in (("input", "text", config.prompt), ("target", "answers", "")):
        limit = getattr(config, f"max_{kind}_tokens")
        if limit is None or (kind == "target" and not with_targets):
            continue
        over = _remembered(table, name, prompt, limit, tokenizer)
        if over.count and config.too_long == "error":
            problems.append(
                f"tasks.{task.name}: {over.count} {kind}s of split '{split}' are longer than max_{kind}_tokens={limit} "
                f"(longest: {over.tokens} tokens, {over.text[:80]!r}). Raise tasks.{task.name}.max_{kind}_tokens, or "
                f"set tasks.{task.name}.too_long=truncate to cut them"
            )
        elif over.count:
            cut[kind] = over.count
    return problems, cut


def _remembered(table: Dataset, name: str, prompt: str, limit: int, tokenizer: PreTrainedTokenizerBase) -> Over:
    """`_count`, or what it found before for the same table, prompt, limit and tokenizer."""
    path = place(table, tokenizer, "over", [name, prompt, limit], ".json")
    if path is None:
        return _count(table, name, prompt, limit, tokenizer)
    if path.is_file():
        return Over(**json.loads(path.read_text(encoding="utf-8")))
    over = _count(table, name, prompt, limit, tokenizer)
    # tables that somebody else made may lie where nothing can be written; then it is counted again
    with contextlib.suppress(OSError):
        write_json(path, asdict(over))
    return over


def place(table: Dataset, tokenizer: PreTrainedTokenizerBase, what: str, about: list, ending: str) -> Path | None:
    """Where to remember, beside a compiled table, what was found of its texts with a tokenizer.

    Args:
        what: begins the file's name.
        about: what it depends on besides; JSON-able.

    Returns:
        None where nothing tells whether a later tokenizer is the same one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    # how the last call cut and padded belongs to that call
    rules = {key: value for key, value in json.loads(backend.to_str()).items() if key not in ("truncation", "padding")}
    whole = [tokenizers.__version__, type(tokenizer).__name__, rules, *about]
    key = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
    return Path(table.cache_files[0]["filename"]).with_name(f"{what}-{key}{ending}")


def _count(table: Dataset, name: str, prompt: str, limit: int, tokenizer: PreTrainedTokenizerBase) -> Over:
    texts = column(table, name)
    if name == "answers":
        texts = pc.list_flatten(texts)
    # a text is cut into tokens once, however often it stands there: answers repeat a hundred times
    counted = pc.value_counts(texts)
    over: list[tuple[int, str, int]] = []
    for start in range(0, len(counted), TEXTS_AT_ONCE):
        chunk = counted.slice(start, TEXTS_AT_ONCE)
        found = [prompt + text for text in chunk.field("values").to_pylist()]
        lengths = [len(ids) for ids in tokenizer(found).input_ids]
        times = chunk.field("counts").to_pylist()
        over += [one for one in zip(lengths, found, times, strict=True) if one[0] > limit]
    if not over:
        return Over()
    tokens, text, _ = max(over)
    return Over(sum(times for _, _, times in over), tokens, text)
