"""Checks of a run's inputs and devices, up to one training step, with the functions that training calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from multitask_vl.config import LoadedConfig, load
from multitask_vl.config.schema import Config
from multitask_vl.data.schedule import Schedule, StepPlan
from multitask_vl.doctor.machine import (
    check_devices,
    check_disk,
    check_memory,
    check_packages,
    format_bytes,
    write_problems,
)
from multitask_vl.errors import InputError
from multitask_vl.models.build import build_model
from multitask_vl.reproduction.parameters import parameter_report
from multitask_vl.run.build import Run, build_run
from multitask_vl.run.checks import TRAIN, Check, RunInputs, check_inputs, configured_splits
from multitask_vl.storage.memory import peak_memory
from multitask_vl.training.resume import find_resume_checkpoint
from multitask_vl.training.state import TrainState
from multitask_vl.training.step import train_step

ROWS_PER_TASK = 2
"""Rows of each task in the trial step."""
BLOCKED = "blocked by the problems below"


def run_checks(path: Path, overrides: Sequence[str] = (), step: bool = True) -> list[Check]:
    """Check a configuration. After a problem, the checks that do not depend on it still run.

    Args:
        path: the configuration file.
        overrides: ``key=value`` overrides, as for training.
        step: whether to try a training step on real rows; its results are discarded.
    """
    configuration = Check("configuration")
    loaded = configuration.run(lambda: load(path, overrides), _describe_config)
    checks = [configuration, check_packages()]
    if loaded is None:
        return checks
    config = loaded.config
    devices, accelerator = check_devices(config)
    device = accelerator.device if accelerator else torch.device("cpu")
    checks += [devices, _check_run_dir(config)]
    inputs = check_inputs(config, configured_splits(config))
    checks += inputs.checks
    parameters = Check("parameters")
    counts = parameters.run(lambda: parameter_report(config, inputs.tokenizer), _describe_parameters)
    checks.append(parameters)
    fits_in_memory = False
    if counts is not None:
        memory = check_memory(counts["trainable"], counts["total"], device)
        checks += [check_disk(config, counts["trainable"], inputs.tables.values()), memory]
        fits_in_memory = not memory.problems
    if accelerator is not None and not any(check.problems for check in checks):
        backbone, run = _check_run(config, accelerator, inputs)
    else:
        backbone, run = _check_backbone(config, device, inputs, fits_in_memory), None
    return [*checks, backbone, _check_step(run, accelerator, step)]


def _describe_config(loaded: LoadedConfig) -> str:
    methods = " + ".join(method.name for method in loaded.config.method) or "no method"
    functions = loaded.config.routing.function
    routing = functions if isinstance(functions, str) else ", ".join(dict.fromkeys(functions.values()))
    return f"{len(loaded.config.tasks)} tasks, {methods}, routing {routing}"


def _check_run_dir(config: Config) -> Check:
    check = Check("run folder")
    found = check.run(
        lambda: find_resume_checkpoint(config),
        lambda found: f"{config.run_dir}, " + (f"resumes from {found[0].name}" if found[0] else "starts from scratch"),
    )
    check.warnings += found[1] if found else []
    check.problems += write_problems("run_dir", config.run_dir)
    return check


def _describe_parameters(counts: dict) -> str:
    percent = 100 * counts["trainable"] / counts["total"]
    return f"{counts['trainable']:,} of {counts['total']:,} are trainable ({percent:.2f} %)"


def _describe_weights(config: Config) -> str:
    return config.backbone.pretrained or f"random weights from seed {config.seed}"


def _check_run(config: Config, accelerator: Accelerator, inputs: RunInputs) -> tuple[Check, Run | None]:
    """Build the model and everything else that a training step needs."""
    check = Check("backbone")
    return check, check.run(lambda: build_run(config, accelerator, inputs), lambda _: _describe_weights(config))


def _check_backbone(config: Config, device: torch.device, inputs: RunInputs, fits_in_memory: bool) -> Check:
    """Build the model alone, since other inputs of the run are missing."""
    check, tokenizer = Check("backbone"), inputs.tokenizer
    if tokenizer is not None and fits_in_memory:
        check.run(lambda: build_model(config, tokenizer, device), lambda _: _describe_weights(config))
    else:
        check.skip(BLOCKED)
    return check


def _check_step(run: Run | None, accelerator: Accelerator | None, enabled: bool) -> Check:
    check = Check("one step")
    if not enabled:
        check.skip("disabled by --no-step")
    elif run is None or accelerator is None:
        check.skip(BLOCKED)
    else:
        try:
            check.detail = one_step(run, accelerator)
        except InputError as error:
            check.problems += error.problems
        except Exception as error:  # any exception would end the run; training shows its traceback
            message = " ".join(str(error).split()) or "no message"
            check.problems.append(
                f"one step: {type(error).__name__}: {message}. For the traceback run: multitask-vl train "
                "--config CONFIG"
            )
    return check


def one_step(run: Run, accelerator: Accelerator) -> str:
    """Run one training step on two rows of each task and describe the outcome in one line.

    Raises:
        InputError: a loss or a gradient is not finite.
    """
    names = list(run.tasks)
    changes = {"max_steps": len(names), "warmup_ratio": 0.0, "compile": False, "on_nonfinite": "skip"}
    training = run.config.training.model_copy(update=changes | {"max_consecutive_skips": len(names) + 1})
    config = run.config.model_copy(update={"training": training})
    rows = {name: np.arange(min(ROWS_PER_TASK, len(run.collators[name, TRAIN].table))) for name in names}
    sizes = {name: len(indices) for name, indices in rows.items()}
    schedule = Schedule(sizes, sizes, config.sampling, config.seed)
    state = TrainState.create(run.model, run.tasks, schedule, config, accelerator)
    results = {}
    for step, name in enumerate(names):
        batch = run.collators[name, TRAIN].train_batch(rows[name], config.seed, step)
        results[name] = train_step(state, StepPlan(step, name, rows[name], batch_index=0), batch)
    if skipped := [name for name, result in results.items() if result.skipped]:
        nonfinite = [name for name in skipped if not math.isfinite(results[name].loss)]
        source = f"the loss of {', '.join(nonfinite)}" if nonfinite else f"the gradient of {', '.join(skipped)}"
        raise InputError(f"one step: {source} is not finite; inspect the features, or try training.mixed_precision=no")
    losses = [result.loss for result in results.values()]
    peak = format_bytes(peak_memory(accelerator.device))
    return f"{ROWS_PER_TASK} rows of each task, losses {min(losses):.1f} to {max(losses):.1f}, peak memory {peak}"
