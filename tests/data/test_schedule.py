"""Schedule as a pure function of (seed, step): every row once per task epoch, steps divided by strategy."""

from collections import Counter

import numpy as np
import pytest

from multitask_vl.config.schema import SamplingConfig
from multitask_vl.data.schedule import Schedule

SIZES = {"vqa": 103, "gqa": 57, "nlvr2": 20, "coco_caption": 9}
BATCHES = {"vqa": 10, "gqa": 16, "nlvr2": 3, "coco_caption": 8}


def make(strategy="proportional", seed=1, **sampling):
    return Schedule(SIZES, BATCHES, SamplingConfig(strategy=strategy, **sampling), seed)


def test_proportional_epoch_has_every_row_once():
    schedule = make()
    assert schedule.steps_per_epoch == 11 + 4 + 7 + 2
    for epoch in range(3):
        plans = [schedule.plan(epoch * schedule.steps_per_epoch + step) for step in range(schedule.steps_per_epoch)]
        for task, size in SIZES.items():
            assert sorted(row for plan in plans if plan.task == task for row in plan.rows) == list(range(size))


def test_plan_does_not_depend_on_earlier_calls():
    in_order, any_order = make(), make()
    plans = [in_order.plan(step) for step in range(60)]
    for step in (59, 3, 41, 0):
        plan = any_order.plan(step)
        assert plan.task == plans[step].task
        assert np.array_equal(plan.rows, plans[step].rows)


def test_order_differs_by_seed_and_epoch():
    one, other = make(seed=1), make(seed=2)
    epoch = one.steps_per_epoch
    tasks = [[schedule.plan(step).task for step in range(epoch)] for schedule in (one, other)]
    assert tasks[0] != tasks[1]
    assert tasks[0] != [one.plan(step).task for step in range(epoch, 2 * epoch)]


@pytest.mark.parametrize(
    ("strategy", "sampling", "expected"),
    [
        ("uniform", {}, {"vqa": 6, "gqa": 6, "nlvr2": 6, "coco_caption": 6}),
        ("temperature", {"temperature": 1.0}, {"vqa": 11, "gqa": 4, "nlvr2": 7, "coco_caption": 2}),
        # square roots of 11, 4, 7, 2 are 3.317, 2, 2.646, 1.414: fractions of 24 are 8.49, 5.12, 6.77, 3.62
        ("temperature", {"temperature": 2.0}, {"vqa": 8, "gqa": 5, "nlvr2": 7, "coco_caption": 4}),
    ],
)
def test_sampling_strategy_divides_the_steps(strategy, sampling, expected):
    schedule = make(strategy, **sampling)
    assert schedule.steps_per_task == expected
    for epoch in range(2):
        steps = range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch)
        assert Counter(schedule.plan(step).task for step in steps) == expected


def test_batches_are_numbered_and_task_epochs_follow_each_other():
    schedule = make("uniform")
    for task in SIZES:
        plans = [plan for step in range(200) if (plan := schedule.plan(step)).task == task]
        assert [plan.batch_index for plan in plans] == list(range(len(plans)))
        per_epoch = schedule.batches[task]
        for start in range(0, len(plans) - per_epoch, per_epoch):
            rows = np.concatenate([plan.rows for plan in plans[start : start + per_epoch]])
            assert sorted(rows) == list(range(SIZES[task]))


def test_tiny_task_gets_one_step():
    schedule = Schedule({"big": 100_000, "tiny": 1}, {"big": 10, "tiny": 10}, SamplingConfig(), seed=0)
    assert schedule.steps_per_task == {"big": 10_000, "tiny": 1}
    schedule = Schedule({"a": 10, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}, SamplingConfig(temperature=1), seed=0)
    assert min(schedule.steps_per_task.values()) == 1
    assert sum(schedule.steps_per_task.values()) == 12


def test_far_step_is_planned_without_iterating():
    schedule = Schedule({"a": 1_000_000, "b": 500_000}, {"a": 64, "b": 64}, SamplingConfig(), seed=0)
    plan = schedule.plan(10**9)
    assert plan.step == 10**9
    assert len(plan.rows) in (64, 1_000_000 % 64, 500_000 % 64)
