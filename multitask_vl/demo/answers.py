"""What does the page say: several adapters' answers to one question side by side, as HTML with every text escaped."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment
from PIL import Image

from multitask_vl.demo.overlay import draw, uri
from multitask_vl.demo.uploads import Limits, Refused, picture
from multitask_vl.errors import InputError
from multitask_vl.inference import Pipeline, Request

TEMPLATES = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
PAGE = TEMPLATES.from_string(files("multitask_vl.demo").joinpath("answers.html").read_text(encoding="utf-8"))


class Answers:
    """Asks adapters and says what came out.

    Args:
        pipelines: adapters by the name that the page calls them.
        limits: what is taken.
        pictures: of one question, where it is not the task's own number.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline], limits: Limits, pictures: int | None = None):
        self.pipelines = dict(pipelines)
        self.limits = limits
        self.pictures = pictures
        self.busy = threading.Lock()
        """Held while a question is answered: a model holds the task that it runs."""

    @property
    def tasks(self) -> dict[str, tuple[int, bool]]:
        """Every task of any adapter -> how many pictures it takes, and whether it reads a text."""
        return {
            name: (self.pictures or task.pictures, task.reads_text)
            for pipeline in reversed(self.pipelines.values())
            for name, task in pipeline.tasks.items()
        }

    @property
    def remarks(self) -> list[str]:
        """What a reader of any answer should know: first of all, where weights are random."""
        return [f"{name}: {remark}" for name, one in self.pipelines.items() for remark in one.remarks]

    def __call__(self, task: str, paths: Sequence[str | None], text: str) -> str:
        """HTML with each adapter's answer, or with what is wrong with the question."""
        try:
            images = [picture(Path(path), self.limits) for path in paths if path]
            problems = self._problems(task, len(images), text)
        except Refused as error:
            problems = [str(error)]
        if problems:
            return PAGE.render(problems=problems)
        files = tuple(Path(path) for path in paths if path)
        request = Request(files, task, text.strip() if self.tasks[task][1] else "", "the question")
        with self.busy:
            answers = [self._answer(name, pipeline, request, images) for name, pipeline in self.pipelines.items()]
        return PAGE.render(answers=answers, pictures=len(images))

    def preview(self, path: str | None) -> str:
        """HTML with an uploaded picture, or with why it is not taken; nothing where nothing is uploaded."""
        if not path:
            return ""
        try:
            return PAGE.render(preview=uri(picture(Path(path), self.limits)), name=Path(path).name)
        except Refused as error:
            return PAGE.render(problems=[str(error)])

    def _problems(self, task: str, pictures: int, text: str) -> list[str]:
        if task not in self.tasks:
            return [f"no adapter here has a task {task[:60]!r}; there are: {', '.join(self.tasks)}"]
        (wanted, reads_text), found = self.tasks[task], []
        if pictures != wanted:
            found.append(f"{task} takes {wanted} picture{'s' * (wanted > 1)}; {pictures or 'none'} given")
        if len(text) > self.limits.characters:
            found.append(f"the question has {len(text):,} characters; at most {self.limits.characters:,}")
        if reads_text and not text.strip():
            found.append(f"{task} needs a text: the question or statement")
        return found

    def _answer(self, name: str, pipeline: Pipeline, request: Request, images: Sequence[Image.Image]) -> dict:
        if request.task not in pipeline.tasks:
            return {"name": name, "problems": [f"has no task {request.task}; it has {', '.join(pipeline.tasks)}"]}
        try:
            answer, attention = pipeline.looked(request, self.pictures)
        except InputError as error:
            return {"name": name, "problems": [_without_paths(one, request.images) for one in error.problems]}
        grid = _grid(pipeline, attention.cells.shape[1])
        drawn = []
        if grid is not None:
            crop = pipeline.model.config.clip.resize == "crop"
            cells = attention.cells.reshape(len(images), *grid)
            scale = float(cells.min()), float(cells.max())
            drawn = [uri(draw(image, one, scale, crop)) for image, one in zip(images, cells, strict=True)]
        return {
            "name": name,
            "text": answer.text,
            "remarks": [_without_paths(one, request.images) for one in (*pipeline.remarks, *answer.remarks)],
            "drawn": drawn,
            "attention": attention,
            "grid": grid,
        }


def _grid(pipeline: Pipeline, cells: int) -> tuple[int, int] | None:
    """Rows and columns of the cells that the model reads of a picture; None where they are not laid out on it."""
    grid = pipeline.model.config.visual.pool or pipeline.pictures.manifest.grid
    return tuple(grid) if cells > 1 and int(np.prod(grid)) == cells else None


def _without_paths(text: str, paths: Sequence[Path]) -> str:
    """A message that calls files by their names."""
    return re.sub("|".join(re.escape(f"{path.parent}/") for path in paths), "", text)
