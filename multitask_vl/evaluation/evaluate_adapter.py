"""Evaluate a saved adapter: load it into its backbone, predict and score."""

from __future__ import annotations

from pathlib import Path

from multitask_vl.config.schema import Config
from multitask_vl.data.store.manifest import encoder_mismatch
from multitask_vl.errors import InputError
from multitask_vl.evaluation.evaluate import evaluate, summary_lines
from multitask_vl.logging import get_logger
from multitask_vl.methods.artifact.adapter_io import find_adapter, load_adapter
from multitask_vl.run.build import make_accelerator, setup_run
from multitask_vl.storage.atomic import atomic_write_json

logger = get_logger(__name__)


def evaluate_adapter(config: Config, adapter: Path, out: Path, splits: list[str]) -> dict[str, dict]:
    """Score ``splits`` with a saved adapter, and write the same files under ``out`` as in a run folder.

    Args:
        config: configuration of the model and the tasks.
        adapter: folder of an adapter, a run or a checkpoint.
        out: folder without scores; created if needed.
        splits: names of the splits.

    Returns:
        results of `evaluate`.

    Raises:
        InputError: the adapter does not fit the configuration, no task has one of the splits, or ``out`` contains
            scores.
    """
    if (out / "scores.json").exists():
        raise InputError(f"--out: {out} already contains scores; choose another folder")
    out.mkdir(parents=True, exist_ok=True)  # a read-only folder fails here, before hours of prediction
    accelerator = make_accelerator(config)
    run = setup_run(config, accelerator, splits)
    empty = [split for split, collators in run.collators_by_split(splits).items() if not collators]
    if empty:
        raise InputError(f"--split: no task has a split {', '.join(map(repr, empty))}")
    load_adapter(run.model, find_adapter(adapter))
    for message in encoder_mismatch(run.store.manifest, run.model.adapter_record["run"].get("features", {})):
        logger.warning(message)
    results = evaluate(run.model, run.collators_by_split(splits), out, config.evaluation, accelerator)
    for line in summary_lines(results):
        print(line)
    if accelerator.is_main_process:
        trainable, total = run.model.parameter_counts()
        counts = {"trainable": trainable, "total": total}
        atomic_write_json(out / "scores.json", {"splits": results, "parameters": counts})
    accelerator.end_training()
    return results
