"""Ask saved adapters in a browser: python launch/demo.py --adapter RUN [--adapter NAME=OTHER ...]

A page with task, picture and question; the adapters answer side by side, each with a map of where it looked. Needs
gradio: pip install -e ".[demo]". The page loads nothing from elsewhere and no file of this machine can be had from it;
only this machine reaches it, unless --host says otherwise.
"""

import argparse
import ipaddress
from pathlib import Path

from multitask_vl.cli.adapter_args import add_places, pipeline_of
from multitask_vl.errors import InputError, exits_cleanly

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--adapter", action="append", required=True, metavar="[NAME=]DIR|HUB", help="as for predict.py; repeatable"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860, help="0: any that is free")
    parser.add_argument("--pictures", type=int, metavar="N", help="pictures of one question, if not the task's number")
    parser.add_argument("--max-megabytes", type=float, default=10, help="of an uploaded file")
    parser.add_argument("--max-megapixels", type=float, default=40, help="of an uploaded picture")
    parser.add_argument("--max-waiting", type=int, default=64, help="questions in the queue; more are turned away")
    add_places(parser)
    args = parser.parse_args()
    for name in ("pictures", "max_megabytes", "max_megapixels", "max_waiting"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')}: got {value}; more than 0")
    named = dict(_named(one) for one in args.adapter)
    if len(named) < len(args.adapter):
        raise InputError("--adapter: two are called alike; give them names: --adapter first=DIR --adapter second=DIR")
    from multitask_vl.demo.answers import Answers
    from multitask_vl.demo.page import serve
    from multitask_vl.demo.uploads import Limits

    limits = Limits(megabytes=args.max_megabytes, megapixels=args.max_megapixels, waiting=args.max_waiting)
    pipelines = {name: pipeline_of(args, where) for name, where in named.items()}
    answers = Answers(pipelines, limits, args.pictures)
    for remark in answers.remarks:
        print(f"note: {remark}")
    serve(answers, args.host, args.port, None if _is_open(args.host) else [*LOOPBACK, args.host])


def _named(word: str) -> tuple[str, str]:
    """What an adapter is called on the page, and where it is."""
    name, equals, where = word.partition("=")
    if equals and name and where:
        return name, where
    path = Path(word).resolve()
    return (path.parent.name if path.name == "adapter" else path.name), word


def _is_open(host: str) -> bool:
    """Whether other machines reach the server, by whatever names they have for it."""
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host != "localhost"


if __name__ == "__main__":
    raise SystemExit(main())
