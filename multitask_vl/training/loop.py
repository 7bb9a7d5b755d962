"""How is a model trained: one loop, to be read from top to bottom."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import asdict

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from multitask_vl.config import Loaded
from multitask_vl.config.schema import Config, TrainingConfig
from multitask_vl.data.schedule import Schedule
from multitask_vl.data.store.manifest import other_trunk, trunk_of
from multitask_vl.errors import InputError
from multitask_vl.evaluation.evaluate import evaluate
from multitask_vl.methods.artifact.adapter_io import add_scores, save_adapter
from multitask_vl.models.kernels.fsdp import Sharded
from multitask_vl.run import distributed
from multitask_vl.run.build import Run, make_accelerator, prepare
from multitask_vl.run.checks import splits_of
from multitask_vl.run.provenance import Mixture, Record, features_of
from multitask_vl.tasks.readers.json_stream import write_json
from multitask_vl.training import checkpoint, memory
from multitask_vl.training.best_checkpoint import splits_left
from multitask_vl.training.checkpoint_manager import Keeper
from multitask_vl.training.dataloader import loader
from multitask_vl.training.nonfinite import Skips, guilty_ids, is_finite, told
from multitask_vl.training.optim import build_optimizer, clip_gradients, learning_rate, set_learning_rate
from multitask_vl.training.preemption import Interrupted, Interruption
from multitask_vl.training.resume import (
    claim_run_folder,
    the_same_everywhere,
    what_changes_bits,
    what_changes_examples,
    where_to_start,
)
from multitask_vl.training.step_timer import BETWEEN, StepClock, memory_mib
from multitask_vl.training.tracking import Metrics, Progress, start_trackers

OTHER = "a signal to another process"
GO_ON = "the same command with --resume auto goes on"


def train(loaded: Loaded, interruption: Interruption | None = None) -> dict[str, dict]:
    """Train, evaluate and save one run; returns the final scores by split (on the main process).

    Every random draw is keyed by (seed, step), and the state after a step is weights, moments and the step's number. So
    a run that died and was started again with ``training.resume=auto`` has the same numbers as one that did not.

    Raises:
        Interrupted: a signal that ``interruption`` handles ended the run early; the state after the last step is saved.
    """
    interruption = interruption or Interruption()
    accelerator = make_accelerator(loaded.config)
    try:
        with ExitStack() as held:
            return _train(loaded, accelerator, interruption, held)
    except InputError:
        raise
    except (Exception, Interrupted) as error:
        if not interruption.asked:
            raise
        # a signal to a whole job ends the processes and programs that this one waits for, which looks like a failure
        accelerator.end_training()
        told = str(error) if isinstance(error, Interrupted) else f"stopped by {interruption.asked}"
        raise Interrupted(f"{told}; {GO_ON}" if accelerator.is_main_process else "") from error


def _train(loaded: Loaded, accelerator: Accelerator, interruption: Interruption, held: ExitStack) -> dict[str, dict]:
    config = loaded.config
    settings = config.training
    start_from = the_same_everywhere(where_to_start(config), accelerator)
    run = prepare(config, accelerator, splits_of(config))
    model, schedule = run.model, run.schedule()
    total = settings.steps or math.ceil(settings.epochs * schedule.steps_per_epoch)

    parameters = model.trainable()
    optimizer = build_optimizer(parameters, settings, model.pretrained())
    first = done = checkpoint.load(start_from, parameters, optimizer) if start_from else 0
    state = checkpoint.read_state(start_from) if start_from else {}
    read = {"data": run.data(), "features": trunk_of(run.store.manifest)}
    about_data = what_changes_examples(start_from, state, read["data"])
    about_data += other_trunk(run.store.manifest, state.get("features", {}))
    sizes = memory.micro_batches(config, schedule.batch_sizes, accelerator.num_processes, state)
    mixture, skips = Mixture.so_far(schedule, state, done), Skips.of(state)
    if accelerator.scaler is not None and state.get("scaler"):
        accelerator.scaler.load_state_dict(state["scaler"])
    if settings.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if settings.compile:
        model.compile_layers()
    wrapped, prepared_optimizer, about_shards = distributed.wrapped(model, optimizer, accelerator)
    progress = Progress(total, done, accelerator.is_main_process, config.tracking.line_every)
    claim_run_folder(loaded, accelerator, start_from, done, progress.say, held)
    facts = {"seed": config.seed, "data": read["data"], "features": features_of(run.store)}
    record = Record(config.run_dir, accelerator, facts, done, total)

    metrics = Metrics(config.run_dir / "metrics.jsonl", after_step=done) if accelerator.is_main_process else None
    keeper = Keeper(run, accelerator, optimizer, parameters)
    keeper.note_best()
    start_trackers(accelerator, config, after_step=done)
    remarks = [*run.remarks, *about_data, *what_changes_bits(state, accelerator, config), *about_shards]
    for remark in [*remarks, _summary(run, schedule, total, accelerator), *map(sizes.described, run.tasks)]:
        progress.say(remark)

    evaluate_every = _steps_between_evaluations(config, schedule)
    batches = loader(run, schedule, done, total, accelerator)
    interruption.waits = True
    wrapped.train()
    in_shards = isinstance(wrapped, Sharded)
    # where halving is allowed, gradients are averaged once every process knows that all of them are there
    apart = in_shards or (settings.on_oom == "halve" and accelerator.num_processes > 1)
    clock = StepClock(accelerator.device)
    clock.enter("wait")
    for draw, batch in batches:
        if evaluate_every and draw.step and draw.step % evaluate_every == 0:
            clock.enter(BETWEEN)
            _evaluate_during(run, accelerator, interruption, metrics, progress, draw.step, left=draw.step == first)
            keeper.note_best()

        if isinstance(batch, InputError):
            raise batch
        began = time.perf_counter()
        clock.count(batch)
        clock.enter("forward")
        batch = batch.to(accelerator.device, non_blocking=True)
        task = run.tasks[draw.task]
        set_learning_rate(optimizer, learning_rate(draw.step, total, settings.lr, settings.warmup_ratio))

        # the denominator is that of the global batch, so that shards and micro-batches add up to one mean
        counted = accelerator.process_index < len(draw.rows)
        no_loss = torch.zeros(batch.labels.shape, device=batch.labels.device)
        denominator = task.reduce(no_loss, *batch.to_reduce())[1] * counted
        denominator = accelerator.reduce(denominator, "sum").clamp(min=1e-12)
        loss = None
        while loss is None:
            torch.manual_seed(_seed(config.seed, draw.step, accelerator.process_index))
            pieces = batch.pieces(sizes.sizes[draw.task])
            idle = sizes.passes(draw.task, len(draw.rows)) - len(pieces) if in_shards else 0
            try:
                loss, losses = memory.add_gradients(
                    wrapped, task, pieces, counted, denominator, accelerator, clock, apart, idle
                )
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                if settings.on_oom == "error" or sizes.sizes[draw.task] == 1:
                    raise memory.out_of_memory(draw.step, batch, sizes, accelerator.device) from error
            # outside the handler, whose error would keep what the pass had allocated
            if settings.on_oom == "halve" and not memory.everywhere(loss is not None, accelerator):
                loss = None
                prepared_optimizer.zero_grad(set_to_none=True)
                memory.release(accelerator.device)
                size = sizes.halve(draw.task)
                progress.say(f"step {draw.step}: out of memory; {sizes.described(draw.task)} from here on")
                if metrics:
                    metrics.add(step=draw.step + 1, task=draw.task, micro_batch_size=size)
        clock.enter("optimizer")
        if apart:
            for parameter in parameters.values():
                if parameter.grad is not None:
                    parameter.grad = accelerator.reduce(parameter.grad, "mean")

        accelerator.unscale_gradients(prepared_optimizer)
        norm = clip_gradients(parameters.values(), settings.clip_norm)
        # whether a signal came to one of the processes goes with the loss, so that all of them stop after the same step
        asked = loss.new_tensor(float(interruption.asked is not None))
        loss, asked = accelerator.reduce(torch.stack([loss, asked]), "sum").tolist()
        finite = is_finite(loss, norm, accelerator)
        if finite or accelerator.scaler is not None:
            prepared_optimizer.step()
        prepared_optimizer.zero_grad(set_to_none=True)
        done = draw.step + 1
        clock.enter(BETWEEN)

        rate = optimizer.param_groups[0]["lr"]
        if finite:
            skips.taken()
            mixture.add(draw)
            progress.advance(f"{draw.task} loss {loss:.3f}")
        else:
            ids = guilty_ids(pieces, losses, counted, accelerator)
            what = told(draw, loss, norm, ids)
            skips.left_out(what, settings)
            progress.say(f"{what}; the step is left out ({skips.total} of this run so far)")
            progress.advance(f"{draw.task} left out")
            if metrics:
                metrics.add(step=done, task=draw.task, skipped=what, ids=ids)
        if finite and (done % settings.log_every == 0 or done == total):
            took_s = round(time.perf_counter() - began, 4)
            processed = accelerator.reduce(torch.tensor([clock.tokens, clock.images], device=accelerator.device), "sum")
            spent = clock.read(processed) | memory_mib(accelerator.device) | {"left_s": progress.left_s()}
            if metrics:
                row = {"step": done, "task": draw.task, "loss": loss, "lr": rate, "grad_norm": norm}
                metrics.add(**row, wall_s=took_s, time=spent)
            values = {f"loss/{draw.task}": loss, "lr": rate, "grad_norm": norm}
            accelerator.log(values | {f"time/{name}": value for name, value in spent.items()}, step=done)

        if asked or done == total or _to_be_saved(settings, done, evaluate_every):
            counted = {"mixture": mixture.counts, "halved": sizes.halved, "skips": asdict(skips)}
            saved = keeper.save(done, counted | read)
            record.update(done, mixture)
        if asked:
            interruption.asked = interruption.asked or OTHER
            if done < total:
                raise Interrupted(f"stopped by {interruption.asked} after step {done}, saved as {saved}")
        clock.enter("wait")
    progress.close()

    results = _finish(run, accelerator, interruption, metrics, keeper, total, progress)
    record.update(total, mixture, ended=True)
    accelerator.end_training()
    return results


def _seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, 4, step, rank]).generate_state(1, np.uint64)[0])


def _steps_between_evaluations(config: Config, schedule: Schedule) -> int | None:
    if config.evaluation.every_epochs is None or not config.evaluation.during:
        return None
    return max(1, round(config.evaluation.every_epochs * schedule.steps_per_epoch))


def _summary(run: Run, schedule: Schedule, total: int, accelerator: Accelerator) -> str:
    trainable, everything = run.model.parameter_counts()
    tasks = ", ".join(f"{t} {schedule.sizes[t]:,} rows x{schedule.batch_sizes[t]}" for t in run.tasks)
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    return (
        f"{total} steps ({total / schedule.steps_per_epoch:.1f} epochs) on {accelerator.num_processes} x "
        f"{accelerator.device.type}, {precision}; {tasks}; "
        f"training {trainable:,} of {everything:,} parameters ({100 * trainable / everything:.2f} %)"
    )


def _to_be_saved(settings: TrainingConfig, done: int, evaluate_every: int | None) -> bool:
    """Also before every evaluation, whose score a checkpoint may be kept for and whose death is to cost no step."""
    if settings.checkpoint_every and done % settings.checkpoint_every == 0:
        return True
    return bool(evaluate_every and done % evaluate_every == 0 and (settings.checkpoint_every or settings.keep_best))


def _agree(interruption: Interruption, accelerator: Accelerator) -> None:
    """Have every process know of a signal to one of them that came after the last step was summed up."""
    asked = torch.tensor(float(interruption.asked is not None), device=accelerator.device)
    if float(accelerator.reduce(asked, "sum")) and interruption.asked is None:
        interruption.asked = OTHER


def _evaluate_during(
    run: Run,
    accelerator: Accelerator,
    interruption: Interruption,
    metrics: Metrics | None,
    progress: Progress,
    step: int,
    left: bool,
) -> None:
    """Score the splits of ``evaluation.during``, or, where ``left``, those of them without a row in the metrics."""
    config = run.config.evaluation
    splits = {split: collators for split, collators in run.splits(config.during).items() if collators}
    if left:
        names = [splits_left(run.config.run_dir / "metrics.jsonl", step, list(splits))]
        broadcast_object_list(names)
        splits = {split: splits[split] for split in names[0]}
    if config.limit:
        splits = {split: [c.first(config.limit) for c in collators] for split, collators in splits.items()}
    _agree(interruption, accelerator)
    with interruption.at_once():
        folder = run.config.run_dir / "during"
        scores = evaluate(run.model, splits, folder, config, accelerator, progress.say)
    for split, result in scores.items():
        values = _headlines(result)
        metrics.add(step=step, split=split, scores=values, **({"limit": config.limit} if config.limit else {}))
        accelerator.log({f"{split}/{name}": value for name, value in values.items()}, step=step)


def _headlines(result: dict) -> dict[str, float]:
    """Task -> headline score, of one split's results; without tasks whose split hides its answers."""
    return {name: entry["value"] for name, entry in result["tasks"].items() if entry["value"] is not None}


