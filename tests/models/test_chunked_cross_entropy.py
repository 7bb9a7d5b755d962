"""The chunked loss against F.cross_entropy over all scores: values, gradients, precisions, and what stays in memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from multitask_vl.models.kernels import chunked_cross_entropy as module
from multitask_vl.models.kernels.chunked_cross_entropy import IGNORED, Head, token_loss

ROWS, LENGTH, WIDTH, VOCABULARY = 5, 7, 12, 50


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 4 * VOCABULARY)


def problem(bias=True, trained=False, scale=1.0):
    """States, labels of unequal lengths (one row has none), a head, and a gradient for every loss."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, LENGTH, WIDTH, generator=generator).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator)
    labels[torch.arange(LENGTH) >= torch.tensor([7, 3, 0, 5, 1])[:, None]] = IGNORED
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).requires_grad_(trained)
    offsets = torch.randn(VOCABULARY, generator=generator).requires_grad_(trained) if bias else None
    return hidden, labels, Head(weight, offsets, scale), torch.randn(ROWS, LENGTH, generator=generator)


def plain(hidden, labels, head):
    scores = head.scores(hidden).float()
    return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)


def gradients(loss, hidden, head, factors):
    wanted = [t for t in (hidden, head.weight, head.bias) if t is not None and t.requires_grad]
    return torch.autograd.grad((loss * factors).sum(), wanted)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_cross_entropy(bias, trained, scale):
    hidden, labels, head, factors = problem(bias, trained, scale)
    ours, expected = token_loss(hidden, labels, head), plain(hidden, labels, head)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)
    assert (ours[labels == IGNORED] == 0).all()
    got, wanted = (gradients(loss, hidden, head, factors) for loss in (ours, expected))
    assert len(got) == 1 + trained * (1 + bias)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


# what is trained is never held in bfloat16
@pytest.mark.parametrize(("trained", "held"), [(False, False), (False, True), (True, False)])
def test_under_autocast_it_is_as_near_to_float32_as_the_plain_form(trained, held):
    hidden, labels, head, factors = problem(trained=trained)
    exact = gradients(plain(hidden, labels, head), hidden, head, factors)
    if held:
        head = Head(head.weight.bfloat16(), head.bias)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = token_loss(hidden, labels, head), plain(hidden, labels, head)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.02)
    got, other = (gradients(loss, hidden, head, factors) for loss in (ours, theirs))
    for mine, plains, true in zip(got, other, exact, strict=True):
        assert mine.dtype == true.dtype
        assert (mine - true).norm() < max(1.5 * (plains - true).norm(), 0.01 * true.norm())


def test_without_gradients_the_second_product_is_left_out(monkeypatch):
    hidden, labels, head, _ = problem()
    monkeypatch.setattr(module._Scores, "slopes", lambda *_: pytest.fail("gradients were computed"))
    with torch.no_grad():
        losses = token_loss(hidden, labels, head)
    torch.testing.assert_close(losses, plain(hidden, labels, head).detach(), atol=1e-6, rtol=1e-6)
    assert not losses.requires_grad
    assert not token_loss(hidden.detach(), labels, head).requires_grad


@pytest.mark.parametrize("trained", [False, True])
def test_nothing_of_the_size_of_all_scores_is_kept(trained):
    hidden, labels, head, _ = problem(trained=trained)
    sizes = []
    pack = lambda tensor: sizes.append(tensor.numel()) or tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_loss(hidden, labels, head)
    kept = [VOCABULARY * WIDTH] if trained else []
    assert max(sizes) <= max([ROWS * LENGTH * WIDTH, *kept])
    assert max(sizes) < ROWS * LENGTH * VOCABULARY


def test_a_frozen_head_gets_no_gradient():
    hidden, labels, head, factors = problem()
    (token_loss(hidden, labels, head) * factors).sum().backward()
    assert head.weight.grad is None
    assert hidden.grad is not None


@pytest.mark.parametrize("trained", [False, True])
def test_it_can_be_recomputed(trained):
    hidden, labels, head, factors = problem(trained=trained)
    direct = gradients(token_loss(hidden, labels, head), hidden, head, factors)
    again = checkpoint(lambda states: token_loss(states, labels, head), hidden, use_reentrant=False)
    for one, other in zip(direct, gradients(again, hidden, head, factors), strict=True):
        assert torch.equal(one, other)


def test_no_target_at_all_is_no_loss():
    hidden, labels, head, factors = problem()
    loss = token_loss(hidden, torch.full_like(labels, IGNORED), head)
    assert torch.equal(loss, torch.zeros(ROWS, LENGTH))
    assert torch.equal(gradients(loss, hidden, head, factors)[0], torch.zeros_like(hidden))
