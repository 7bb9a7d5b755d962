"""Answers of several adapters to one question as HTML, with all text escaped."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment
from PIL import Image

from multitask_vl.demo.overlay import data_uri, draw_attention
from multitask_vl.demo.uploads import Limits, UploadRejected, load_upload
from multitask_vl.errors import InputError
from multitask_vl.inference import AttentionMap, Pipeline, Request

TEMPLATE_ENV = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
ANSWERS_TEMPLATE = TEMPLATE_ENV.from_string(
    files("multitask_vl.demo").joinpath("answers.html").read_text(encoding="utf-8")
)


class TaskInputs(NamedTuple):
    """Inputs of a task: the number of images, and whether it takes a text."""

    num_images: int
    has_text: bool


class AnswerRenderer:
    """Ask adapters and render their answers.

    Args:
        pipelines: pipelines by the name shown on the page.
        limits: limits of uploads and questions.
        num_images: images per question; None: the task's default.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline], limits: Limits, num_images: int | None = None):
        self.pipelines = dict(pipelines)
        self.limits = limits
        self.num_images = num_images
        self.lock = threading.Lock()
        """Held while a question is answered, because a model keeps the task that it runs as state."""

    @property
    def tasks(self) -> dict[str, TaskInputs]:
        """Inputs of every task of any adapter, by name."""
        return {
            name: TaskInputs(self.num_images or task.num_images, task.has_text)
            for pipeline in reversed(self.pipelines.values())
            for name, task in pipeline.tasks.items()
        }

    @property
    def warnings(self) -> list[str]:
        """Messages about all answers of an adapter, such as that its weights are random."""
        return [f"{name}: {message}" for name, pipeline in self.pipelines.items() for message in pipeline.warnings]

    def render(self, task: str, paths: Sequence[str | None], text: str) -> str:
        """Return HTML with each adapter's answer, or with the problems of the question.

        Args:
            task: name of a task.
            paths: uploaded files; None where nothing is uploaded.
            text: question or statement; ignored if the task takes none.
        """
        try:
            images = [load_upload(Path(path), self.limits) for path in paths if path]
            problems = self._problems(task, len(images), text)
        except UploadRejected as error:
            problems = [str(error)]
        if problems:
            return ANSWERS_TEMPLATE.render(problems=problems)
        uploads = tuple(Path(path) for path in paths if path)
        request = Request(uploads, task, text.strip() if self.tasks[task].has_text else "", "the question")
        with self.lock:
            answers = [self._answer(name, pipeline, request, images) for name, pipeline in self.pipelines.items()]
        return ANSWERS_TEMPLATE.render(answers=answers, num_images=len(images))

    def render_preview(self, path: str | None) -> str:
        """Return HTML with an uploaded image, or with the reason why it is rejected; empty without an upload."""
        if not path:
            return ""
        try:
            image = load_upload(Path(path), self.limits)
        except UploadRejected as error:
            return ANSWERS_TEMPLATE.render(problems=[str(error)])
        return ANSWERS_TEMPLATE.render(preview=data_uri(image), name=Path(path).name)

    def _problems(self, task: str, num_images: int, text: str) -> list[str]:
        if task not in self.tasks:
            return [f"no adapter has a task {task[:60]!r}; available tasks: {', '.join(self.tasks)}"]
        (expected, has_text), problems = self.tasks[task], []
        if num_images != expected:
            problems.append(f"{task} takes {expected} image{'s' * (expected > 1)}, got {num_images}")
        if len(text) > self.limits.characters:
            problems.append(
                f"the question has {len(text):,} characters; the maximum is {self.limits.characters:,}. Shorten it"
            )
        if has_text and not text.strip():
            problems.append(f"{task} needs a text, the question or statement")
        return problems

    def _answer(self, name: str, pipeline: Pipeline, request: Request, images: Sequence[Image.Image]) -> dict[str, Any]:
        """Return the template's values for one adapter."""
        if request.task not in pipeline.tasks:
            tasks = ", ".join(pipeline.tasks)
            return {"name": name, "problems": [f"this adapter has no task {request.task}; its tasks: {tasks}"]}
        try:
            answer, attention = pipeline.answer_with_attention(request, self.num_images)
        except InputError as error:
            return {"name": name, "problems": [_hide_folders(text, request.images) for text in error.problems]}
        grid = _token_grid(pipeline, attention.weights.shape[1])
        return {
            "name": name,
            "text": answer.text,
            "warnings": [_hide_folders(text, request.images) for text in (*pipeline.warnings, *answer.warnings)],
            "overlays": [] if grid is None else _overlays(pipeline, attention, grid, images),
            "attention": attention,
            "grid": grid,
        }


def _overlays(
    pipeline: Pipeline, attention: AttentionMap, grid: tuple[int, int], images: Sequence[Image.Image]
) -> list[str]:
    """Data URIs of the images with their attention, all on one scale."""
    crop = pipeline.model.config.vision.resize == "crop"
    maps = attention.weights.reshape(len(images), *grid)
    value_range = float(maps.min()), float(maps.max())
    return [
        data_uri(draw_attention(image, weights, value_range, crop)) for image, weights in zip(images, maps, strict=True)
    ]


def _token_grid(pipeline: Pipeline, num_tokens: int) -> tuple[int, int] | None:
    """Rows and columns of an image's visual tokens; None if they are not a grid over the image."""
    rows, columns = pipeline.model.config.visual.pool or pipeline.featurizer.manifest.grid
    return (rows, columns) if num_tokens > 1 and rows * columns == num_tokens else None


def _hide_folders(text: str, paths: Sequence[Path]) -> str:
    """Replace full paths in a message by file names."""
    return re.sub("|".join(re.escape(f"{path.parent}/") for path in paths), "", text)
