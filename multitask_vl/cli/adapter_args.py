"""Arguments that load a saved adapter, shared by the inference commands."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from multitask_vl.errors import InputError

if TYPE_CHECKING:
    from multitask_vl.inference import Pipeline


def add_adapter_arguments(parser: argparse.ArgumentParser) -> None:
    """Add options for where the parts of an adapter's model are and on which device it runs."""
    paths = parser.add_argument_group("model files, if they have moved since training")
    paths.add_argument("--backbone", metavar="PATH", help="frozen language model")
    paths.add_argument("--tokenizer", metavar="PATH", help="tokenizer of the language model")
    paths.add_argument("--vision-weights", metavar="FILE", help="weights of the vision encoder, or their tag")
    paths.add_argument("--vision-model", metavar="NAME", help="name of the vision encoder, or its JSON file")
    paths.add_argument(
        "--store", type=Path, help="feature store of the training run, to check that the vision encoder is the same"
    )
    paths.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--device", help="device to run on (default: the GPU if there is one)")


def pipeline_from_args(args: argparse.Namespace, name: str) -> Pipeline:
    """Load the pipeline of an adapter with the options of `add_adapter_arguments`.

    Args:
        args: parsed arguments of the command.
        name: run folder, adapter folder or name on the hub.

    Raises:
        InputError: as `Pipeline.from_pretrained`, and for a device that is not available.
    """
    from multitask_vl.inference import Pipeline

    return Pipeline.from_pretrained(
        name,
        device=_device(args.device),
        backbone=args.backbone,
        tokenizer=args.tokenizer,
        vision_weights=args.vision_weights,
        vision_model=args.vision_model,
        store=args.store,
        revision=args.revision,
    )


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Raise an InputError unless the named options are unset or greater than 0."""
    for name in names:
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')}: got {value}; must be greater than 0")


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device: {name} is not available: {str(error).splitlines()[0]}") from error
    return name
