"""Save and load adapters: a folder with configuration, tensors and model card, loaded strictly."""

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
from multitask_vl.errors import InputError, truncate
from multitask_vl.methods.artifact.card import card
from multitask_vl.storage.atomic import atomic_write

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 has no configuration: its tensors can be loaded, but the model cannot be built from the folder alone."""
CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
ADAPTER_FOLDER = "adapter"
"""Subfolder of a run folder or of a merged model that holds the adapter."""
SECTIONS = {"plugins", "seed", "backbone", "visual", "vision", "tasks", "method", "routing"}
"""Sections of the configuration that define the model and the vision encoder whose features it reads."""

MISMATCH_REASONS = {
    "backbone": "the adapter belongs to another backbone (sizes, vocabulary or weights)",
    "visual": "its visual embedding has other settings",
    "tasks": "it was trained for another list of tasks",
    "method": "it uses another method or other settings",
    "routing": "its bottlenecks were trained with other routing",
}


class AdaptedModel(Protocol):
    """Interface of a model that can be saved and loaded, implemented by `VLSeq2Seq` (models import methods)."""

    compatibility: dict[str, Any]
    adapter_record: dict[str, Any] | None
    """Record of the adapter that was loaded last."""

    def trainable_parameters(self) -> dict[str, Parameter]:
        """The parameters that are saved, by name."""

    def parameter_counts(self) -> tuple[int, int]:
        """Trainable and total number of parameters."""

    def parameter_breakdown(self) -> dict[str, dict[str, int]]:
        """Trainable and total number of parameters by component."""


def compatibility_settings(config: Config) -> dict[str, Any]:
    """Settings that must be equal in an adapter and in the model it is loaded into, as JSON values."""
    return {
        "visual": config.visual.model_dump(mode="json", exclude={"init_normalize"}),
        "method": [method.model_dump(mode="json") for method in config.method],
        "routing": config.routing.model_dump(mode="json"),
    }


def save_adapter(
    model: AdaptedModel,
    folder: Path,
    config: Config,
    run: Mapping[str, Any] | None = None,
    merged: Mapping[str, Any] | None = None,
) -> None:
    """Save all trainable tensors, the configuration needed to build the model, and a model card.

    Every file is written atomically.

    Args:
        model: the model.
        folder: created if needed; files of the same names are replaced.
        config: configuration of the run. Paths of its data are not saved.
        run: training information for the card: ``data``, ``training``, ``scores``. None: that of the adapter that was
            loaded, if no tensor has changed since.
        merged: ``{"pretrained", "method"}`` if the folder belongs to a merged model: the base weights and the methods
            that were merged into them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = save(
        {name: parameter.detach().cpu().contiguous() for name, parameter in model.trainable_parameters().items()},
        metadata={"format": "pt"},
    )
    digest = hashlib.sha256(content).hexdigest()
    if run is None and model.adapter_record and model.adapter_record.get("sha256") == digest:
        run = model.adapter_record["run"]
    trainable, total = model.parameter_counts()
    sections = config.model_dump(mode="json", include=SECTIONS)
    for task in sections["tasks"].values():
        del task["splits"]
    record = {
        "format_version": FORMAT_VERSION,
        "multitask_vl": __version__,
        **model.compatibility,
        "config": sections,
        "parameters": {"trainable": trainable, "total": total, "components": model.parameter_breakdown()},
        "sha256": digest,
        "merged": dict(merged) if merged else None,
        "run": dict(run or {}),
    }
    atomic_write(folder / TENSOR_FILE, content)
    _write_record(folder, record)


