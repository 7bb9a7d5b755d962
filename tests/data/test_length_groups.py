"""Batches of rows of like length: every row once a pass, less padding, the same order wherever it is computed."""

import numpy as np
import pytest

from multitask_vl.config import load_config
from multitask_vl.config.schema import MixingConfig
from multitask_vl.data import row_lengths as module
from multitask_vl.data.example_table import compiled
from multitask_vl.data.length_groups import BATCHES_SORTED, grouped
from multitask_vl.data.row_lengths import row_lengths
from multitask_vl.data.schedule import Schedule
from multitask_vl.models.build import load_tokenizer
from multitask_vl.tasks.build import build_tasks
from tests import tiny_run
from tests.tiny_models import tiny_batch

SIZES, BATCHES = {"a": 1003, "b": 57, "c": 3}, {"a": 10, "b": 8, "c": 5}
LENGTHS = {task: np.random.default_rng(len(task)).integers(3, 30, size) for task, size in SIZES.items()}


def schedule(seed=1, lengths=LENGTHS):
    return Schedule(SIZES, BATCHES, MixingConfig(), seed, lengths)


def spread(rows, task="a"):
    return int(np.ptp(LENGTHS[task][rows]))


def test_a_pass_still_has_every_row_once_and_batches_of_the_same_sizes():
    plain, groups = schedule(lengths=None), schedule()
    assert groups.steps_per_epoch == plain.steps_per_epoch
    for epoch in range(2):
        steps = range(epoch * groups.steps_per_epoch, (epoch + 1) * groups.steps_per_epoch)
        draws, others = [groups.draw(step) for step in steps], [plain.draw(step) for step in steps]
        assert [(d.task, d.visit, len(d.rows)) for d in draws] == [(d.task, d.visit, len(d.rows)) for d in others]
        for task, size in SIZES.items():
            assert sorted(row for d in draws if d.task == task for row in d.rows) == list(range(size))


def test_rows_of_a_batch_are_of_like_length_and_batches_come_in_no_order_of_length():
    draws = [d for step in range(100) if (d := schedule().draw(step)).task == "a" and len(d.rows) == 10]
    assert np.mean([spread(d.rows) for d in draws]) < 1
    means = [LENGTHS["a"][d.rows].mean() for d in draws]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.4
    plain = [d for step in range(100) if (d := schedule(lengths=None).draw(step)).task == "a"]
    assert np.mean([spread(d.rows) for d in plain]) > 15


def test_it_is_a_function_of_seed_and_step():
    forward, alone = schedule(), schedule()
    drawn = [forward.draw(step) for step in range(150)]
    for step in (149, 3, 120, 0):
        assert np.array_equal(alone.draw(step).rows, drawn[step].rows)
    assert not np.array_equal(schedule(seed=2).draw(0).rows, drawn[0].rows)


def test_rows_of_equal_length_stay_mixed_and_few_rows_stay_as_they_are():
    rng = np.random.default_rng(0)
    order = rng.permutation(600)
    once = grouped(order, np.ones(600), 6, np.random.default_rng(1))
    assert np.array_equal(np.sort(once.reshape(-1, 6), axis=None), np.arange(600))
    stretches = {tuple(batch) for batch in order.reshape(-1, 6)}
    assert {tuple(batch) for batch in once.reshape(-1, 6)} == stretches
    assert np.array_equal(grouped(order[:4], np.arange(600), 6, rng), order[:4])


def test_sorting_stays_within_a_stretch():
    size, lengths = 4, np.random.default_rng(0).random(4000)
    order = np.random.default_rng(1).permutation(4000)
    place = np.argsort(order) // (size * BATCHES_SORTED)
    for batch in grouped(order, lengths, size, np.random.default_rng(2)).reshape(-1, size):
        assert len(set(place[batch])) == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    tiny_run.write_files(folder)
    config = load_config(tiny_run.write_config(folder, cache_dir=str(folder / "cache")))
    return config, build_tasks(config), load_tokenizer(config.backbone)


def test_row_lengths_are_what_the_tokenizer_gives(run):
    config, tasks, tokenizer = run
    for task in tasks.values():
        table = compiled(task, "train", config.cache_dir)
        lengths = row_lengths(task, table, tokenizer)
        inputs = [len(tokenizer(task.config.prompt + text).input_ids) for text in table["text"]]
        targets = [max(len(tokenizer(answer).input_ids) for answer in answers) for answers in table["answers"]]
        assert [(n // (1 + max(inputs)), n % (1 + max(inputs))) for n in lengths] == list(
            zip(targets, inputs, strict=True)
        )


def test_row_lengths_are_counted_once(run, monkeypatch):
    config, tasks, tokenizer = run
    table = compiled(tasks["coco_caption"], "train", config.cache_dir)
    first = row_lengths(tasks["coco_caption"], table, tokenizer)
    monkeypatch.setattr(module, "_count", lambda *_: pytest.fail("counted again"))
    tokenizer.model_max_length = 5  # how the last call cut belongs to that call
    assert np.array_equal(row_lengths(tasks["coco_caption"], table, tokenizer), first)


def test_a_longer_limit_is_another_count(run):
    config, tasks, tokenizer = run
    table = compiled(tasks["vqa"], "train", config.cache_dir)
    whole = row_lengths(tasks["vqa"], table, tokenizer)
    cut = type(tasks["vqa"])("vqa", tasks["vqa"].config.model_copy(update={"max_input_tokens": 4}), config.data_dir)
    assert row_lengths(cut, table, tokenizer).max() < whole.max()


def test_pieces_are_short_and_hold_every_row_once():
    batch = tiny_batch()
    pieces = batch.pieces(1)
    assert [piece.input_ids.shape[1] for piece in pieces] == [7, 4, 6]
    assert [piece.labels.shape[1] for piece in pieces] == [4, 3, 2]
    assert sorted(id_ for piece in pieces for id_ in piece.ids) == sorted(batch.ids)
    for piece in pieces:
        row = batch.ids.index(piece.ids[0])
        length = piece.input_ids.shape[1]
        assert piece.input_ids[0].equal(batch.input_ids[row, :length])
        assert piece.attention_mask.all()
        assert piece.features[0].equal(batch.features[row])
        assert piece.weights[0] == batch.weights[row]
        assert piece.rows[0] == batch.rows[row]
    assert batch.pieces(None) == batch.pieces(3) == [batch]
