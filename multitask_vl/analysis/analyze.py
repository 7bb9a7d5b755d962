"""Analysis of a saved adapter on a sample of a split, written to analysis.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from multitask_vl.analysis.attention import attention_maps
from multitask_vl.analysis.gates import gate_map, gate_means, gated_sites
from multitask_vl.analysis.norms import initial_values, norm_changes
from multitask_vl.analysis.x_r_similarity import cosines, pooled_x_r
from multitask_vl.config.schema import Config
from multitask_vl.data.collate import Collator
from multitask_vl.errors import InputError
from multitask_vl.evaluation.precision import inference_precision
from multitask_vl.evaluation.predict import predict_texts
from multitask_vl.methods.artifact.adapter_io import find_adapter, load_adapter
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.reports.options import ANALYSIS_FILE
from multitask_vl.run.build import make_accelerator, setup_run
from multitask_vl.storage.atomic import atomic_write
from multitask_vl.storage.hashing import text_sha256

CONTROL_NOTE = "Shuffled-image control: the images shown are those that the model got, not those of the examples."
NUM_ATTENTION_EXAMPLES, NUM_ROUTING_EXAMPLES = 4, 64
"""Examples per task whose attention is drawn, and whose x_R and gates are measured."""


def analyze(
    config: Config,
    adapter: Path,
    split: str,
    num_attention_examples: int = NUM_ATTENTION_EXAMPLES,
    ids: Sequence[str] = (),
    num_routing_examples: int = NUM_ROUTING_EXAMPLES,
) -> dict[str, Any]:
    """Content of `analysis.json`.

    Args:
        config: configuration of the run, with the paths of its data and features.
        adapter: folder of the adapter, or of its run.
        split: split of the examples.
        num_attention_examples: examples per task whose attention is drawn, sampled by id.
        ids: further examples whose attention is drawn, as ``task:id``.
        num_routing_examples: examples per task for the cosines of x_R and the mean gates; at least 2.

    Raises:
        InputError: the adapter does not fit, data are missing, no task has the split, or it lacks one of ``ids``.
    """
    accelerator = make_accelerator(config)
    run = setup_run(config, accelerator, [split])
    collators = {one.task.name: one for one in run.collators_by_split([split])[split]}
    if not collators:
        raise InputError(f"--split: no task has a split {split!r}")
    requested = _requested_ids(ids, collators, split)
    model = run.model.eval()
    initial = initial_values(model)
    load_adapter(model, find_adapter(adapter))
    attention, means, x_r, maps = [], {}, {}, {}
    with inference_precision(model, accelerator, config.evaluation.cast_weights_bf16):
        for task, collator in collators.items():
            rows = _sample_rows(collator, num_attention_examples, requested.get(task, ()))
            attention += _attention(model, collator, rows)
            rows = _sample_rows(collator, num_routing_examples)
            if len(rows) < 2:
                continue
            batch = collator.eval_batch(rows).to(accelerator.device)
            x_r[task] = pooled_x_r(model, batch).cpu()
            if gated_sites(model):
                means[task] = gate_means(model, batch)
                maps[task] = {"id": batch.ids[0], **(gate_map(model, collator.tokenizer, batch) or {})}
    accelerator.end_training()
    return {
        "split": split,
        "norms": norm_changes(model, initial),
        "attention": attention,
        "gates": {"means": means, "maps": maps},
        "notes": [CONTROL_NOTE] if config.features.shuffle_images else [],
        "x_r": {**cosines(x_r), **_routing(model)} if len(x_r) > 1 else None,
    }


def write_analysis(folder: Path, analysis: Mapping[str, Any]) -> Path:
    """Write analysis.json into a folder, which is created if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ANALYSIS_FILE
    atomic_write(path, json.dumps(analysis, ensure_ascii=False) + "\n")
    return path


def _routing(model: VLSeq2Seq) -> dict[str, Any]:
    routing = model.config.routing
    return {"routed": model.context.routed, "source": routing.source, "control": routing.control}


def _requested_ids(ids: Sequence[str], collators: Mapping[str, Collator], split: str) -> dict[str, list[str]]:
    """Task -> example ids of ``--ids``."""
    requested: dict[str, list[str]] = {}
    problems = []
    for argument in ids:
        task, colon, id_ = argument.partition(":")
        if not colon or task not in collators:
            problems.append(f"--ids: {argument!r} is not TASK:ID with one of the tasks {', '.join(collators)}")
        elif id_ not in set(collators[task].table["id"]):
            problems.append(f"--ids: {task} has no example {id_!r} in split {split}")
        else:
            requested.setdefault(task, []).append(id_)
    if problems:
        raise InputError(problems)
    return requested


def _sample_rows(collator: Collator, count: int, requested: Sequence[str] = ()) -> list[int]:
    """Row numbers of the requested examples, then of ``count`` others, ordered by the hash of their ids.

    The sample depends on the ids alone, so two runs show the same examples.
    """
    ids = list(collator.table["id"])
    sample = sorted(range(len(ids)), key=lambda row: text_sha256(ids[row]))[:count]
    return list(dict.fromkeys([*(ids.index(id_) for id_ in requested), *sample]))


def _attention(model: VLSeq2Seq, collator: Collator, rows: Sequence[int]) -> list[dict[str, Any]]:
    if not rows:
        return []
    device = next(model.parameters()).device
    batch = collator.eval_batch(rows).to(device)
    with torch.inference_mode():
        texts = predict_texts(model, collator.task, collator.tokenizer, batch)
    maps = attention_maps(model, collator.tokenizer, batch, texts)
    columns = collator.table[list(rows)]
    # A shuffled-image control attends to the images that it got.
    images = [[collator.image_substitution.get(key, key) for key in keys] for keys in columns["images"]]
    examples = zip(columns["id"], images, columns["text"], columns["answers"], strict=True)
    return [
        {"task": collator.task.name, "id": id_, "images": keys, "text": text, "references": answers, **of_example}
        for (id_, keys, text, answers), of_example in zip(examples, maps, strict=True)
    ]
