"""Ask a saved adapter about pictures: python launch/predict.py --adapter DIR|HUB --image F --task vqa --text '...'

Each picture is a question of its own with the same text; a task that judges several pictures together (nlvr2: two)
takes them in turn. Captions take no text. Questions of several kinds: --requests FILE, lines such as
{"image": "a.jpg", "task": "vqa", "text": "what is it?"} or {"images": ["left.png", "right.png"], "task": "nlvr2", ...}.

Answers go to stdout, one a line; what a reader should know of them (random weights, a question that was cut) goes to
stderr, with --json into each line.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from multitask_vl.cli.adapter_args import add_places, pipeline_of
from multitask_vl.errors import InputError, exits_cleanly


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True, help="a run's folder or its adapter/, or a name on the hub")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--image", action="append", type=Path, help="a picture file, repeatable")
    asked.add_argument("--requests", type=Path, metavar="FILE", help="JSON lines; paths in it start at its folder")
    parser.add_argument("--task", help="may be left out where the adapter has only one")
    parser.add_argument("--text", default="", help="the question or statement")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--pictures", type=int, metavar="N", help="pictures of one question, if not the task's number")
    parser.add_argument("--batch-size", type=int, default=16)
    add_places(parser)
    args = parser.parse_args()
    for name in ("pictures", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}: got {getattr(args, name)}; at least 1")
    pipeline = pipeline_of(args, args.adapter)
    task = args.task or (next(iter(pipeline.tasks)) if len(pipeline.tasks) == 1 else None)
    from multitask_vl.inference.requests import read_requests

    requests = read_requests(args.requests, task) if args.requests else list(_of_words(args, task, pipeline))
    for remark in pipeline.remarks:
        print(f"note: {remark}", file=sys.stderr)
    answers = pipeline.answers(requests, args.pictures, args.batch_size)
    for request, answer in zip(requests, answers, strict=True):
        if args.json:
            line = {
                "images": [str(path) for path in request.images],
                "task": request.task,
                "text": request.text,
                "answer": answer.text,
                "remarks": [*pipeline.remarks, *answer.remarks],
            }
            print(json.dumps(line, ensure_ascii=False), flush=True)
            continue
        for remark in answer.remarks:
            print(f"note: {remark}", file=sys.stderr)
        print(answer.text, flush=True)


def _of_words(args: argparse.Namespace, task: str | None, pipeline) -> Iterator:
    """Requests of the pictures on the command line, as many a request as the task takes."""
    from multitask_vl.inference import Request

    if task is None:
        raise InputError(f"--task: the adapter has {len(pipeline.tasks)}, say which: {', '.join(pipeline.tasks)}")
    size = args.pictures or (pipeline.tasks[task].pictures if task in pipeline.tasks else 1)
    for start in range(0, len(args.image), size):
        yield Request(tuple(args.image[start : start + size]), task, args.text, "--image")


if __name__ == "__main__":
    raise SystemExit(main())
