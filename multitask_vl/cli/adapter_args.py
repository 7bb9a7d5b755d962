"""How is a saved adapter named on a command line, with the places of what it needs: for every program that asks one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from multitask_vl.errors import InputError

if TYPE_CHECKING:
    from multitask_vl.inference import Pipeline


def add_places(parser: argparse.ArgumentParser) -> None:
    """Options that say where the parts of an adapter's model are, and where it computes."""
    where = parser.add_argument_group("where things are, if not where they were")
    where.add_argument("--backbone", metavar="PATH", help="the frozen language model")
    where.add_argument("--tokenizer", metavar="PATH", help="its tokenizer")
    where.add_argument("--clip", metavar="FILE", help="weights of the trunk, or their tag")
    where.add_argument("--clip-model", metavar="NAME", help="name of the trunk, or its JSON")
    where.add_argument("--store", type=Path, help="a feature store it was trained on: the trunk must be that one's")
    where.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--device", help="default: the GPU if there is one")


def pipeline_of(args: argparse.Namespace, name: str) -> Pipeline:
    """The pipeline of an adapter, a folder or a name on the hub, with the options of `add_places`.

    Raises:
        InputError: as `Pipeline.from_pretrained`, and for a device that is not here.
    """
    # the heavy libraries take seconds to import, and --help needs none
    from multitask_vl.inference import Pipeline

    return Pipeline.from_pretrained(
        name,
        device=_device(args.device),
        backbone=args.backbone,
        tokenizer=args.tokenizer,
        clip=args.clip,
        clip_model=args.clip_model,
        store=args.store,
        revision=args.revision,
    )


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device: {name} is not here: {str(error).splitlines()[0]}") from error
    return name
