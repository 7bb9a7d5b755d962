"""Chunked cross-entropy equals F.cross_entropy over all logits: values, gradients, precisions, memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from multitask_vl.models.kernels import chunked_cross_entropy as module
from multitask_vl.models.kernels.chunked_cross_entropy import IGNORE_INDEX, LMHead, per_token_cross_entropy

ROWS, LENGTH, WIDTH, VOCABULARY = 5, 7, 12, 50


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(module, "LOGITS_PER_CHUNK", 4 * VOCABULARY)


def problem(bias=True, trainable=False, scale=1.0):
    """Hidden states, labels of unequal lengths (one row has none), a head, and a gradient for every loss."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, LENGTH, WIDTH, generator=generator).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator)
    labels[torch.arange(LENGTH) >= torch.tensor([7, 3, 0, 5, 1])[:, None]] = IGNORE_INDEX
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).requires_grad_(trainable)
    offsets = torch.randn(VOCABULARY, generator=generator).requires_grad_(trainable) if bias else None
    return hidden, labels, LMHead(weight, offsets, scale), torch.randn(ROWS, LENGTH, generator=generator)


def plain(hidden, labels, head):
    logits = head.logits(hidden).float()
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)


def gradients(loss, hidden, head, factors):
    inputs = [t for t in (hidden, head.weight, head.bias) if t is not None and t.requires_grad]
    return torch.autograd.grad((loss * factors).sum(), inputs)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_chunked_equals_cross_entropy(bias, trainable, scale):
    hidden, labels, head, factors = problem(bias, trainable, scale)
    ours, expected = per_token_cross_entropy(hidden, labels, head), plain(hidden, labels, head)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)
    assert (ours[labels == IGNORE_INDEX] == 0).all()
    actual, reference = (gradients(loss, hidden, head, factors) for loss in (ours, expected))
    assert len(actual) == 1 + trainable * (1 + bias)
    for one, other in zip(actual, reference, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


# trainable parameters are never cast to bfloat16
@pytest.mark.parametrize(("trainable", "cast"), [(False, False), (False, True), (True, False)])
def test_chunked_under_autocast_is_as_exact_as_plain(trainable, cast):
    hidden, labels, head, factors = problem(trainable=trainable)
    exact = gradients(plain(hidden, labels, head), hidden, head, factors)
    if cast:
        head = LMHead(head.weight.bfloat16(), head.bias)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = per_token_cross_entropy(hidden, labels, head), plain(hidden, labels, head)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.02)
    chunked, reference = (gradients(loss, hidden, head, factors) for loss in (ours, theirs))
    for one, other, true in zip(chunked, reference, exact, strict=True):
        assert one.dtype == true.dtype
        assert (one - true).norm() < max(1.5 * (other - true).norm(), 0.01 * true.norm())


def test_chunked_without_grad_skips_second_product(monkeypatch):
    hidden, labels, head, _ = problem()
    monkeypatch.setattr(module._LogitChunks, "grad_logits", lambda *_: pytest.fail("gradients were computed"))
    with torch.no_grad():
        losses = per_token_cross_entropy(hidden, labels, head)
    torch.testing.assert_close(losses, plain(hidden, labels, head).detach(), atol=1e-6, rtol=1e-6)
    assert not losses.requires_grad
    assert not per_token_cross_entropy(hidden.detach(), labels, head).requires_grad


@pytest.mark.parametrize("trainable", [False, True])
def test_chunked_saves_nothing_as_large_as_all_logits(trainable):
    hidden, labels, head, _ = problem(trainable=trainable)
    sizes = []
    pack = lambda tensor: sizes.append(tensor.numel()) or tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        per_token_cross_entropy(hidden, labels, head)
    weight = [VOCABULARY * WIDTH] if trainable else []
    assert max(sizes) <= max([ROWS * LENGTH * WIDTH, *weight])
    assert max(sizes) < ROWS * LENGTH * VOCABULARY


def test_chunked_frozen_head_gets_no_gradient():
    hidden, labels, head, factors = problem()
    (per_token_cross_entropy(hidden, labels, head) * factors).sum().backward()
    assert head.weight.grad is None
    assert hidden.grad is not None


@pytest.mark.parametrize("trainable", [False, True])
def test_chunked_can_be_recomputed(trainable):
    hidden, labels, head, factors = problem(trainable=trainable)
    direct = gradients(per_token_cross_entropy(hidden, labels, head), hidden, head, factors)
    again = checkpoint(lambda hidden: per_token_cross_entropy(hidden, labels, head), hidden, use_reentrant=False)
    for one, other in zip(direct, gradients(again, hidden, head, factors), strict=True):
        assert torch.equal(one, other)


def test_chunked_without_targets_is_zero():
    hidden, labels, head, factors = problem()
    loss = per_token_cross_entropy(hidden, torch.full_like(labels, IGNORE_INDEX), head)
    assert torch.equal(loss, torch.zeros(ROWS, LENGTH))
    assert torch.equal(gradients(loss, hidden, head, factors)[0], torch.zeros_like(hidden))
