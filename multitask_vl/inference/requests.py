"""What is asked of an adapter: pictures, a task and a text, given one by one or as lines of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multitask_vl.config.yaml_nodes import did_you_mean
from multitask_vl.errors import InputError
from multitask_vl.tasks.base import Task
from multitask_vl.tasks.readers.json_stream import Problems, json_lines

FIELDS = ("image", "images", "task", "text")
EXAMPLE = '{"image": "a.jpg", "task": "vqa", "text": "what is it?"}'


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        images: picture files, in order (NLVR2: left, right).
        task: a task of the adapter.
        text: the question or statement, without prompt; empty for captions.
        where: what problems call it, such as the ``file:line`` that it came from.
    """

    images: tuple[Path, ...]
    task: str
    text: str = ""
    where: str = "request"


def read_requests(path: Path, task: str | None = None) -> list[Request]:
    """Requests of a file with lines such as ``{"image": "a.jpg", "task": "vqa", "text": "what is it?"}``.

    Args:
        path: paths of pictures in it start at its folder; ``images`` is a list of them.
        task: of the lines that name none.

    Raises:
        InputError: no such file, no line in it, malformed lines; all of them.
    """
    problems, found = Problems(str(path)), []
    for item, where in json_lines(path):
        for name in item:
            if name not in FIELDS:
                problems.add(f"an unknown field{did_you_mean(name, FIELDS, 'known')}", f"{where} ({name})")
        images = item.get("images", item.get("image"))
        images = [images] if isinstance(images, str) else images
        named, text = item.get("task", task), item.get("text", "")
        if not isinstance(images, list) or not images or not all(isinstance(one, str) for one in images):
            problems.add("'image' must be a path, or 'images' a list of paths", where)
        elif not isinstance(named, str):
            problems.add("no 'task' is given", where, "Add it to the line, or name one for all by --task")
        elif not isinstance(text, str):
            problems.add("'text' must be text", where)
        else:
            paths = tuple(path.parent / Path(one).expanduser() for one in images)
            found.append(Request(paths, named, text, where))
    problems.raise_any()
    if not found:
        raise InputError(f"{path}: holds no request; a line is such as {EXAMPLE}")
    return found


def problems_of(request: Request, tasks: Mapping[str, Task], pictures: int | None) -> list[str]:
    """What is wrong with a request before any picture is opened; empty if nothing.

    Args:
        tasks: of the adapter.
        pictures: pictures of one request, where it is not the task's own number.
    """
    if request.task not in tasks:
        hint = did_you_mean(request.task, list(tasks), "its tasks")
        return [f"{request.where}: the adapter has no task {request.task!r}{hint}"]
    task, found = tasks[request.task], []
    wanted = pictures or task.pictures
    if len(request.images) != wanted:
        found.append(
            f"{request.where}: {request.task} takes {wanted} picture{'s' * (wanted > 1)}, got {len(request.images)}. "
            "If this adapter was trained on another number of them: --pictures N (in Python: pictures=N)"
        )
    if task.reads_text and not request.text.strip():
        found.append(f"{request.where}: {request.task} needs a text, the question or statement: --text '...'")
    if not task.reads_text and request.text.strip():
        found.append(f"{request.where}: {request.task} reads no text, but got {request.text[:60]!r}; leave it out")
    if not _is_unicode(request.text):
        found.append(f"{request.where}: the text {request.text[:60]!r} is not UTF-8; write it anew")
    return [*found, *_absent(request.images, request.where), *_unnamed(request.images, request.where)]


def _absent(paths: Sequence[Path], where: str) -> list[str]:
    return [f"{where}: there is no file {path}" for path in paths if not path.is_file()]


def _unnamed(paths: Sequence[Path], where: str) -> list[str]:
    return [
        f"{where}: the name {str(path)!r} is not UTF-8; rename the file or its folder"
        for path in paths
        if not _is_unicode(str(path))
    ]


def _is_unicode(text: str) -> bool:
    """False where bytes of a command or a name are not UTF-8, or JSON names half of a surrogate pair."""
    return text.encode(errors="replace").decode() == text
