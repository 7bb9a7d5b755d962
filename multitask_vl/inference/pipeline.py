"""How does a saved adapter answer: model, trunk and tokenizer by its name alone, then files and text to an answer."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from multitask_vl.data.batch import Batch
from multitask_vl.data.collate import Collator
from multitask_vl.data.store.manifest import other_trunk
from multitask_vl.errors import InputError
from multitask_vl.evaluation.predict import texts_of
from multitask_vl.inference.attention import Attention, attention
from multitask_vl.inference.image_features import Pictures
from multitask_vl.inference.requests import Request, problems_of
from multitask_vl.models.from_pretrained import from_pretrained
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.tasks.base import Task
from multitask_vl.tasks.build import build_tasks

WAYS = {
    "backbone.pretrained": "--backbone PATH (in Python: backbone=PATH)",
    "backbone.weights": "--backbone PATH (in Python: backbone=PATH)",
    "backbone.tokenizer": "--tokenizer PATH (in Python: tokenizer=PATH)",
    "clip.pretrained": "--clip FILE (in Python: clip=FILE)",
    "clip.model": "--clip-model FILE (in Python: clip_model=FILE)",
}
"""Key of the adapter's configuration -> how to say that what it names lies elsewhere."""


@dataclass(frozen=True)
class Answer:
    """What the model says.

    Attributes:
        text: the answer.
        remarks: what its reader should know, such as that the question was cut.
    """

    text: str
    remarks: tuple[str, ...] = ()


