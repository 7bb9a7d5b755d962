"""How is what was trained kept: a folder of configuration, tensors and card, loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn import Parameter

from multitask_vl.config.schema import Config
from multitask_vl.durable import write_whole
from multitask_vl.errors import InputError

FORMAT_VERSION = 1
CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"

REASONS = {
    "backbone": "its tensors belong to another backbone (sizes, vocabulary or weights)",
    "visual": "its visual embedding was built otherwise",
    "tasks": "it was trained for another list of tasks",
    "method": "it is of another method or has other settings",
    "routing": "its bottlenecks were trained with other routing",
}


class Adapted(Protocol):
    """What saving and loading ask of a model; `VLSeq2Seq` has it. Named here since models stand above methods."""

    description: dict[str, Any]

    def trainable(self) -> dict[str, Parameter]:
        """What is saved."""

    def parameter_counts(self) -> tuple[int, int]:
        """Trainable and total."""

    def components(self) -> dict[str, dict[str, int]]:
        """Trainable and total by component."""


def save_adapter(model: Adapted, folder: Path, config: Config) -> None:
    """Write all trainable tensors, what they depend on, and a card. Every file appears whole or not at all.

    Args:
        folder: is made if need be; files of the same names are replaced.
        config: of the run, for the card.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in model.trainable().items()}
    trainable, total = model.parameter_counts()
    record = {"format_version": FORMAT_VERSION, **model.description, "parameters": {"trainable": trainable}}
    record["parameters"]["total"] = total
    write_whole(folder / TENSOR_FILE, save(tensors, metadata={"format": "pt"}))
    write_whole(folder / CARD_FILE, _card(model, config).encode())
    # last, so that a folder with this file is complete
    write_whole(folder / CONFIG_FILE, (json.dumps(record, indent=2) + "\n").encode())


def load_adapter(model: Adapted, folder: Path) -> None:
    """Put saved tensors into a model that was built alike. Nothing is changed unless everything fits.

    Raises:
        InputError: no adapter there, one of another backbone, task list, method or routing, or tensors that are
            missing, unknown or of another shape; all differences at once.
    """
    folder = Path(folder)
    record = _read_record(folder)
    problems = [
        f"{folder / CONFIG_FILE}: {part}: {where} is {_short(saved)} there and {_short(own)} in this model; "
        f"{REASONS[part]}. Build the model from the resolved.yaml of the run that saved it"
        for part in REASONS
        for where, saved, own in _differences(record.get(part), _as_json(model.description[part]), part)
    ]
    if problems:
        raise InputError(problems)
    tensors = _read_tensors(folder / TENSOR_FILE)
    own = model.trainable()
    problems = [
        *_named(folder, "missing", [name for name in own if name not in tensors]),
        *_named(folder, "not part of this model", [name for name in tensors if name not in own]),
        *(
            f"{folder / TENSOR_FILE}: {name} is {list(tensors[name].shape)} there and {list(own[name].shape)} here"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ),
    ]
    if problems:
        raise InputError(problems)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(
            f"{folder}: there is no adapter here ({CONFIG_FILE} is missing); give the folder adapter/ of a run"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
        version = record.get("format_version") if isinstance(record, dict) else None
        raise InputError(f"{path}: format_version is {version}, this program reads {FORMAT_VERSION}")
    return record


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: missing; the adapter was not written to its end. Save it again")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be read: {error}. Copy it again, or save the adapter again") from error


def _differences(saved: Any, own: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Dotted places at which two JSON values differ."""
    if isinstance(saved, list) and isinstance(own, list) and len(saved) == len(own):
        saved, own = dict(enumerate(saved)), dict(enumerate(own))
    if isinstance(saved, Mapping) and isinstance(own, Mapping):
        for key in dict.fromkeys([*saved, *own]):
            yield from _differences(saved.get(key), own.get(key), f"{where}.{key}")
    elif saved != own:
        yield where, saved, own


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _named(folder: Path, what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    return [f"{folder / TENSOR_FILE}: {len(names)} tensors are {what} (first: {names[0]})"]


def _card(model: Adapted, config: Config) -> str:
    """The adapter's README.md: what it is, what it needs, how big it is."""
    trainable, total = model.parameter_counts()
    methods = ", ".join(one.name for one in config.method)
    backbone = config.backbone.pretrained or f"random weights, seed {config.seed}"
    function = config.routing.function
    routing = function if isinstance(function, str) else ", ".join(f"{task}: {name}" for task, name in function.items())
    rows = [f"| {name} | {count['trainable']:,} | {count['total']:,} |" for name, count in model.components().items()]
    return "\n".join(
        [
            f"# {methods} for {', '.join(config.tasks)}",
            "",
            f"Trained tensors of a multitask vision-language model on {config.backbone.family} ({backbone}).",
            "",
            f"- method: {methods}",
            f"- routing: {routing} (source {config.routing.source}, control {config.routing.control})",
            f"- features: {config.clip.model}, {config.clip.pretrained or 'random weights'}",
            "- needs: the backbone above, and a configuration that agrees with `adapter_config.json`",
            "",
            "| component | trainable | total |",
            "|---|---|---|",
            *rows,
            f"| all | {trainable:,} ({100 * trainable / total:.2f} %) | {total:,} |",
            "",
            "Load it with `python launch/evaluate.py --config RESOLVED_YAML --adapter THIS_FOLDER`.",
            "",
        ]
    )
