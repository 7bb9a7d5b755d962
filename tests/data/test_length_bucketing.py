"""Length bucketing: every row once per epoch, less padding, the same order for every call."""

import numpy as np

from multitask_vl.config.schema import SamplingConfig
from multitask_vl.data.length_bucketing import BATCHES_PER_BUCKET, bucket_by_length
from multitask_vl.data.schedule import Schedule

SIZES, BATCHES = {"a": 1003, "b": 57, "c": 3}, {"a": 10, "b": 8, "c": 5}
LENGTHS = {task: np.random.default_rng(len(task)).integers(3, 30, size) for task, size in SIZES.items()}


def schedule(seed=1, lengths=LENGTHS):
    return Schedule(SIZES, BATCHES, SamplingConfig(), seed, lengths)


def spread(rows, task="a"):
    return int(np.ptp(LENGTHS[task][rows]))


def test_bucketed_epoch_has_every_row_once_in_batches_of_same_size():
    plain, bucketed = schedule(lengths=None), schedule()
    assert bucketed.steps_per_epoch == plain.steps_per_epoch
    for epoch in range(2):
        steps = range(epoch * bucketed.steps_per_epoch, (epoch + 1) * bucketed.steps_per_epoch)
        plans, others = [bucketed.plan(step) for step in steps], [plain.plan(step) for step in steps]
        for plan, other in zip(plans, others, strict=True):
            assert (plan.task, plan.batch_index, len(plan.rows)) == (other.task, other.batch_index, len(other.rows))
        for task, size in SIZES.items():
            assert sorted(row for plan in plans if plan.task == task for row in plan.rows) == list(range(size))


def test_bucketed_batches_have_similar_lengths_in_random_order():
    plans = [plan for step in range(100) if (plan := schedule().plan(step)).task == "a" and len(plan.rows) == 10]
    assert np.mean([spread(plan.rows) for plan in plans]) < 1
    means = [LENGTHS["a"][plan.rows].mean() for plan in plans]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.4
    plain = [plan for step in range(100) if (plan := schedule(lengths=None).plan(step)).task == "a"]
    assert np.mean([spread(plan.rows) for plan in plain]) > 15


def test_bucketed_plan_is_a_function_of_seed_and_step():
    in_order, any_order = schedule(), schedule()
    plans = [in_order.plan(step) for step in range(150)]
    for step in (149, 3, 120, 0):
        assert np.array_equal(any_order.plan(step).rows, plans[step].rows)
    assert not np.array_equal(schedule(seed=2).plan(0).rows, plans[0].rows)


def test_rows_of_equal_length_stay_shuffled():
    rng = np.random.default_rng(0)
    order = rng.permutation(600)
    bucketed = bucket_by_length(order, np.ones(600), 6, np.random.default_rng(1))
    assert np.array_equal(np.sort(bucketed), np.arange(600))
    assert {tuple(batch) for batch in bucketed.reshape(-1, 6)} == {tuple(batch) for batch in order.reshape(-1, 6)}
    assert np.array_equal(bucket_by_length(order[:4], np.arange(600), 6, rng), order[:4]), "fewer rows than a batch"


def test_rows_are_sorted_within_their_bucket_only():
    size, lengths = 4, np.random.default_rng(0).random(4000)
    order = np.random.default_rng(1).permutation(4000)
    bucket = np.argsort(order) // (size * BATCHES_PER_BUCKET)
    for batch in bucket_by_length(order, lengths, size, np.random.default_rng(2)).reshape(-1, size):
        assert len(set(bucket[batch])) == 1
