"""How is a saved adapter looked into: its model, some examples of a split, everything measured, one file written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from multitask_vl.analysis.attention import attention_maps
from multitask_vl.analysis.gates import gate_map, gate_means, gated
from multitask_vl.analysis.norms import initial_values, norm_changes
from multitask_vl.analysis.x_r_similarity import cosines, routing_states
from multitask_vl.config.schema import Config
from multitask_vl.data.collate import Collator
from multitask_vl.errors import InputError
from multitask_vl.evaluation.precision import predicting_in
from multitask_vl.evaluation.predict import texts_of
from multitask_vl.methods.artifact.adapter_io import find_adapter, load_adapter
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.run.build import make_accelerator, prepare
from multitask_vl.storage.atomic import write_whole

NAME = "analysis.json"
BLIND = "A blind control: the pictures are those that the model was given, not the examples' own."
DRAWN, COMPARED = 4, 64
"""Examples a task that are drawn, and whose x_R are compared."""


def analyse(
    config: Config,
    adapter: Path,
    split: str,
    count: int = DRAWN,
    ids: Sequence[str] = (),
    compared: int = COMPARED,
) -> dict[str, Any]:
    """What `analysis.json` holds.

    Args:
        config: of the run; its data and features are read.
        adapter: folder of the adapter, or of its run.
        split: whose examples are shown.
        count: examples a task whose attention is drawn, chosen by id; more that ``ids`` names, as ``task:id``.
        compared: examples a task for the cosines of x_R and the means of gates; at least 2.

    Raises:
        InputError: the adapter does not fit, data are missing, no task has the split, or it has not one of ``ids``.
    """
    accelerator = make_accelerator(config)
    run = prepare(config, accelerator, [split])
    collators = {one.task.name: one for one in run.splits([split])[split]}
    if not collators:
        raise InputError(f"--split: no task has a split {split!r}")
    named = _named(ids, collators, split)
    model = run.model.eval()
    initial = initial_values(model)
    load_adapter(model, find_adapter(adapter))
    attention, means, states, maps = [], {}, {}, {}
    with predicting_in(model, accelerator, config.evaluation.bf16_weights):
        for task, collator in collators.items():
            attention += _attention(model, collator, _drawn(collator, count, named.get(task, ())))
            rows = _drawn(collator, compared)
            if len(rows) < 2:
                continue
            batch = collator.predicting(rows).to(accelerator.device)
            states[task] = routing_states(model, batch).cpu()
            if gated(model):
                means[task] = gate_means(model, batch)
                maps[task] = {"id": batch.ids[0], **(gate_map(model, collator.tokenizer, batch) or {})}
    accelerator.end_training()
    return {
        "split": split,
        "norms": norm_changes(model, initial),
        "attention": attention,
        "gates": {"means": means, "maps": maps},
        "notes": [BLIND] if config.features.control == "shuffled" else [],
        "x_r": {**cosines(states), **_routing(model)} if len(states) > 1 else None,
    }


def write_analysis(folder: Path, found: Mapping[str, Any]) -> Path:
    """Write an analysis where a report looks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    write_whole(path, json.dumps(found, ensure_ascii=False) + "\n")
    return path


def _routing(model: VLSeq2Seq) -> dict[str, Any]:
    routing = model.config.routing
    return {"routed": model.context.routed, "source": routing.source, "control": routing.control}


def _named(ids: Sequence[str], collators: Mapping[str, Collator], split: str) -> dict[str, list[str]]:
    """Task -> ids that were asked for."""
    found: dict[str, list[str]] = {}
    problems = []
    for one in ids:
        task, colon, id_ = one.partition(":")
        if not colon or task not in collators:
            problems.append(f"--ids: {one!r} is not TASK:ID of one of {', '.join(collators)}")
        elif id_ not in set(collators[task].table["id"]):
            problems.append(f"--ids: {task} has no example {id_!r} in split {split}")
        else:
            found.setdefault(task, []).append(id_)
    if problems:
        raise InputError(problems)
    return found


def _drawn(collator: Collator, count: int, named: Sequence[str] = ()) -> list[int]:
    """Row numbers of named examples, then of others drawn by their ids alone, so that two runs show the same."""
    ids = list(collator.table["id"])
    drawn = sorted(range(len(ids)), key=lambda row: hashlib.sha256(ids[row].encode()).digest())[:count]
    return list(dict.fromkeys([*(ids.index(one) for one in named), *drawn]))


def _attention(model: VLSeq2Seq, collator: Collator, rows: Sequence[int]) -> list[dict[str, Any]]:
    if not rows:
        return []
    device = next(model.parameters()).device
    batch = collator.predicting(rows).to(device)
    with torch.inference_mode():
        texts = texts_of(model, collator.task, collator.tokenizer, batch)
    found = attention_maps(model, collator.tokenizer, batch, texts)
    columns = collator.table[list(rows)]
    # a blind control was given other pictures, and it is those that it looked at
    seen = [[collator.stand_in.get(key, key) for key in images] for images in columns["images"]]
    abouts = zip(columns["id"], seen, columns["text"], columns["answers"], strict=True)
    return [
        {"task": collator.task.name, "id": id_, "images": images, "text": text, "references": answers, **one}
        for (id_, images, text, answers), one in zip(abouts, found, strict=True)
    ]
