"""Time of a step by phase, on the host and on a device."""

import time

import torch

from multitask_vl.training import step_timer
from multitask_vl.training.step_timer import IDLE, PHASES, StepTimer


class Batch:
    attention_mask = torch.tensor([[1, 1, 0]])
    labels = torch.tensor([[5, -100]])
    features = torch.zeros(1, 2, 4, 8)
    image_index = None


def test_timer_adds_up_phases_between_readings(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 3.5, 4.0, 10.0, 20.0, 20.0, 21.0])
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: next(now))
    timer = StepTimer(torch.device("cpu"))
    for phase in ("wait", "forward", "backward", "optimizer"):
        timer.start_phase(phase)
    timer.count(Batch)
    timer.start_phase(IDLE)  # at 4.0; an evaluation until 10.0 does not belong to a step
    assert timer.read() == {
        "step_s": 4.0, "wait_s": 1.0, "forward_s": 2.0, "backward_s": 0.5, "optimizer_s": 0.5,
        "tokens_per_s": 0.8, "images_per_s": 0.5,
    }  # fmt: skip
    timer.start_phase("wait")
    timer.start_phase("forward")
    timer.count(Batch)
    assert timer.read(torch.tensor([30, 8]))["tokens_per_s"] == 30.0, "tokens of all processes"


class Event:
    """Event of a device: recorded at a time of the host, comparable only after synchronizing."""

    calls: list = []

    def record(self):
        self.at = len(Event.calls)
        Event.calls.append("record")

    def synchronize(self):
        Event.calls.append("synchronize")

    def elapsed_time(self, other):
        return 1000.0 * (other.at - self.at)


def test_timer_synchronizes_a_device_only_when_read():
    timer = StepTimer(torch.device("cpu"), event=Event)
    for _ in range(3):
        for phase in (*PHASES, IDLE):
            timer.start_phase(phase)
        timer.count(Batch)
    assert "synchronize" not in Event.calls
    read = timer.read()
    assert Event.calls.count("synchronize") == 1
    assert [read[f"{phase}_s"] for phase in PHASES] == [1.0, 1.0, 1.0, 1.0]


def test_timer_costs_less_than_a_millisecond_per_step():
    timer = StepTimer(torch.device("cpu"))
    started = time.process_time()
    for _ in range(500):
        for phase in (*PHASES, IDLE):
            timer.start_phase(phase)
        timer.count(Batch)
    timer.read()
    assert (time.process_time() - started) / 500 < 1e-3
