"""How is what was trained kept: a folder of configuration, tensors and card, loaded strictly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn import Parameter

from multitask_vl import __version__
from multitask_vl.config.schema import Config
from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.card import card
from multitask_vl.storage.atomic import write_whole

FORMAT_VERSION = 2
READABLE = (1, 2)
"""Version 1 holds no configuration: its tensors can be loaded, the model cannot be built from it alone."""
CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
ADAPTER_FOLDER = "adapter"
"""Where an adapter lies in the folder of a run or of a merged model."""
SECTIONS = {"plugins", "seed", "backbone", "visual", "clip", "tasks", "method", "routing"}
"""Sections of the configuration that decide the model, and the trunk whose features it reads."""

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
    loaded: dict[str, Any] | None
    """The record of the adapter that was loaded last."""

    def trainable(self) -> dict[str, Parameter]:
        """What is saved."""

    def parameter_counts(self) -> tuple[int, int]:
        """Trainable and total."""

    def components(self) -> dict[str, dict[str, int]]:
        """Trainable and total by component."""


def settings_that_decide(config: Config) -> dict[str, Any]:
    """Settings of which every one must agree between an adapter and the model it is loaded into; JSON-able."""
    return {
        "visual": config.visual.model_dump(mode="json", exclude={"standardize"}),
        "method": [one.model_dump(mode="json") for one in config.method],
        "routing": config.routing.model_dump(mode="json"),
    }


def save_adapter(
    model: Adapted,
    folder: Path,
    config: Config,
    run: Mapping[str, Any] | None = None,
    merged: Mapping[str, Any] | None = None,
) -> None:
    """Write all trainable tensors, what their model is built from, and a card. Every file appears whole or not at all.

    Args:
        folder: is made if need be; files of the same names are replaced.
        config: of the run. Where its data lie is not kept.
        run: what the card tells of the training: ``data``, ``training``, ``scores``. None: what was told of the
            adapter that was loaded, if no tensor has changed since.
        merged: ``{"pretrained", "method"}`` of what was folded into what, if the folder lies in one with the weights
            of its language model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = save(
        {name: parameter.detach().cpu().contiguous() for name, parameter in model.trainable().items()},
        metadata={"format": "pt"},
    )
    digest = hashlib.sha256(content).hexdigest()
    if run is None and model.loaded and model.loaded.get("sha256") == digest:
        run = model.loaded["run"]
    trainable, total = model.parameter_counts()
    sections = config.model_dump(mode="json", include=SECTIONS)
    for task in sections["tasks"].values():
        del task["splits"]
    record = {
        "format_version": FORMAT_VERSION,
        "multitask_vl": __version__,
        **model.description,
        "config": sections,
        "parameters": {"trainable": trainable, "total": total, "components": model.components()},
        "sha256": digest,
        "merged": dict(merged) if merged else None,
        "run": dict(run or {}),
    }
    write_whole(folder / TENSOR_FILE, content)
    _write_record(folder, record)


def add_scores(folder: Path, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Put a run's final scores into the record and the card of its adapter.

    Args:
        splits: split -> ``{"tasks": {task: {"headline", "value", "count", ...}}}``, as in scores.json.
    """
    record = read_record(folder)
    kept = ("headline", "value", "count", "version")
    scores = {
        split: {
            task: {key: entry[key] for key in kept}
            for task, entry in result["tasks"].items()
            if entry["value"] is not None
        }
        for split, result in splits.items()
    }
    _write_record(Path(folder), {**record, "run": {**record["run"], "scores": scores}})


def load_adapter(model: Adapted, folder: Path) -> None:
    """Put saved tensors into a model that was built alike. Nothing is changed unless everything fits.

    Raises:
        InputError: no adapter there, one of another backbone, task list, method or routing, or tensors that are
            missing, unknown or of another shape; all differences at once.
    """
    folder = Path(folder)
    record = read_record(folder)
    known = _completed(record)
    problems = [
        f"{folder / CONFIG_FILE}: {part}: {where} is {_short(saved)} there and {_short(own)} in this model; "
        f"{REASONS[part]}. Build the model from the resolved.yaml of the run that saved it"
        for part in REASONS
        for where, saved, own in _differences(known.get(part), _as_json(model.description[part]), part)
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
    model.loaded = record


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a folder's adapter_config.json.

    Raises:
        InputError: there is none, it is another library's, or of a version that this program does not read.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise InputError(
            f"{folder}: there is no adapter here ({CONFIG_FILE} is missing); give the folder adapter/ of a run"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from error
    if isinstance(record, dict) and "peft_type" in record:
        raise InputError(
            f"{path}: this is an adapter of the library peft (peft_type {record['peft_type']}), which has neither "
            "tasks nor a visual embedding; load it with peft.PeftModel, or give the folder adapter/ of a run"
        )
    if not isinstance(record, dict) or record.get("format_version") not in READABLE:
        version = record.get("format_version") if isinstance(record, dict) else None
        raise InputError(
            f"{path}: format_version is {version}, this program reads {' and '.join(map(str, READABLE))}; "
            "a newer one may read it"
        )
    return record


def find_adapter(folder: Path) -> Path:
    """The folder of an adapter, given it or the folder of a run or of a merged model."""
    inner = Path(folder) / ADAPTER_FOLDER
    return inner if not (Path(folder) / CONFIG_FILE).exists() and (inner / CONFIG_FILE).exists() else Path(folder)


def refuse_occupied(folder: Path) -> Path:
    """``folder`` if it is empty or still to be made, so that nothing of another kind is mixed with what is written."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: there is something already; choose another folder, or remove it: rm -r {folder}")
    return folder


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    write_whole(folder / CARD_FILE, card(record))
    # last, so that a folder with this file is complete
    write_whole(folder / CONFIG_FILE, json.dumps(record, indent=2) + "\n")


def _completed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the settings that the schema got after it was written, at their defaults."""
    try:
        config = Config.model_validate({key: record[key] for key in ("visual", "method", "routing")})
    except (KeyError, ValidationError):
        return record  # comparing it will tell what is wrong
    return {**record, **settings_that_decide(config)}


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
