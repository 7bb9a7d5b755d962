"""What does a run need, from the YAML to one step, and what of it is there: asked by the functions of training."""

from __future__ import annotations

import contextlib
import io
import math
import resource
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from multitask_vl.config import Loaded, load
from multitask_vl.config.schema import Config
from multitask_vl.doctor.machine import devices, disk, memory, packages, size, writable
from multitask_vl.errors import InputError
from multitask_vl.models.build import build_model
from multitask_vl.reproduction.parameters import parameter_report
from multitask_vl.run.build import Run, assemble
from multitask_vl.run.checks import TRAIN, Finding, Needs, find_needs, splits_of
from multitask_vl.training.optim import build_optimizer, clip_gradients
from multitask_vl.training.resume import where_to_start

ROWS = 2
"""Of each task in the step that is tried."""


def examine(path: Path, overrides: Sequence[str] = (), step: bool = True) -> list[Finding]:
    """Findings about a configuration, each thing looked at once; where one is missing, what does not need it goes on.

    Args:
        path, overrides: as given to training.
        step: whether to try a training step on real rows; nothing of it is kept.
    """
    configuration = Finding("configuration")
    loaded = configuration.look(lambda: load(path, overrides), _told)
    findings = [configuration, packages()]
    if loaded is None:
        return findings
    config = loaded.config
    processes, accelerator = devices(config)
    device = accelerator.device if accelerator else torch.device("cpu")
    findings += [processes, _run_folder(config)]
    needs = find_needs(config, splits_of(config))
    findings += needs.findings
    counts = Finding("parameters")
    report = counts.look(lambda: parameter_report(config, needs.tokenizer), _counted)
    findings.append(counts)
    fits = False
    if report is not None:
        room = memory(report["trainable"], report["total"], device)
        findings += [disk(config, report["trainable"], needs.tables.values()), room]
        fits = not room.problems
    complete = accelerator is not None and not any(one.problems for one in findings)
    weights, run = _weights(config, accelerator, device, needs, complete, fits)
    return [*findings, weights, _step(run, accelerator, step)]


def _told(loaded: Loaded) -> str:
    methods = " + ".join(one.name for one in loaded.config.method) or "no method"
    functions = loaded.config.routing.function
    routing = functions if isinstance(functions, str) else ", ".join(dict.fromkeys(functions.values()))
    return f"{len(loaded.config.tasks)} tasks, {methods}, routing {routing}"


def _run_folder(config: Config) -> Finding:
    finding, said = Finding("run folder"), io.StringIO()
    with contextlib.redirect_stdout(said):
        finding.look(
            lambda: where_to_start(config),
            lambda start: f"{config.run_dir}, " + ("a fresh start" if start is None else f"goes on from {start.name}"),
        )
    finding.remarks += [] if finding.problems else said.getvalue().splitlines()
    finding.problems += writable("run_dir", config.run_dir)
    return finding


def _counted(report: dict) -> str:
    share = 100 * report["trainable"] / report["total"]
    return f"{report['trainable']:,} of {report['total']:,} are trained ({share:.2f} %)"


def _weights(
    config: Config, accelerator: Accelerator | None, device: torch.device, needs: Needs, complete: bool, fits: bool
) -> tuple[Finding, Run | None]:
    """The model with its weights; a whole run around it where everything else is there."""
    finding = Finding("backbone")
    told = config.backbone.pretrained or f"random weights of seed {config.seed}"
    if complete:
        return finding, finding.look(lambda: assemble(config, accelerator, needs), lambda _: told)
    if needs.tokenizer is not None and fits:
        finding.look(lambda: build_model(config, needs.tokenizer, device), lambda _: told)
    else:
        finding.skipped("not tried, see the problems")
    return finding, None


def _step(run: Run | None, accelerator: Accelerator | None, wanted: bool) -> Finding:
    finding = Finding("one step")
    if not wanted:
        finding.skipped("left out (--no-step)")
    elif run is None:
        finding.skipped("not tried, see the problems")
    else:
        try:
            finding.found = one_step(run, accelerator)
        except InputError as error:
            finding.problems += error.problems
        # whatever it is, a run would end by it; its traceback is for the run itself to show
        except Exception as error:
            said = " ".join(str(error).split()) or "no message"
            finding.problems.append(
                f"one step: {type(error).__name__}: {said}. See where it comes from: python launch/train_multitask.py "
                "--config CONFIG"
            )
    return finding


def one_step(run: Run, accelerator: Accelerator) -> str:
    """Train two rows of each task for one step, as the loop does; what came of it, in a line.

    Raises:
        InputError: a loss or a gradient is not finite.
    """
    settings = run.config.training
    torch.manual_seed(run.config.seed)
    parameters = run.model.trainable()
    optimizer = build_optimizer(parameters, settings, run.model.pretrained())
    if settings.gradient_checkpointing:
        run.model.enable_gradient_checkpointing()
    wrapped, prepared = accelerator.prepare(run.model, optimizer)
    wrapped.train()
    losses = {}
    for name, task in run.tasks.items():
        collator = run.collators[name, TRAIN]
        rows = range(min(ROWS, len(collator.table)))
        batch = collator.training(rows, run.config.seed, step=0).to(accelerator.device)
        numerator, denominator = task.reduce(wrapped(batch), *batch.to_reduce())
        loss = numerator / denominator.clamp(min=1e-12)
        accelerator.backward(loss)
        losses[name] = float(loss.detach())
    accelerator.unscale_gradients(prepared)
    norm = clip_gradients(parameters.values(), settings.clip_norm)
    infinite = [name for name, loss in losses.items() if not math.isfinite(loss)]
    if infinite or (not math.isfinite(norm) and accelerator.scaler is None):
        told = f"the loss of {', '.join(infinite)}" if infinite else "the gradient"
        raise InputError(f"one step: {told} is not finite; look at the features, or try training.mixed_precision=no")
    prepared.step()
    prepared.zero_grad(set_to_none=True)
    if accelerator.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(accelerator.device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    low, high = min(losses.values()), max(losses.values())
    return f"{ROWS} rows of each task, losses {low:.1f} to {high:.1f}, peak memory {size(peak)}"
