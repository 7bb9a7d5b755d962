"""Evaluation during training and at its end."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from multitask_vl.evaluation.evaluate import evaluate, summary_lines
from multitask_vl.logging import get_logger
from multitask_vl.methods.artifact.adapter_io import add_scores, save_adapter
from multitask_vl.storage.atomic import atomic_write_json
from multitask_vl.training.checkpoint_manager import unscored_splits
from multitask_vl.training.preemption import PEER_SIGNAL, Interruption
from multitask_vl.training.session import Session

logger = get_logger(__name__)


def evaluate_during(session: Session, step: int, only_unscored: bool) -> None:
    """Score the splits of ``evaluation.eval_splits`` after ``step`` and log the results.

    Args:
        only_unscored: skip splits whose scores of this step are in the metrics already, from before an interruption.
    """
    run, accelerator, settings = session.run, session.accelerator, session.config.evaluation
    splits = {
        split: collators for split, collators in run.collators_by_split(settings.eval_splits).items() if collators
    }
    if only_unscored:
        names = [unscored_splits(session.config.run_dir / "metrics.jsonl", step, list(splits))]
        broadcast_object_list(names)
        splits = {split: splits[split] for split in names[0]}
    limit = settings.max_examples
    if limit:
        splits = {split: [c.head(limit) for c in collators] for split, collators in splits.items()}
    _share_signal(session.state.interruption, accelerator)
    with session.state.interruption.immediate():
        results = evaluate(run.model, splits, session.config.run_dir / "during", settings, accelerator)
    _log_results(results)
    for split, result in results.items():
        scores = _primary_scores(result)
        session.metrics.add(step=step, split=split, scores=scores, **({"max_examples": limit} if limit else {}))
        accelerator.log({f"{split}/{name}": value for name, value in scores.items()}, step=step)


def finish(session: Session) -> dict[str, dict]:
    """Save the adapter, score all splits and write scores.json; returns the results on the main process."""
    run, accelerator, config = session.run, session.accelerator, session.config
    settings, total = config.evaluation, session.state.total_steps
    if settings.max_examples and config.training.keep_best:
        # the best checkpoint is chosen by scores of as many examples; those of the full splits follow
        evaluate_during(session, total, only_unscored=True)
    splits = run.collators_by_split(list(dict.fromkeys([*settings.eval_splits, *settings.final_splits])))
    adapter = config.run_dir / "adapter"
    if accelerator.is_main_process:
        # before prediction, which may take hours; the card gets its scores afterwards
        save_adapter(run.model, adapter, config, session.checkpoints.card_metadata(total))
    _share_signal(session.state.interruption, accelerator)
    with session.state.interruption.immediate():
        results = evaluate(run.model, splits, config.run_dir, settings, accelerator)
    _log_results(results)
    if accelerator.is_main_process:
        for split, result in results.items():
            session.metrics.add(step=total, split=split, scores=_primary_scores(result), final=True)
        add_scores(adapter, results)
    session.checkpoints.update_best()
    if accelerator.is_main_process:
        trainable, num_parameters = run.model.parameter_counts()
        counts = {"trainable": trainable, "total": num_parameters}
        atomic_write_json(config.run_dir / "scores.json", {"step": total, "splits": results, "parameters": counts})
    accelerator.wait_for_everyone()
    return results


def _log_results(results: dict[str, dict]) -> None:
    for line in summary_lines(results):
        logger.info(line)


def _primary_scores(result: dict) -> dict[str, float]:
    """Task -> primary score of one split's results, without tasks whose labels are hidden."""
    return {name: entry["value"] for name, entry in result["tasks"].items() if entry["value"] is not None}


def _share_signal(interruption: Interruption, accelerator: Accelerator) -> None:
    """Let every process know of a signal that reached one of them after the last step."""
    received = torch.tensor(float(interruption.signal_name is not None), device=accelerator.device)
    if float(accelerator.reduce(received, "sum")) and interruption.signal_name is None:
        interruption.signal_name = PEER_SIGNAL
