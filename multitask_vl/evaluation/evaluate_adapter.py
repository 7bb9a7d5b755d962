"""How good is an adapter that was saved: load it into its backbone, predict and score."""

from __future__ import annotations

from pathlib import Path

from multitask_vl.config.schema import Config
from multitask_vl.data.store.manifest import other_trunk
from multitask_vl.errors import InputError
from multitask_vl.evaluation.evaluate import evaluate
from multitask_vl.methods.artifact.adapter_io import find_adapter, load_adapter
from multitask_vl.run.build import make_accelerator, prepare
from multitask_vl.tasks.readers.json_stream import write_json


def score_adapter(config: Config, adapter: Path, out: Path, splits: list[str]) -> dict[str, dict]:
    """Score ``splits`` with the adapter in folder ``adapter`` (also a run's or a checkpoint's).

    Files go under ``out`` as in a run folder.

    Raises:
        InputError: the adapter does not fit the configuration, no task has one of the splits, or ``out`` holds scores.
    """
    if (out / "scores.json").exists():
        raise InputError(f"--out: {out} already holds scores; choose another folder")
    out.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is told before hours of predicting
    accelerator = make_accelerator(config)
    run = prepare(config, accelerator, splits)
    empty = [split for split, collators in run.splits(splits).items() if not collators]
    if empty:
        raise InputError(f"--split: no task has a split {', '.join(map(repr, empty))}")
    load_adapter(run.model, find_adapter(adapter))
    for remark in other_trunk(run.store.manifest, run.model.loaded["run"].get("features", {})):
        accelerator.print(f"note: {remark}")
    results = evaluate(run.model, run.splits(splits), out, config.evaluation, accelerator, accelerator.print)
    if accelerator.is_main_process:
        trainable, everything = run.model.parameter_counts()
        write_json(
            out / "scores.json", {"splits": results, "parameters": {"trainable": trainable, "total": everything}}
        )
    accelerator.end_training()
    return results
