"""Model, vision encoder and tokenizer of a saved adapter behind one call."""

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
from multitask_vl.data.store.manifest import encoder_mismatch
from multitask_vl.errors import InputError
from multitask_vl.evaluation.predict import predict_texts
from multitask_vl.inference.attention import AttentionMap, answer_attention
from multitask_vl.inference.image_features import ImageFeaturizer
from multitask_vl.inference.requests import Request, request_problems
from multitask_vl.models.from_pretrained import from_pretrained
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.tasks.base import Task
from multitask_vl.tasks.build import build_tasks

CLI_HINTS = {
    "backbone.pretrained": "--backbone PATH (in Python: backbone=PATH)",
    "backbone.weights": "--backbone PATH (in Python: backbone=PATH)",
    "backbone.tokenizer": "--tokenizer PATH (in Python: tokenizer=PATH)",
    "vision.pretrained": "--vision-weights FILE (in Python: vision_weights=FILE)",
    "vision.model": "--vision-model FILE (in Python: vision_model=FILE)",
}
"""Key of the adapter's configuration -> option that replaces its value."""


@dataclass(frozen=True)
class Answer:
    """Answer of a model to one request.

    Attributes:
        text: the answer.
        warnings: messages about this answer, such as that the question was truncated.
    """

    text: str
    warnings: tuple[str, ...] = ()