def _finish(
    run: Run,
    accelerator: Accelerator,
    interruption: Interruption,
    metrics: Metrics | None,
    keeper: Keeper,
    total: int,
    progress: Progress,
) -> dict:
    config = run.config
    if config.evaluation.limit and config.training.keep_best:
        # compared with scores of as many examples; those of the whole splits follow
        _evaluate_during(run, accelerator, interruption, metrics, progress, total, left=True)
    splits = run.splits(list(dict.fromkeys([*config.evaluation.during, *config.evaluation.final])))
    if accelerator.is_main_process:
        # before hours of predicting; the card gets its scores afterwards
        save_adapter(run.model, config.run_dir / "adapter", config, keeper.facts(total))
    _agree(interruption, accelerator)
    with interruption.at_once():
        results = evaluate(run.model, splits, config.run_dir, config.evaluation, accelerator, progress.say)
    if accelerator.is_main_process:
        for split, result in results.items():
            values = _headlines(result)
            metrics.add(step=total, split=split, scores=values, final=True)
        trainable, everything = run.model.parameter_counts()
        counts = {"trainable": trainable, "total": everything}
        add_scores(config.run_dir / "adapter", results)
    keeper.note_best()
    if accelerator.is_main_process:
        write_json(config.run_dir / "scores.json", {"step": total, "splits": results, "parameters": counts})
    accelerator.wait_for_everyone()
    return results
