"""Signals that stop a run: deferred to the end of a step, immediate during an evaluation, exit code 75."""

import json
import os
import signal
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from multitask_vl.errors import EXIT_PREEMPTED
from multitask_vl.training.preemption import SIGNALS, Interrupted, Interruption, handle_signals
from tests import fork_server, tiny_run


def test_signal_is_deferred_during_steps_and_immediate_elsewhere():
    before = [signal.getsignal(number) for number in SIGNALS]
    with handle_signals() as interruption:
        with pytest.raises(Interrupted, match="SIGUSR1"):
            os.kill(os.getpid(), signal.SIGUSR1)
        interruption.signal_name = None
        interruption.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal_name == "SIGTERM"
        with pytest.raises(Interrupted), interruption.immediate():
            raise AssertionError("an evaluation started although the run is to stop")
        assert interruption.deferred
        interruption.signal_name = None
        with pytest.raises(Interrupted), interruption.immediate():
            os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.deferred
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_interruption_alone_installs_no_handler():
    before = signal.getsignal(signal.SIGTERM)
    Interruption()
    assert signal.getsignal(signal.SIGTERM) is before


def test_exit_code_is_as_documented():
    assert EXIT_PREEMPTED == 75
    assert "| 75 |" in (tiny_run.ROOT / "docs" / "commands.md").read_text()


def test_signal_in_a_finalizer_is_delivered_again(capfd):
    """Python drops what a finalizer raises; the signal must still end the work, without a traceback."""

    class Finalized:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    def work():
        finalized = Finalized()
        del finalized
        time.sleep(10)

    with handle_signals() as interruption:
        with pytest.raises(Interrupted, match="SIGTERM"):
            work()
        assert interruption.signal_name == "SIGTERM"
    assert "Traceback" not in capfd.readouterr().err


def test_resume_option_names_a_checkpoint(tmp_path, capsys):
    config = tiny_run.write_config(tmp_path)
    arguments = ("seed=3", "--config", str(config), "--resume", "nowhere", "tracking.trackers=[]")
    assert tiny_run.launch("train", *arguments) == 2
    assert "training.resume: no checkpoint nowhere" in capsys.readouterr().err


@pytest.mark.slow
def test_signal_to_whole_job_spares_workers_and_tensorboard(tmp_path):
    """As a scheduler sends it. TensorBoard then hides what an earlier start logged of repeated steps."""
    tiny_run.write_dataset(tmp_path)
    evaluation = {**tiny_run.base_config(tmp_path)["evaluation"], "final_splits": []}
    config = tiny_run.write_config(tmp_path, tracking={"trackers": ["tensorboard"]}, evaluation=evaluation)
    arguments = ["--config", str(config), "--resume", "auto", "training.num_workers=1", "training.max_steps=24"]

    def start(**plan):
        plan = fork_server.FaultPlan(str(tmp_path / "log"), **plan)
        return fork_server.exit_codes(fork_server.start(arguments, plan))

    assert start(at_step=11, signal=signal.SIGTERM, whole_job=True) == [75], (tmp_path / "log").read_text()
    assert start(at_step=22, whole_job=True) == [-signal.SIGKILL]
    assert start() == [0]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 25))
    events = EventAccumulator(str(tmp_path / "run/tracking/multitask_vl")).Reload()
    assert [event.step for event in events.Scalars("lr")] == list(range(1, 25))
