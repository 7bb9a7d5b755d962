"""Requests to an adapter: images, a task and a text, one by one or from a JSON-lines file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from multitask_vl.config.yaml_nodes import did_you_mean
from multitask_vl.errors import InputError
from multitask_vl.tasks.base import Task
from multitask_vl.tasks.readers.json_stream import ErrorCollector, read_jsonl

FIELDS = ("image", "images", "task", "text")
EXAMPLE = '{"image": "a.jpg", "task": "vqa", "text": "what is it?"}'


@dataclass(frozen=True)
class Request:
    """One question about one or several images.

    Attributes:
        images: image files, in the task's order (NLVR2: left, right).
        task: name of one of the adapter's tasks.
        text: question or statement without the task's prompt; empty for captions.
        where: name of the request in messages, such as ``file:line``.
    """

    images: tuple[Path, ...]
    task: str
    text: str = ""
    where: str = "request"


def read_requests(path: Path, task: str | None = None) -> list[Request]:
    """Read a file with lines such as ``{"image": "a.jpg", "task": "vqa", "text": "what is it?"}``.

    Args:
        path: the file. Image paths in it are relative to its folder; ``images`` is a list of paths.
        task: task of the lines without one.

    Raises:
        InputError: there is no such file, it is empty, or lines are malformed; lists all problems.
    """
    errors, requests = ErrorCollector(str(path)), []
    for item, where in read_jsonl(path):
        for name in item:
            if name not in FIELDS:
                errors.add(f"an unknown field{did_you_mean(name, FIELDS, 'known')}", f"{where} ({name})")
        images = item.get("images", item.get("image"))
        images = [images] if isinstance(images, str) else images
        item_task, text = item.get("task", task), item.get("text", "")
        if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
            errors.add("'image' must be a path, or 'images' a list of paths", where)
        elif not isinstance(item_task, str):
            errors.add("no 'task' is given", where, "Add it to the line, or pass --task for all lines")
        elif not isinstance(text, str):
            errors.add("'text' must be text", where)
        else:
            paths = tuple(path.parent / Path(image).expanduser() for image in images)
            requests.append(Request(paths, item_task, text, where))
    errors.raise_if_any()
    if not requests:
        raise InputError(f"{path}: contains no requests; example of a line: {EXAMPLE}")
    return requests


def request_problems(request: Request, tasks: Mapping[str, Task], num_images: int | None) -> list[str]:
    """Return the problems of a request that can be found without opening its images.

    Args:
        request: the request.
        tasks: tasks of the adapter by name.
        num_images: images per request; None: the task's default.
    """
    where = request.where
    if request.task not in tasks:
        return [
            f"{where}: the adapter has no task {request.task!r}{did_you_mean(request.task, list(tasks), 'its tasks')}"
        ]
    task, problems = tasks[request.task], []
    expected = num_images or task.num_images
    if len(request.images) != expected:
        problems.append(
            f"{where}: {request.task} takes {expected} image{'s' * (expected > 1)}, got {len(request.images)}. If the "
            "adapter was trained with another number of images: --images-per-request N (in Python: num_images=N)"
        )
    if task.has_text and not request.text.strip():
        problems.append(f"{where}: {request.task} needs a text, the question or statement: --text '...'")
    if not task.has_text and request.text.strip():
        problems.append(f"{where}: {request.task} takes no text, got {request.text[:60]!r}; remove it")
    if not _is_unicode(request.text):
        problems.append(f"{where}: the text {request.text[:60]!r} is not valid UTF-8; enter it again")
    problems += [f"{where}: there is no file {path}" for path in request.images if not path.is_file()]
    problems += [
        f"{where}: the file name {str(path)!r} is not valid UTF-8; rename the file or its folder"
        for path in request.images
        if not _is_unicode(str(path))
    ]
    return problems


def _is_unicode(text: str) -> bool:
    """Return False for text with lone surrogates: arguments or file names that are not UTF-8, or JSON escapes."""
    return text.encode(errors="replace").decode() == text
