"""Serve saved adapters on a web page.

    multitask-vl demo --adapter runs/quickstart --adapter no_routing=runs/another

The adapters answer questions about uploaded images side by side, each with a map of its attention. Needs gradio:
pip install "multitask-vl[demo]". The page loads nothing from other hosts and serves no files of this machine. Only this
machine can reach it, unless --host is changed.
"""

from __future__ import annotations

import argparse
import ipaddress
from pathlib import Path

from multitask_vl.cli.adapter_args import add_adapter_arguments, check_positive, pipeline_from_args
from multitask_vl.errors import InputError
from multitask_vl.logging import get_logger

logger = get_logger(__name__)
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--adapter",
        action="append",
        required=True,
        metavar="[NAME=]DIR|HUB",
        help="run folder, adapter folder or name on the hub, repeatable; NAME is shown on the page",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all interfaces (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port; 0: any free one (default: %(default)s)")
    parser.add_argument(
        "--images-per-request", type=int, metavar="N", help="images per question (default: what the task takes)"
    )
    parser.add_argument(
        "--max-megabytes", type=float, default=10, help="maximum upload size in MB (default: %(default)s)"
    )
    parser.add_argument(
        "--max-megapixels", type=float, default=40, help="maximum image size in megapixels (default: %(default)s)"
    )
    parser.add_argument(
        "--max-queue", type=int, default=64, help="maximum number of queued questions (default: %(default)s)"
    )
    add_adapter_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    check_positive(args, "images_per_request", "max_megabytes", "max_megapixels", "max_queue")
    adapters = dict(_named(argument) for argument in args.adapter)
    if len(adapters) < len(args.adapter):
        raise InputError(
            "--adapter: two adapters have the same name; name them: --adapter first=DIR --adapter second=DIR"
        )
    from multitask_vl.demo.answers import AnswerRenderer
    from multitask_vl.demo.page import serve
    from multitask_vl.demo.uploads import Limits

    limits = Limits(megabytes=args.max_megabytes, megapixels=args.max_megapixels, max_queue=args.max_queue)
    pipelines = {name: pipeline_from_args(args, path) for name, path in adapters.items()}
    renderer = AnswerRenderer(pipelines, limits, args.images_per_request)
    for warning in renderer.warnings:
        logger.warning(warning)
    serve(renderer, args.host, args.port, None if _is_public(args.host) else [*LOOPBACK, args.host])


def _named(argument: str) -> tuple[str, str]:
    """Return the name of an adapter on the page, and its path."""
    name, equals, path = argument.partition("=")
    if equals and name and path:
        return name, path
    folder = Path(argument).resolve()
    return (folder.parent.name if folder.name == "adapter" else folder.name), argument


def _is_public(host: str) -> bool:
    """Return whether other machines can reach the server; they may use any host name for it."""
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host != "localhost"
