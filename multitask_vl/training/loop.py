"""How is a model trained: one loop, to be read from top to bottom."""

from __future__ import annotations

import gc
import math
import time

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from multitask_vl.config import Loaded
from multitask_vl.config.schema import Config
from multitask_vl.data.batch import Batch
from multitask_vl.data.schedule import Draw, Schedule
from multitask_vl.errors import InputError
from multitask_vl.evaluation.evaluate import evaluate
from multitask_vl.methods.io import add_scores, save_adapter
from multitask_vl.tasks.files import write_json
from multitask_vl.training import checkpoint, memory
from multitask_vl.training.clock import BETWEEN, StepClock, memory_mib
from multitask_vl.training.needs import TRAIN, splits_of
from multitask_vl.training.optim import build_optimizer, clip_gradients, learning_rate, set_learning_rate
from multitask_vl.training.record import Mixture, Record, features_of, revision
from multitask_vl.training.resume import claim_run_folder, where_to_start
from multitask_vl.training.setup import Run, make_accelerator, prepare
from multitask_vl.training.tracking import Metrics, Progress, start_trackers


def train(loaded: Loaded) -> dict[str, dict]:
    """Train, evaluate and save one run; returns the final scores by split (on the main process).

    Every random draw is keyed by (seed, step), and the state after a step is weights, moments and the step's number. So
    a run that died and was started again with ``training.resume=auto`` has the same numbers as one that did not.
    """
    config = loaded.config
    settings = config.training
    accelerator = make_accelerator(config)
    start_from = where_to_start(config)
    run = prepare(config, accelerator, splits_of(config))
    model, schedule = run.model, run.schedule()
    total = settings.steps or math.ceil(settings.epochs * schedule.steps_per_epoch)

    parameters = model.trainable()
    optimizer = build_optimizer(parameters, settings)
    done = checkpoint.load(start_from, parameters, optimizer) if start_from else 0
    state = checkpoint.read_state(start_from) if start_from else {}
    sizes = memory.micro_batches(config, schedule.batch_sizes, accelerator.num_processes, state)
    mixture = Mixture.so_far(schedule, state, done)
    if settings.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    wrapped, prepared_optimizer = accelerator.prepare(model, optimizer)
    claim_run_folder(loaded, accelerator)
    facts = {"seed": config.seed, "data": run.data(), "features": features_of(run.store)}
    record = Record(config.run_dir, accelerator, facts, done, total)

    metrics = Metrics(config.run_dir / "metrics.jsonl", after_step=done) if accelerator.is_main_process else None
    progress = Progress(total, done, accelerator.is_main_process, config.tracking.line_every)
    start_trackers(accelerator, config)
    for remark in [*run.remarks, _summary(run, schedule, total, accelerator), *map(sizes.described, run.tasks)]:
        progress.say(remark)

    evaluate_every = _steps_between_evaluations(config, schedule)
    batches = _loader(run, schedule, done, total, accelerator)
    wrapped.train()
    # where halving is allowed, gradients are averaged once every process knows that all of them are there
    apart = settings.on_oom == "halve" and accelerator.num_processes > 1
    clock = StepClock(accelerator.device)
    clock.enter("wait")
    for draw, batch in batches:
        began = time.perf_counter()
        clock.count(batch)
        clock.enter("forward")
        batch = batch.to(accelerator.device, non_blocking=True)
        task = run.tasks[draw.task]
        set_learning_rate(optimizer, learning_rate(draw.step, total, settings.lr, settings.warmup_ratio))

        # the denominator is that of the global batch, so that shards and micro-batches add up to one mean
        counted = accelerator.process_index < len(draw.rows)
        valid = batch.labels != -100
        denominator = task.reduce(torch.zeros(valid.shape, device=valid.device), valid, batch.weights)[1] * counted
        denominator = accelerator.reduce(denominator, "sum").clamp(min=1e-12)
        loss = None
        while loss is None:
            torch.manual_seed(_seed(config.seed, draw.step, accelerator.process_index))
            pieces = batch.pieces(sizes.sizes[draw.task])
            try:
                loss = memory.add_gradients(wrapped, task, pieces, counted, denominator, accelerator, clock, apart)
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
        loss = float(accelerator.reduce(loss, "sum"))
        if not math.isfinite(loss) or (not math.isfinite(norm) and accelerator.scaler is None):
            raise InputError(_not_finite(draw, batch, loss, norm))
        prepared_optimizer.step()
        prepared_optimizer.zero_grad(set_to_none=True)
        done = draw.step + 1
        mixture.add(draw)
        clock.enter(BETWEEN)

        rate = optimizer.param_groups[0]["lr"]
        progress.advance(f"{draw.task} loss {loss:.3f}")
        if done % settings.log_every == 0 or done == total:
            took_s = round(time.perf_counter() - began, 4)
            processed = accelerator.reduce(torch.tensor([clock.tokens, clock.images], device=accelerator.device), "sum")
            spent = clock.read(processed) | memory_mib(accelerator.device) | {"left_s": progress.left_s()}
            if metrics:
                row = {"step": done, "task": draw.task, "loss": loss, "lr": rate, "grad_norm": norm}
                metrics.add(**row, wall_s=took_s, time=spent)
            values = {f"loss/{draw.task}": loss, "lr": rate, "grad_norm": norm}
            accelerator.log(values | {f"time/{name}": value for name, value in spent.items()}, step=done)

        if evaluate_every and done % evaluate_every == 0 and done < total:
            scores = _evaluate_during(run, accelerator, progress)
            for split, result in scores.items():
                values = _headlines(result)
                metrics.add(step=done, split=split, scores=values)
                accelerator.log({f"{split}/{name}": value for name, value in values.items()}, step=done)
        if done == total or (settings.checkpoint_every and done % settings.checkpoint_every == 0):
            if accelerator.is_main_process:
                kept = {"config": config.model_dump(mode="json"), "threads": torch.get_num_threads()}
                kept |= {"mixture": mixture.counts, "halved": sizes.halved}
                folder = config.run_dir / "checkpoints"
                checkpoint.save(folder, done, parameters, optimizer, kept, settings.keep_checkpoints)
            record.update(done, mixture)
            accelerator.wait_for_everyone()
        clock.enter("wait")
    progress.close()

    results = _finish(run, accelerator, metrics, total, progress)
    record.update(total, mixture, ended=True)
    accelerator.end_training()
    return results


