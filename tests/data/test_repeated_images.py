"""An image that comes more than once in a batch: read once, projected once, and nothing else changes."""

import dataclasses

import numpy as np
import pytest
import torch

from multitask_vl.data.collate import Collator
from tests.tiny_models import loss_of, tiny_batch, tiny_model


def once_and_repeated(images=1):
    """A batch with each distinct image once, and the same with every row's own copy."""
    batch = tiny_batch(images=images)
    which = torch.tensor([[0, 1], [1, 1], [0, 2]])[:, :images]
    distinct = batch.features.flatten(0, 1)[: int(which.max()) + 1]
    return (
        dataclasses.replace(batch, features=distinct, images=which),
        dataclasses.replace(batch, features=distinct[which]),
    )


@pytest.mark.parametrize("images", [1, 2])
def test_the_model_gives_the_same(images):
    found = []
    for batch in once_and_repeated(images):
        model = tiny_model("adapter", {"function": "mul", "source": "visual_pooled"})
        loss = loss_of(model, batch)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.trainable().values() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_it_is_projected_once():
    model, seen = tiny_model(), []
    model.visual.project.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[0]))
    loss_of(model, once_and_repeated()[0])
    loss_of(model, once_and_repeated()[1])
    assert seen == [2, 3]


def test_some_rows_of_it_keep_only_their_images():
    batch, copies = once_and_repeated(2)
    for rows in ([1], [2, 0], [0, 1, 2]):
        some, other = batch.select(torch.tensor(rows)), copies.select(torch.tensor(rows))
        assert len(some.features) == int(some.images.max()) + 1 == len(some.images.unique())
        assert torch.equal(some.features[some.images], other.features)
        assert torch.equal(some.input_ids, other.input_ids)
        assert some.ids == other.ids
    assert [len(piece) for piece in batch.pieces(2)] == [2, 1]


class Store:
    """Features that tell their key, and how often they were read."""

    def __init__(self):
        self.read = []

    def get_many(self, keys):
        self.read += keys
        return np.array([[[float(key)]] for key in keys], np.float16)


def test_it_is_read_once():
    store = Store()
    task = type("Any", (), {"name": "vqa", "config": type("Keys", (), {"prompt": "", "max_input_tokens": None})})
    ids = torch.ones(3, 2, dtype=torch.long)
    tokenizer = lambda *_, **__: type("Text", (), {"input_ids": ids, "attention_mask": ids})  # noqa: E731
    columns = {"text": ["a"] * 3, "images": [["5", "7"], ["7", "7"], ["5", "8"]], "id": ["x", "y", "z"]}
    collator = Collator(task, type("Rows", (), {"__getitem__": lambda *_: columns})(), tokenizer, store)
    batch = collator.predicting([0, 1, 2])
    assert store.read == ["5", "7", "8"]
    assert batch.features[batch.images].flatten().tolist() == [5, 7, 7, 7, 5, 8]
    columns["images"] = [["1"], ["2"], ["3"]]
    batch = collator.predicting([0, 1, 2])
    assert batch.images is None
    assert batch.features.shape == (3, 1, 1, 1)


@pytest.mark.parametrize("images", [1, 2])
def test_an_example_of_several_rows_holds_its_images_once(images):
    batch = tiny_batch(images=images)
    several = batch.repeated([2, 1, 3])
    assert len(several) == 6
    assert several.ids == [batch.ids[row] for row in (0, 0, 1, 2, 2, 2)]
    assert len(several.features) == 3 * images
    model = tiny_model("adapter", {"function": "mul", "source": "visual_pooled"})
    with torch.no_grad():
        torch.testing.assert_close(model(several), model(batch)[[0, 0, 1, 2, 2, 2]], atol=1e-5, rtol=1e-5)
    assert batch.repeated([1, 1, 1]) is batch
