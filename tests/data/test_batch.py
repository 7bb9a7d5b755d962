"""Batches: images that occur several times, row selection, repetition and micro-batches."""

import dataclasses

import numpy as np
import pytest
import torch

from multitask_vl.data.collate import Collator
from tests.tiny_models import loss_of, tiny_batch, tiny_model


def shared_and_copied(images=1):
    """Return a batch with each distinct image once, and the same batch with a copy per row."""
    batch = tiny_batch(images=images)
    image_index = torch.tensor([[0, 1], [1, 1], [0, 2]])[:, :images]
    distinct = batch.features.flatten(0, 1)[: int(image_index.max()) + 1]
    return (
        dataclasses.replace(batch, features=distinct, image_index=image_index),
        dataclasses.replace(batch, features=distinct[image_index]),
    )


@pytest.mark.parametrize("images", [1, 2])
def test_shared_images_give_same_loss_and_gradients(images):
    results = []
    for batch in shared_and_copied(images):
        model = tiny_model("adapter", {"function": "mul", "source": "visual"})
        loss = loss_of(model, batch)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.trainable_parameters().values() if p.grad is not None)])
    assert len(results[0]) == len(results[1])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_shared_image_is_projected_once():
    model, projected = tiny_model(), []
    model.visual.project.register_forward_hook(lambda module, args, out: projected.append(args[0].shape[0]))
    loss_of(model, shared_and_copied()[0])
    loss_of(model, shared_and_copied()[1])
    assert projected == [2, 3]


def test_selected_rows_keep_only_their_images():
    batch, copies = shared_and_copied(2)
    for rows in ([1], [2, 0], [0, 1, 2]):
        some, other = batch.select(torch.tensor(rows)), copies.select(torch.tensor(rows))
        assert len(some.features) == int(some.image_index.max()) + 1 == len(some.image_index.unique())
        assert torch.equal(some.features[some.image_index], other.features)
        assert torch.equal(some.input_ids, other.input_ids)
        assert some.ids == other.ids
    assert [len(micro_batch) for micro_batch in batch.split(2)] == [2, 1]


class Store:
    """Features that equal their key, with a record of reads."""

    def __init__(self):
        self.read = []

    def get_many(self, keys):
        self.read += keys
        return np.array([[[float(key)]] for key in keys], np.float16)


def test_collator_reads_shared_image_once():
    store = Store()
    task = type("Any", (), {"name": "vqa", "config": type("Keys", (), {"prompt": "", "max_input_tokens": None})})
    ids = torch.ones(3, 2, dtype=torch.long)
    tokenizer = lambda *_, **__: type("Text", (), {"input_ids": ids, "attention_mask": ids})  # noqa: E731
    columns = {"text": ["a"] * 3, "images": [["5", "7"], ["7", "7"], ["5", "8"]], "id": ["x", "y", "z"]}
    collator = Collator(task, type("Rows", (), {"__getitem__": lambda *_: columns})(), tokenizer, store)
    batch = collator.eval_batch([0, 1, 2])
    assert store.read == ["5", "7", "8"]
    assert batch.features[batch.image_index].flatten().tolist() == [5, 7, 7, 7, 5, 8]
    columns["images"] = [["1"], ["2"], ["3"]]
    batch = collator.eval_batch([0, 1, 2])
    assert batch.image_index is None
    assert batch.features.shape == (3, 1, 1, 1)


@pytest.mark.parametrize("images", [1, 2])
def test_repeated_rows_share_their_images(images):
    batch = tiny_batch(images=images)
    repeated = batch.repeat_rows([2, 1, 3])
    assert len(repeated) == 6
    assert repeated.ids == [batch.ids[row] for row in (0, 0, 1, 2, 2, 2)]
    assert len(repeated.features) == 3 * images
    model = tiny_model("adapter", {"function": "mul", "source": "visual"})
    with torch.no_grad():
        torch.testing.assert_close(model(repeated), model(batch)[[0, 0, 1, 2, 2, 2]], atol=1e-5, rtol=1e-5)
    assert batch.repeat_rows([1, 1, 1]) is batch


def test_micro_batches_are_trimmed_and_have_every_row_once():
    batch = tiny_batch()
    micro_batches = batch.split(1)
    assert [each.input_ids.shape[1] for each in micro_batches] == [7, 4, 6]
    assert [each.labels.shape[1] for each in micro_batches] == [4, 3, 2]
    assert sorted(id_ for each in micro_batches for id_ in each.ids) == sorted(batch.ids)
    for each in micro_batches:
        row = batch.ids.index(each.ids[0])
        assert each.input_ids[0].equal(batch.input_ids[row, : each.input_ids.shape[1]])
        assert each.attention_mask.all()
        assert each.features[0].equal(batch.features[row])
        assert each.weights[0] == batch.weights[row]
        assert each.rows[0] == batch.rows[row]
    assert batch.split(None) == batch.split(3) == [batch]
