"""The training loop: evaluate if due, step, log, save, stop if signalled."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from multitask_vl.config import LoadedConfig
from multitask_vl.data.schedule import StepPlan
from multitask_vl.errors import InputError
from multitask_vl.logging import get_logger
from multitask_vl.run.build import make_accelerator
from multitask_vl.storage.memory import memory_usage
from multitask_vl.training.dataloader import train_dataloader
from multitask_vl.training.preemption import PEER_SIGNAL, RESUME_HINT, Interrupted, Interruption
from multitask_vl.training.session import Session, start_session
from multitask_vl.training.step import StepResult, train_step
from multitask_vl.training.step_timer import IDLE
from multitask_vl.training.validation import evaluate_during, finish

logger = get_logger(__name__)


def train(loaded: LoadedConfig, interruption: Interruption | None = None) -> dict[str, dict]:
    """Train, evaluate and save one run; returns the final scores by split (on the main process).

    Everything random is keyed by (seed, step), and the state after a step is weights, moments and the step's number. So
    a run that is interrupted and resumed with ``training.resume=auto`` has the same numbers as an uninterrupted one.

    Args:
        interruption: from `handle_signals`; None: signals are not handled.

    Raises:
        InputError: bad input, configuration or data, out of memory, or a non-finite step.
        Interrupted: a signal ended the run early; the state after the last step is saved.
    """
    interruption = interruption or Interruption()
    accelerator = make_accelerator(loaded.config)
    try:
        with ExitStack() as locks:
            session = start_session(loaded, accelerator, interruption, locks)
            _train_steps(session)
            results = finish(session)
            session.record.update(session.state.total_steps, session.state.mixture, ended=True)
            accelerator.end_training()
            return results
    except InputError:
        raise
    except (Exception, Interrupted) as error:
        if not interruption.signal_name:
            raise
        # a signal to a whole job also ends the processes that this one waits for, which looks like a failure
        accelerator.end_training()
        message = str(error) if isinstance(error, Interrupted) else f"stopped by {interruption.signal_name}"
        raise Interrupted(f"{message}; {RESUME_HINT}" if accelerator.is_main_process else "") from error


def _train_steps(session: Session) -> None:
    state, timer, interruption = session.state, session.state.timer, session.state.interruption
    eval_steps = session.steps_between_evaluations
    batches = train_dataloader(session.run, session.schedule, state.step, state.total_steps, session.accelerator)
    interruption.deferred = True
    timer.start_phase("wait")
    for plan, batch in batches:
        if eval_steps and plan.step and plan.step % eval_steps == 0:
            timer.start_phase(IDLE)
            evaluate_during(session, plan.step, only_unscored=plan.step == session.first_step)
            session.checkpoints.update_best()
        if isinstance(batch, InputError):
            raise batch
        result = train_step(state, plan, batch)
        _log(session, plan, result)
        finished = state.step == state.total_steps
        if result.stop or finished or _should_save(session):
            saved = session.checkpoints.save()
            session.record.update(state.step, state.mixture)
        if result.stop:
            interruption.signal_name = interruption.signal_name or PEER_SIGNAL
            if not finished:
                raise Interrupted(f"stopped by {interruption.signal_name} after step {state.step}, saved as {saved}")
        timer.start_phase("wait")
    session.progress.close()


def _should_save(session: Session) -> bool:
    """Return whether a checkpoint is due: also before each evaluation.

    Its score may decide which checkpoint is kept, and an interruption during it should not cost a step.
    """
    settings, step, eval_steps = session.config.training, session.state.step, session.steps_between_evaluations
    if settings.checkpoint_steps and step % settings.checkpoint_steps == 0:
        return True
    return bool(eval_steps and step % eval_steps == 0 and (settings.checkpoint_steps or settings.keep_best))


def _log(session: Session, plan: StepPlan, result: StepResult) -> None:
    state, metrics, progress = session.state, session.metrics, session.progress
    if metrics:
        for size in result.halved_to:
            metrics.add(step=state.step, task=plan.task, micro_batch_size=size)
    if result.skipped:
        logger.warning(f"{result.skipped}; the step is skipped ({state.skips.total} of this run so far)")
        progress.update(f"{plan.task} skipped")
        if metrics:
            metrics.add(step=state.step, task=plan.task, skipped=result.skipped, ids=result.nonfinite_ids)
        return
    progress.update(f"{plan.task} loss {result.loss:.3f}")
    if state.step % session.config.training.log_steps == 0 or state.step == state.total_steps:
        _log_metrics(session, plan, result)


def _log_metrics(session: Session, plan: StepPlan, result: StepResult) -> None:
    accelerator, timer = session.accelerator, session.state.timer
    processed = accelerator.reduce(torch.tensor([timer.tokens, timer.images], device=accelerator.device), "sum")
    timing = timer.read(processed) | memory_usage(accelerator.device) | {"eta_s": session.progress.eta_s()}
    values = {"loss": result.loss, "lr": result.learning_rate, "grad_norm": result.grad_norm}
    step = session.state.step
    if session.metrics:
        wall_s = round(result.wall_s, 4)
        session.metrics.add(step=step, task=plan.task, **values, wall_s=wall_s, time=timing)
    values[f"loss/{plan.task}"] = values.pop("loss")
    accelerator.log(values | {f"time/{name}": value for name, value in timing.items()}, step=step)