class Pipeline:
    """Answer questions about image files with a saved adapter.

        pipeline = Pipeline.from_pretrained("bundled:quickstart")
        pipeline("scene.png", "vqa", "what color is the circle?")  # "red"
        pipeline(["left.png", "right.png"], "nlvr2", "both images contain a circle")  # "true" or "false"

        requests = [Request((path,), "coco_caption") for path in sorted(Path("images").glob("*.jpg"))]
        captions = [answer.text for answer in pipeline.predict(requests)]

    Args:
        model: the model, in eval mode.
        tokenizer: tokenizer of its backbone.
        featurizer: computes the features of image files.

    Attributes:
        tasks: the adapter's tasks by name.
        warnings: messages about all answers, such as that weights are random.
    """

    def __init__(self, model: VLSeq2Seq, tokenizer: PreTrainedTokenizerBase, featurizer: ImageFeaturizer):
        self.model = model
        self.tokenizer = tokenizer
        self.featurizer = featurizer
        self.tasks = build_tasks(model.config)
        trained_on = (model.adapter_record or {}).get("run", {}).get("features", {})
        self.warnings = [*_random_weight_warnings(model), *encoder_mismatch(featurizer.manifest, trained_on)]

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: torch.device | str = "cpu",
        backbone: str | None = None,
        tokenizer: str | None = None,
        vision_weights: str | None = None,
        vision_model: str | None = None,
        store: Path | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> Pipeline:
        """Load the pipeline of a saved adapter.

            pipeline = Pipeline.from_pretrained("runs/quickstart", device="cuda")

        Args:
            name: folder of a run or an adapter, name on the Hugging Face hub, or ``bundled:NAME``.
            device: device of the model and the vision encoder.
            backbone: folder or hub name of the frozen weights, if they have moved since training. They are checked.
            tokenizer: folder or hub name of the tokenizer, if it has moved.
            vision_weights: file or tag of the vision encoder's weights, if they have moved. If they are not the ones
                that the adapter was trained with, ``warnings`` has a message.
            vision_model: name of the vision encoder, or its JSON file, if that has moved.
            store: feature store of the training run; the vision encoder must be the one it names.
            revision: branch, tag or commit on the hub.
            token: hub token; None: the one of ``hf auth login``.

        Returns:
            the pipeline, in eval mode.

        Raises:
            InputError: there is no adapter, or a file that it needs is missing; the message names the option to pass.
        """
        try:
            model, loaded_tokenizer = from_pretrained(
                name, device=device, backbone=backbone, tokenizer=tokenizer, revision=revision, token=token
            )
            changes = {"pretrained": vision_weights, "model": vision_model}
            vision = model.config.vision.model_copy(
                update={key: value for key, value in changes.items() if value is not None}
            )
            featurizer = ImageFeaturizer(vision, model.config.visual, device)
        except InputError as error:
            raise InputError([_with_cli_hint(problem) for problem in error.problems]) from error
        if store is not None:
            featurizer.check_store(store)
        return cls(model, loaded_tokenizer, featurizer)

    def __call__(
        self, images: str | Path | Sequence[str | Path], task: str, text: str = "", num_images: int | None = None
    ) -> str:
        """Answer one question. Warnings about the answer are issued with `warnings.warn`.

            pipeline("scene.png", task="vqa", text="what color is the circle?")

        Args:
            images: one image file, or as many as the task takes (NLVR2: left, right).
            task: name of one of ``tasks``.
            text: question or statement; empty for captions.
            num_images: images per request; None: the task's default.

        Returns:
            the answer.

        Raises:
            InputError: the request does not fit the task, or a file is not an image.
        """
        paths = (images,) if isinstance(images, str | Path) else images
        request = Request(tuple(Path(path) for path in paths), task, text)
        (answer,) = self.predict([request], num_images)
        for message in answer.warnings:
            warnings.warn(message, stacklevel=2)
        return answer.text

    def predict(
        self, requests: Iterable[Request], num_images: int | None = None, batch_size: int = 16
    ) -> Iterator[Answer]:
        """Answer requests in batches. All requests are checked before the first answer is computed.

        Args:
            requests: requests, which may mix tasks; consecutive requests of one task share batches.
            num_images: images per request; None: the task's default.
            batch_size: maximum number of requests per batch.

        Returns:
            iterator over the answers, in the order of ``requests``.

        Raises:
            InputError: lists every request that does not fit its task and every missing file. While iterating: lists
                the files of a batch that are not images.
        """
        requests = list(requests)
        self._check(requests, num_images)
        return self._predict(requests, batch_size)

    @torch.inference_mode()
    def answer_with_attention(self, request: Request, num_images: int | None = None) -> tuple[Answer, AttentionMap]:
        """Answer one request and return the decoder's cross-attention on its images.

        Args:
            request: the request.
            num_images: images per request; None: the task's default.

        Returns:
            the answer, and its attention averaged over layers, heads and answer tokens, [I, T] for I images.

        Raises:
            InputError: the request does not fit its task, or a file is not an image.
        """
        self._check([request], num_images)
        task = self.tasks[request.task]
        messages, batch = self._truncation_warnings(task, request), self._batch(task, [request])
        (text,) = predict_texts(self.model, task, self.tokenizer, batch)
        # the text may have more tokens than were generated, so it is truncated as well
        max_length = self.model.backbone.max_positions(self.model.lm)
        encoding = self.tokenizer(
            text, truncation=max_length is not None, max_length=max_length, return_special_tokens_mask=True,
            return_tensors="pt",
        ).to(batch.input_ids.device)  # fmt: skip
        token_mask = encoding.special_tokens_mask[0] == 0
        return Answer(text, messages), answer_attention(self.model, batch, encoding.input_ids, token_mask)

    def _check(self, requests: Sequence[Request], num_images: int | None) -> None:
        problems = [problem for request in requests for problem in request_problems(request, self.tasks, num_images)]
        if problems:
            raise InputError(problems)

    @torch.inference_mode()
    def _predict_batch(self, task: Task, requests: Sequence[Request]) -> list[Answer]:
        messages = [self._truncation_warnings(task, request) for request in requests]
        texts = predict_texts(self.model, task, self.tokenizer, self._batch(task, requests))
        return [Answer(text, warnings_) for text, warnings_ in zip(texts, messages, strict=True)]

    def _predict(self, requests: list[Request], batch_size: int) -> Iterator[Answer]:
        for (task, _), group in itertools.groupby(requests, lambda request: (request.task, len(request.images))):
            grouped = list(group)
            for start in range(0, len(grouped), batch_size):
                yield from self._predict_batch(self.tasks[task], grouped[start : start + batch_size])

    def _batch(self, task: Task, requests: Sequence[Request]) -> Batch:
        rows = [
            {"id": str(i), "images": [str(path) for path in request.images], "text": request.text}
            for i, request in enumerate(requests)
        ]
        collator = Collator(task, Dataset.from_list(rows), self.tokenizer, self.featurizer)
        return collator.eval_batch(range(len(rows))).to(next(self.model.parameters()).device)

    def _truncation_warnings(self, task: Task, request: Request) -> tuple[str, ...]:
        """Warn about a text over the task's token limit; raise InputError if the task does not truncate."""
        limit = task.config.max_input_tokens
        if limit is None:
            return ()
        length = len(self.tokenizer(task.config.prompt + request.text).input_ids)
        if length <= limit:
            return ()
        message = (
            f"{request.where}: the text has {length} tokens with prompt and special tokens, but {task.name} reads at "
            f"most {limit}"
        )
        if task.config.overflow == "error":
            raise InputError(f"{message} (tasks.{task.name}.max_input_tokens of the training run); shorten it")
        return (f"{message}; it was truncated, as in training",)


def _with_cli_hint(problem: str) -> str:
    """Add the option that replaces the configuration key of a problem."""
    hint = next((hint for key, hint in CLI_HINTS.items() if re.search(rf"\b{re.escape(key)}(:| is )", problem)), None)
    return problem if hint is None or hint in problem else f"{problem}. Set its path on this machine: {hint}"


def _random_weight_warnings(model: VLSeq2Seq) -> list[str]:
    config, messages = model.config, []
    counts = model.parameter_breakdown().get("language_model", {"trainable": 0, "total": 0})
    if config.backbone.pretrained is None and counts["trainable"] < counts["total"]:
        messages.append(
            "the backbone's frozen weights are random (backbone.pretrained is null), so answers are not meaningful"
        )
    if config.vision.pretrained is None:
        messages.append(
            "the vision encoder's weights are random (vision.pretrained is null), so features are not meaningful"
        )
    return messages
