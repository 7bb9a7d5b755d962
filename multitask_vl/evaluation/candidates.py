"""Tokenized candidate answers for the decoding modes `classify` and `rank`."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from multitask_vl.errors import InputError
from multitask_vl.models.decoding.answer_ranking import Candidates
from multitask_vl.models.kernels.chunked_cross_entropy import IGNORE_INDEX
from multitask_vl.tasks.base import Task
from multitask_vl.tasks.readers.formats import read_answers
from multitask_vl.tasks.readers.json_stream import ErrorCollector, read_lines


def choice_token_ids(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """First token of each of a task's choices, without special tokens and leading space.

    Raises:
        InputError: fewer than two choices, or two that start with the same token.
    """
    choices = task.decoding.choices
    ids = [tokenizer(choice, add_special_tokens=False).input_ids[:1] for choice in choices]
    if len(choices) < 2 or any(not first for first in ids) or len({first[0] for first in ids}) < len(choices):
        raise InputError(
            f"tasks.{task.name}.decoding.choices: {choices} cannot be distinguished by their first token {ids}; give "
            f"at least two choices that start differently, or use decoding.mode=greedy"
        )
    return [first[0] for first in ids]


def tokenize_candidates(task: Task, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], Candidates]:
    """Candidate answers of a task in mode `rank`, and their tokens as targets.

    Raises:
        InputError: a missing or malformed ``choices_file``, fewer than two answers, or duplicates.
    """
    decoding, option = task.decoding, f"tasks.{task.name}.decoding"
    answers = list(decoding.choices) if decoding.choices_file is None else _read_choices_file(task)
    seen: set[tuple[int, ...]] = set()
    problems = []
    if len(answers) < 2:
        problems.append(f"{option}: mode is rank, but the number of answers to rank is {len(answers)}")
    for answer, ids in zip(answers, tokenizer(answers).input_ids if answers else [], strict=True):
        if tuple(ids) in seen:
            problems.append(f"{option}: {answer!r} is listed twice, or has the same tokens as another answer")
        seen.add(tuple(ids))
    if problems:
        raise InputError(problems)
    tokens = tokenizer(answers, padding=True, return_tensors="pt")
    labels = tokens.input_ids.masked_fill(tokens.attention_mask == 0, IGNORE_INDEX)
    return answers, Candidates(labels, "mean" if decoding.length_normalize else "sum")


def _read_choices_file(task: Task) -> list[str]:
    """Read ``choices_file``: a JSON list, an object whose keys are the answers, or one answer per line."""
    path = task.resolve(task.decoding.choices_file)
    task.resolve_files({"decoding.choices_file": [task.decoding.choices_file]})
    if path.suffix != ".json":
        return [line for line, _ in read_lines(path)]
    problems = ErrorCollector(str(path))
    answers = list(read_answers(path, "choices_file", problems))
    problems.raise_if_any()
    return answers
