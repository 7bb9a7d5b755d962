"""Check texts against a task's token limits."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from multitask_vl.data.length_cache import texts_of, token_counts
from multitask_vl.tasks.base import Task


def check_token_limits(
    task: Task, table: Dataset, tokenizer: PreTrainedTokenizerBase, split: str, with_targets: bool
) -> tuple[list[str], dict[str, int]]:
    """Find the texts of a split that exceed ``max_input_tokens`` or ``max_target_tokens``.

    Args:
        table: from `load_table`; token counts are cached next to it.
        with_targets: whether to check answers as well (training splits).

    Returns:
        problems to raise where the task sets ``overflow: error``, and, where it sets ``truncate``, the number of
        truncated texts by kind (``input``, ``target``).
    """
    config = task.config
    problems, truncated = [], {}
    for kind, column, prompt in (("input", "text", config.prompt), ("target", "answers", "")):
        limit = getattr(config, f"max_{kind}_tokens")
        if limit is None or (kind == "target" and not with_targets):
            continue
        counts = token_counts(table, column, prompt, tokenizer)
        exceeding = int((counts > limit).sum())
        if exceeding and config.overflow == "error":
            longest = int(np.argmax(counts))
            text = prompt + texts_of(table, column)[longest].as_py()
            problems.append(
                f"tasks.{task.name}: {exceeding} {kind}s of split '{split}' are longer than max_{kind}_tokens={limit} "
                f"(longest: {counts[longest]} tokens, {text[:80]!r}). Raise tasks.{task.name}.max_{kind}_tokens, or "
                f"set tasks.{task.name}.overflow=truncate to truncate them"
            )
        elif exceeding:
            truncated[kind] = exceeding
    return problems, truncated
