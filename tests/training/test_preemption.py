"""When the machine is wanted back: a signal waits for the step, ends what is repeated anyway at once, exit code 75."""

import json
import os
import signal

import pytest

from multitask_vl.training.preemption import EXIT_RUN_AGAIN, SIGNALS, Interrupted, Interruption, interruptible
from tests import fork_server, tiny_run


def test_a_signal_is_noted_while_steps_are_taken_and_raises_where_nothing_is_lost():
    before = [signal.getsignal(number) for number in SIGNALS]
    with interruptible() as interruption:
        with pytest.raises(Interrupted, match="SIGUSR1"):
            os.kill(os.getpid(), signal.SIGUSR1)
        interruption.asked = None
        interruption.waits = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.asked == "SIGTERM"
        with pytest.raises(Interrupted), interruption.at_once():
            raise AssertionError("an evaluation began though the run is to end")
        assert interruption.waits
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_ends_an_evaluation_where_it_stands():
    with interruptible() as interruption:
        interruption.waits = True
        with pytest.raises(Interrupted), interruption.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.waits


def test_without_a_program_no_handler_is_installed():
    before = signal.getsignal(signal.SIGTERM)
    Interruption()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_code_is_the_one_that_is_documented():
    assert EXIT_RUN_AGAIN == 75
    assert "| 75 |" in (tiny_run.ROOT / "README.md").read_text()


def test_resume_is_a_word_of_the_command_line(tmp_path, capsys):
    tiny_run.write_files(tmp_path)
    config = tiny_run.write_config(tmp_path)
    words = ("seed=3", "--config", str(config), "training.steps=2", "--resume", "nowhere", "tracking.trackers=[]")
    assert tiny_run.launch("train_multitask", *words) == 2
    assert "training.resume: no checkpoint nowhere" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_to_the_whole_job_leaves_loading_processes_to_the_one_they_work_for(tmp_path):
    """As a scheduler sends it. Then TensorBoard hides what the first start told of steps that the second took again."""
    tiny_run.write_files(tmp_path)
    config = tiny_run.write_config(tmp_path, tracking={"trackers": ["tensorboard"]})
    words = ["--config", str(config), "--resume", "auto", "training.workers=1", "training.steps=40"]

    def start(**plan):
        return fork_server.ended(fork_server.start(words, fork_server.Plan(str(tmp_path / "said"), **plan)))

    assert start(at_step=17, signal=signal.SIGTERM, to_job=True) == [75], (tmp_path / "said").read_text()
    assert start(at_step=38, to_job=True) == [-signal.SIGKILL]
    assert start() == [0]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 41))

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run/tracking/multitask_vl")).Reload()
    assert [event.step for event in events.Scalars("lr")] == list(range(1, 41))