def add_scores(folder: Path, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Add a run's final scores to the record and the card of its adapter.

    Args:
        folder: folder of the adapter.
        splits: split -> ``{"tasks": {task: {"primary_metric", "value", "count", ...}}}``, as in scores.json.
    """
    record = read_record(folder)
    keys = ("primary_metric", "value", "count", "version")
    scores = {
        split: {
            task: {key: entry[key] for key in keys}
            for task, entry in result["tasks"].items()
            if entry["value"] is not None
        }
        for split, result in splits.items()
    }
    _write_record(Path(folder), {**record, "run": {**record["run"], "scores": scores}})


def load_adapter(model: AdaptedModel, folder: Path) -> None:
    """Load saved tensors into a model built with the same settings. The model is unchanged if anything does not fit.

    Raises:
        InputError: no adapter in ``folder``; another backbone, task list, method or routing; or tensors that are
            missing, unknown or of another shape. All differences are reported together.
    """
    folder = Path(folder)
    record = read_record(folder)
    saved_settings = _with_defaults(record)
    problems = [
        f"{folder / CONFIG_FILE}: {key} is {_short(saved)} in the adapter and {_short(expected)} in this model; "
        f"{reason}. Build the model from the resolved.yaml of the run that saved it"
        for section, reason in MISMATCH_REASONS.items()
        for key, saved, expected in _differences(
            saved_settings.get(section), _as_json(model.compatibility[section]), section
        )
    ]
    if problems:
        raise InputError(problems)
    tensors = _read_tensors(folder / TENSOR_FILE)
    parameters = model.trainable_parameters()
    problems = [
        *_list_names(folder, "missing", [name for name in parameters if name not in tensors]),
        *_list_names(folder, "not part of this model", [name for name in tensors if name not in parameters]),
        *(
            f"{folder / TENSOR_FILE}: {name} has shape {list(tensors[name].shape)}, this model expects "
            f"{list(parameter.shape)}"
            for name, parameter in parameters.items()
            if name in tensors and tensors[name].shape != parameter.shape
        ),
    ]
    if problems:
        raise InputError(problems)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    model.adapter_record = record


def read_record(folder: Path) -> dict[str, Any]:
    """Read the adapter_config.json of a folder.

    Raises:
        InputError: it is missing, not JSON, written by the library peft, or of an unsupported version.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{folder}: no adapter found ({CONFIG_FILE} is missing); pass the folder adapter/ of a run")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    if isinstance(record, dict) and "peft_type" in record:
        raise InputError(
            f"{path}: this adapter was saved by the library peft (peft_type {record['peft_type']}), without tasks and "
            "visual embedding; load it with peft.PeftModel, or pass the folder adapter/ of a run"
        )
    if not isinstance(record, dict) or record.get("format_version") not in READABLE_VERSIONS:
        version = record.get("format_version") if isinstance(record, dict) else None
        raise InputError(
            f"{path}: format_version is {version}, supported are {' and '.join(map(str, READABLE_VERSIONS))}; "
            "a newer release of multitask-vl may read it"
        )
    return record


def find_adapter(folder: Path) -> Path:
    """The adapter folder, given itself, a run folder or the folder of a merged model."""
    inner = Path(folder) / ADAPTER_FOLDER
    return inner if not (Path(folder) / CONFIG_FILE).exists() and (inner / CONFIG_FILE).exists() else Path(folder)


def require_empty_dir(folder: Path) -> Path:
    """Return ``folder`` if it is empty or does not exist yet, so that new files are not mixed with others.

    Raises:
        InputError: the folder has content, or it is a file.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: already exists; choose another folder, or remove it: rm -r {folder}")
    return folder


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    atomic_write(folder / CARD_FILE, card(record))
    # last, so that a folder with this file is complete
    atomic_write(folder / CONFIG_FILE, json.dumps(record, indent=2) + "\n")


def _with_defaults(record: dict[str, Any]) -> dict[str, Any]:
    """The record with defaults for settings that were added to the schema after it was saved."""
    try:
        config = Config.model_validate({key: record[key] for key in ("visual", "method", "routing")})
    except (KeyError, ValidationError):
        return record  # the comparison reports what is wrong
    return {**record, **compatibility_settings(config)}


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: missing; the adapter is incomplete. Save it again")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be read: {error}. Copy it again, or save the adapter again") from error


def _differences(saved: Any, expected: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys at which two JSON values differ, with both values."""
    if isinstance(saved, list) and isinstance(expected, list) and len(saved) == len(expected):
        saved, expected = dict(enumerate(saved)), dict(enumerate(expected))
    if isinstance(saved, Mapping) and isinstance(expected, Mapping):
        for inner in dict.fromkeys([*saved, *expected]):
            yield from _differences(saved.get(inner), expected.get(inner), f"{key}.{inner}")
    elif saved != expected:
        yield key, saved, expected


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _short(value: Any) -> str:
    return truncate(json.dumps(value))


def _list_names(folder: Path, problem: str, names: list[str]) -> list[str]:
    if not names:
        return []
    return [f"{folder / TENSOR_FILE}: {len(names)} tensors are {problem} (first: {names[0]})"]
