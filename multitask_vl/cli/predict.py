"""Answer questions about images with a saved adapter.

    multitask-vl predict --adapter runs/quickstart --image a.png --task vqa --text "what color is the circle?"

Each image is a separate question with the same text; a task that takes several images (nlvr2: two) groups them in
order. Captioning takes no text. Different questions: --requests FILE with lines such as
{"image": "a.jpg", "task": "vqa", "text": "what is it?"} or {"images": ["left.png", "right.png"], "task": "nlvr2", ...}.

Answers go to stdout, one per line; warnings (random weights, a truncated question) go to stderr, with --json also into
each line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from multitask_vl.cli.adapter_args import add_adapter_arguments, check_positive, pipeline_from_args
from multitask_vl.errors import InputError
from multitask_vl.logging import get_logger

if TYPE_CHECKING:
    from multitask_vl.inference import Pipeline, Request

logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--adapter", required=True, help="run folder, adapter folder, or name on the hub")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", action="append", type=Path, help="image file, repeatable")
    source.add_argument(
        "--requests", type=Path, metavar="FILE", help="JSON lines of questions; image paths are relative to its folder"
    )
    parser.add_argument("--task", help="task to run; optional if the adapter has only one")
    parser.add_argument("--text", default="", help="question or statement")
    parser.add_argument("--json", action="store_true", help="print one JSON object per answer")
    parser.add_argument(
        "--images-per-request", type=int, metavar="N", help="images per question (default: what the task takes)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="questions per batch (default: %(default)s)")
    add_adapter_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    check_positive(args, "images_per_request", "batch_size")
    pipeline = pipeline_from_args(args, args.adapter)
    task = args.task or (next(iter(pipeline.tasks)) if len(pipeline.tasks) == 1 else None)
    from multitask_vl.inference.requests import read_requests

    requests = read_requests(args.requests, task) if args.requests else list(_image_requests(args, task, pipeline))
    for warning in pipeline.warnings:
        logger.warning(warning)
    answers = pipeline.predict(requests, args.images_per_request, args.batch_size)
    for request, answer in zip(requests, answers, strict=True):
        if args.json:
            line = {
                "images": [str(path) for path in request.images],
                "task": request.task,
                "text": request.text,
                "answer": answer.text,
                "warnings": [*pipeline.warnings, *answer.warnings],
            }
            print(json.dumps(line, ensure_ascii=False), flush=True)
            continue
        for warning in answer.warnings:
            logger.warning(warning)
        print(answer.text, flush=True)


def _image_requests(args: argparse.Namespace, task: str | None, pipeline: Pipeline) -> Iterator[Request]:
    """Group the images of the command line into requests."""
    from multitask_vl.inference import Request

    if task is None:
        raise InputError(
            f"--task: the adapter has {len(pipeline.tasks)} tasks; choose one of {', '.join(pipeline.tasks)}"
        )
    size = args.images_per_request or (pipeline.tasks[task].num_images if task in pipeline.tasks else 1)
    for start in range(0, len(args.image), size):
        yield Request(tuple(args.image[start : start + size]), task, args.text, "--image")
