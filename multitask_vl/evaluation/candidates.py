"""Among which answers does a task choose, and what are they in tokens: for the decoding kinds `choice` and `rank`."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from multitask_vl.errors import InputError
from multitask_vl.models.decoding.answer_ranking import Candidates
from multitask_vl.models.kernels.chunked_cross_entropy import IGNORED
from multitask_vl.tasks.base import Task
from multitask_vl.tasks.readers.json_stream import Problems, lines, short, walk


def choice_ids(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """First token of each of a task's choices, without special tokens and leading blank.

    Raises:
        InputError: if there are fewer than two choices or two of them start with the same token.
    """
    choices = task.decoding.choices
    ids = [tokenizer(choice, add_special_tokens=False).input_ids[:1] for choice in choices]
    if len(choices) < 2 or any(not first for first in ids) or len({first[0] for first in ids}) < len(choices):
        raise InputError(
            f"tasks.{task.name}.decoding.choices: {choices} cannot be told apart by their first token {ids}; give at "
            f"least two choices that start differently, or use decoding.kind=greedy"
        )
    return [first[0] for first in ids]


def candidates(task: Task, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], Candidates]:
    """The answers that a task ranks, and their tokens as the model would write them.

    Raises:
        InputError: no such file, something other than answers in it, fewer than two, or two that are the same.
    """
    decoding, where = task.decoding, f"tasks.{task.name}.decoding"
    answers = list(decoding.choices) if decoding.choices_file is None else _in_file(task)
    seen: set[tuple[int, ...]] = set()
    problems = (
        [] if len(answers) > 1 else [f"{where}: kind is rank, but there is {len(answers)} answer to choose among"]
    )
    for answer, ids in zip(answers, tokenizer(answers).input_ids if answers else [], strict=True):
        if tuple(ids) in seen:
            problems.append(f"{where}: {answer!r} stands among the answers twice, or is the same tokens as another one")
        seen.add(tuple(ids))
    if problems:
        raise InputError(problems)
    tokens = tokenizer(answers, padding=True, return_tensors="pt")
    labels = tokens.input_ids.masked_fill(tokens.attention_mask == 0, IGNORED)
    return answers, Candidates(labels, decoding.rank_by)


def _in_file(task: Task) -> list[str]:
    """The answers of ``choices_file``: a JSON list, an object whose keys are the answers, or a line each."""
    path = task.resolve(task.decoding.choices_file)
    task.existing({"decoding.choices_file": [task.decoding.choices_file]})
    if path.suffix != ".json":
        return [line for line, _ in lines(path)]
    problems, answers = Problems(str(path)), []
    for key, value, where in walk(path):
        answer = value if key is None else key
        if isinstance(answer, str):
            answers.append(answer)
        else:
            problems.add("answers to rank must be a list of them, or {answer: number}", f"{where} has {short(answer)}")
    problems.raise_any()
    return answers