class Pipeline:
    """A model that answers about picture files. Make one with `Pipeline.from_pretrained`.

    Args:
        model: in eval mode.
        tokenizer: of its backbone.
        pictures: makes features of files.

    Attributes:
        tasks: the adapter's tasks by name.
        remarks: what a reader of any answer should know, such as that weights are random.
    """

    def __init__(self, model: VLSeq2Seq, tokenizer: PreTrainedTokenizerBase, pictures: Pictures):
        self.model = model
        self.tokenizer = tokenizer
        self.pictures = pictures
        self.tasks = build_tasks(model.config)
        trained = (model.loaded or {}).get("run", {}).get("features", {})
        self.remarks = [*_remarks(model), *other_trunk(pictures.manifest, trained)]

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: torch.device | str = "cpu",
        backbone: str | None = None,
        tokenizer: str | None = None,
        clip: str | None = None,
        clip_model: str | None = None,
        store: Path | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> Pipeline:
        """The pipeline of a saved adapter.

        Args:
            name: folder or hub name, as `multitask_vl.models.from_pretrained.from_pretrained` takes it.
            device: of model and trunk.
            backbone, tokenizer: where they lie, if not where they did; the backbone's weights are checked.
            clip: the trunk's weights, a file or a tag, likewise. Whether they are those of the features that the
                adapter was trained on is among the remarks.
            clip_model: the trunk's name, or the file of its JSON, likewise.
            store: a feature store that the adapter was trained on; features must be made as its were.
            revision, token: of the hub.

        Raises:
            InputError: no adapter there, or something it needs is not on this machine; says how to name it.
        """
        try:
            model, words = from_pretrained(
                name, device=device, backbone=backbone, tokenizer=tokenizer, revision=revision, token=token
            )
            moved = {"pretrained": clip, "model": clip_model}
            section = model.config.clip.model_copy(update={key: one for key, one in moved.items() if one is not None})
            pictures = Pictures(section, model.config.visual, device)
        except InputError as error:
            raise InputError([_with_way(problem) for problem in error.problems]) from error
        if store is not None:
            pictures.check_store(store)
        return cls(model, words, pictures)

    def __call__(
        self, images: str | Path | Sequence[str | Path], task: str, text: str = "", pictures: int | None = None
    ) -> str:
        """The answer to one question; remarks on it become warnings.

        Args:
            images: the picture file, or several where the task takes several (NLVR2: left, right).
            task: one of `tasks`.
            text: question or statement; captions take none.
            pictures: how many there must be, where it is not the task's own number.

        Raises:
            InputError: what is asked does not fit the task, or a file is no picture.
        """
        paths = (images,) if isinstance(images, str | Path) else images
        request = Request(tuple(Path(one) for one in paths), task, text)
        (answer,) = self.answers([request], pictures)
        for remark in answer.remarks:
            warnings.warn(remark, stacklevel=2)
        return answer.text

    def answers(
        self, requests: Iterable[Request], pictures: int | None = None, batch_size: int = 16
    ) -> Iterator[Answer]:
        """An answer to each request, in their order; what cannot be asked is told before the first.

        Args:
            pictures: of one request, where it is not the task's own number.
            batch_size: requests answered at once.

        Raises:
            InputError: with every request that does not fit its task, every file that is not there; later, with the
                files of a batch that are no pictures.
        """
        requests = list(requests)
        problems = [problem for one in requests for problem in problems_of(one, self.tasks, pictures)]
        if problems:
            raise InputError(problems)
        return self._answers(requests, batch_size)

    def _answers(self, requests: list[Request], batch_size: int) -> Iterator[Answer]:
        for (task, _), group in itertools.groupby(requests, lambda one: (one.task, len(one.images))):
            alike = list(group)
            for start in range(0, len(alike), batch_size):
                yield from self._batch(self.tasks[task], alike[start : start + batch_size])

    @torch.inference_mode()
    def _batch(self, task: Task, requests: Sequence[Request]) -> list[Answer]:
        cut = [self._cut(task, one) for one in requests]
        texts = texts_of(self.model, task, self.tokenizer, self._inputs(task, requests))
        return [Answer(text, remarks) for text, remarks in zip(texts, cut, strict=True)]

    @torch.inference_mode()
    def looked(self, request: Request, pictures: int | None = None) -> tuple[Answer, Attention]:
        """The answer to one request, and where the decoder looked for it; as `answers` besides."""
        problems = problems_of(request, self.tasks, pictures)
        if problems:
            raise InputError(problems)
        task = self.tasks[request.task]
        remarks, batch = self._cut(task, request), self._inputs(task, [request])
        (text,) = texts_of(self.model, task, self.tokenizer, batch)
        # ids that were generated may be fewer than those that their text is read as
        longest = self.model.family.positions(self.model.lm)
        answer = self.tokenizer(
            text, truncation=longest is not None, max_length=longest, return_special_tokens_mask=True,
            return_tensors="pt",
        ).to(batch.input_ids.device)  # fmt: skip
        words = answer.special_tokens_mask[0] == 0
        return Answer(text, remarks), attention(self.model, batch, answer.input_ids, words)

    def _inputs(self, task: Task, requests: Sequence[Request]) -> Batch:
        table = Dataset.from_list(
            [
                {"id": str(i), "images": [str(path) for path in one.images], "text": one.text}
                for i, one in enumerate(requests)
            ]
        )
        collator = Collator(task, table, self.tokenizer, self.pictures)
        return collator.predicting(range(len(table))).to(next(self.model.parameters()).device)

    def _cut(self, task: Task, request: Request) -> tuple[str, ...]:
        """Remarks on a text that is longer than the task reads."""
        limit = task.config.max_input_tokens
        if limit is None:
            return ()
        length = len(self.tokenizer(task.config.prompt + request.text).input_ids)
        if length <= limit:
            return ()
        what = f"{request.where}: the text has {length} tokens with prompt and specials, {task.name} reads {limit}"
        if task.config.too_long == "error":
            raise InputError(f"{what} (tasks.{task.name}.max_input_tokens of the run that trained it); shorten it")
        return (f"{what}; it was cut, as in training",)


def _with_way(problem: str) -> str:
    way = next((way for key, way in WAYS.items() if re.search(rf"\b{re.escape(key)}(:| is )", problem)), None)
    return problem if way is None or way in problem else f"{problem}. Say where it lies on this machine: {way}"


def _remarks(model: VLSeq2Seq) -> list[str]:
    config, found = model.config, []
    trained = model.components().get("language_model", {"trainable": 0, "total": 0})
    if config.backbone.pretrained is None and trained["trainable"] < trained["total"]:
        found.append("the backbone's frozen weights are random (backbone.pretrained is null), so answers mean little")
    if config.clip.pretrained is None:
        found.append("the trunk's weights are random (clip.pretrained is null), so features mean little")
    return found