class _Steps(Dataset):
    """Step number -> this process's share of its batch. Workers read ahead; the order is the schedule's."""

    def __init__(self, run: Run, schedule: Schedule, accelerator: Accelerator):
        self.run_collators = {task: run.collators[task, TRAIN] for task in run.tasks}
        self.schedule, self.seed = schedule, run.config.seed
        self.rank, self.world = accelerator.process_index, accelerator.num_processes

    def __getitem__(self, step: int) -> tuple[Draw, Batch]:
        draw = self.schedule.draw(step)
        # a global batch smaller than the number of processes: the rest repeat its first row with no weight
        rows = draw.rows[self.rank :: self.world] if self.rank < len(draw.rows) else draw.rows[:1]
        batch = self.run_collators[draw.task].training(rows, self.seed, step, offset=self.rank, stride=self.world)
        return draw, batch


def keep_shared(worker: int) -> None:
    """Keep a worker's garbage collection off what it was forked with: looking at an object copies its page."""
    gc.freeze()


def _loader(run: Run, schedule: Schedule, done: int, total: int, accelerator: Accelerator) -> DataLoader:
    workers = run.config.training.workers
    return DataLoader(
        _Steps(run, schedule, accelerator),
        sampler=range(done, total),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=keep_shared,
        pin_memory=accelerator.device.type == "cuda",
    )


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


def _not_finite(draw: Draw, batch: Batch, loss: float, norm: float) -> str:
    return (
        f"step {draw.step}: loss {loss} and gradient norm {norm} on task {draw.task}, examples {batch.ids[:3]}... "
        f"Lower training.lr or training.clip_norm, or look at these examples; go on from the last checkpoint with "
        f"training.resume=auto"
    )


def _evaluate_during(run: Run, accelerator: Accelerator, progress: Progress) -> dict[str, dict]:
    config = run.config.evaluation
    splits = run.splits(config.during)
    if config.limit:
        splits = {split: [c.first(config.limit) for c in collators] for split, collators in splits.items()}
    folder = run.config.run_dir / "during"
    return evaluate(run.model, splits, folder, config, accelerator, progress.say)


def _headlines(result: dict) -> dict[str, float]:
    """Task -> headline score, of one split's results; without tasks whose split hides its answers."""
    return {name: entry["value"] for name, entry in result["tasks"].items() if entry["value"] is not None}


def _finish(run: Run, accelerator: Accelerator, metrics: Metrics | None, total: int, progress: Progress) -> dict:
    config = run.config
    splits = run.splits(list(dict.fromkeys([*config.evaluation.during, *config.evaluation.final])))
    if accelerator.is_main_process:
        # before hours of predicting; the card gets its scores afterwards
        save_adapter(run.model, config.run_dir / "adapter", config, _facts(run, accelerator, total))
    results = evaluate(run.model, splits, config.run_dir, config.evaluation, accelerator, progress.say)
    if accelerator.is_main_process:
        for split, result in results.items():
            values = _headlines(result)
            metrics.add(step=total, split=split, scores=values, final=True)
        trainable, everything = run.model.parameter_counts()
        counts = {"trainable": trainable, "total": everything}
        add_scores(config.run_dir / "adapter", results)
        write_json(config.run_dir / "scores.json", {"step": total, "splits": results, "parameters": counts})
    accelerator.wait_for_everyone()
    return results


def _facts(run: Run, accelerator: Accelerator, total: int) -> dict[str, dict]:
    """What the adapter's card tells of its training."""
    keys = {"batch_size", "lr", "warmup_ratio", "optimizer", "weight_decay", "clip_norm"}
    settings = {"mixing": run.config.mixing.strategy, **run.config.training.model_dump(mode="json", include=keys)}
    machine = {"processes": accelerator.num_processes, "mixed_precision": accelerator.mixed_precision}
    machine["code"] = revision()
    return {"data": run.data(), "training": {"steps": total, **settings, **machine}}
