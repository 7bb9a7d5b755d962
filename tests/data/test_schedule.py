"""The schedule: a pure function of (seed, step) that visits every row once a pass and shares steps by the mixture."""

from collections import Counter

import numpy as np
import pytest

from multitask_vl.config.schema import MixingConfig
from multitask_vl.data.schedule import Schedule

SIZES = {"vqa": 103, "gqa": 57, "nlvr2": 20, "coco_caption": 9}
BATCHES = {"vqa": 10, "gqa": 16, "nlvr2": 3, "coco_caption": 8}


def make(strategy="proportional", seed=1, **mixing):
    return Schedule(SIZES, BATCHES, MixingConfig(strategy=strategy, **mixing), seed)


def test_one_proportional_epoch_is_one_pass_over_every_row():
    schedule = make()
    assert schedule.steps_per_epoch == 11 + 4 + 7 + 2
    for epoch in range(3):
        steps = range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch)
        for task, size in SIZES.items():
            rows = [row for step in steps if (d := schedule.draw(step)).task == task for row in d.rows]
            assert sorted(rows) == list(range(size))


def test_a_step_does_not_depend_on_what_was_asked_before():
    forward, alone = make(), make()
    drawn = [forward.draw(step) for step in range(60)]
    for step in (59, 3, 41, 0):
        again = alone.draw(step)
        assert again.task == drawn[step].task
        assert np.array_equal(again.rows, drawn[step].rows)


def test_seeds_and_epochs_give_different_orders():
    one, other = make(seed=1), make(seed=2)
    epoch = one.steps_per_epoch
    tasks = [[s.draw(step).task for step in range(epoch)] for s in (one, other)]
    assert tasks[0] != tasks[1]
    assert tasks[0] != [one.draw(step).task for step in range(epoch, 2 * epoch)]


@pytest.mark.parametrize(
    ("strategy", "mixing", "expected"),
    [
        ("uniform", {}, {"vqa": 6, "gqa": 6, "nlvr2": 6, "coco_caption": 6}),
        ("temperature", {"temperature": 1.0}, {"vqa": 11, "gqa": 4, "nlvr2": 7, "coco_caption": 2}),
        # square roots of 11, 4, 7, 2 are 3.317, 2, 2.646, 1.414: shares of 24 are 8.49, 5.12, 6.77, 3.62
        ("temperature", {"temperature": 2.0}, {"vqa": 8, "gqa": 5, "nlvr2": 7, "coco_caption": 4}),
    ],
)
def test_mixtures_share_the_steps(strategy, mixing, expected):
    schedule = make(strategy, **mixing)
    assert schedule.shares == expected
    for cycle in range(2):
        steps = range(cycle * schedule.steps_per_epoch, (cycle + 1) * schedule.steps_per_epoch)
        assert Counter(schedule.draw(step).task for step in steps) == expected


def test_visits_are_counted_without_gaps_and_passes_follow_each_other():
    schedule = make("uniform")
    for task in SIZES:
        draws = [d for step in range(200) if (d := schedule.draw(step)).task == task]
        assert [d.visit for d in draws] == list(range(len(draws)))
        per_pass = schedule.batches[task]
        for start in range(0, len(draws) - per_pass, per_pass):
            rows = np.concatenate([d.rows for d in draws[start : start + per_pass]])
            assert sorted(rows) == list(range(SIZES[task]))


def test_a_tiny_task_still_gets_its_step():
    schedule = Schedule({"big": 100_000, "tiny": 1}, {"big": 10, "tiny": 10}, MixingConfig(), seed=0)
    assert schedule.shares == {"big": 10_000, "tiny": 1}
    shares = Schedule({"a": 10, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}, MixingConfig(temperature=1), 0).shares
    assert min(shares.values()) == 1
    assert sum(shares.values()) == 12


def test_a_far_step_costs_no_walk():
    schedule = Schedule({"a": 1_000_000, "b": 500_000}, {"a": 64, "b": 64}, MixingConfig(), seed=0)
    draw = schedule.draw(10**9)
    assert draw.step == 10**9
    assert len(draw.rows) in (64, 1_000_000 % 64, 500_000 % 64)
