"""Training benchmark: recorded matrix products, equal losses and training steps of the cases."""

import pytest
import torch

from benchmarks.growth import Point, exponents
from benchmarks.matrix_products import ProductRecorder
from benchmarks.training_cases import CASES, Case, plain_loss
from tests.tiny_models import tiny_batch, tiny_config, tiny_model


def test_products_of_forward_and_backward_are_recorded():
    linear = torch.nn.Linear(5, 7)
    hidden = torch.randn(3, 4, 5, requires_grad=True)
    with ProductRecorder() as recorder:
        (linear(hidden) @ torch.randn(3, 7, 2)).sum().backward()
    shapes = sorted(result for (_, _, (result, _)), count in recorder.counts.items() for _ in range(count))
    # the linear layer and its two gradients; the batched product and the gradient of its left operand
    assert shapes == [(3, 4, 2), (3, 4, 7), (7, 5), (12, 5), (12, 7)]
    assert recorder.seconds(repeats=1) > 0


def test_plain_and_ours_have_same_loss():
    model, batch = tiny_model("adapter"), tiny_batch()
    with torch.no_grad():
        ours = model(batch).sum() / (batch.labels != -100).sum()
        torch.testing.assert_close(plain_loss(model, batch), ours, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["plain, padded to 20", "ours"])
def test_case_trains(name):
    case = Case(CASES[name], tiny_config("adapter"), "fp32")
    before = {key: value.detach().clone() for key, value in case.parameters.items()}
    for _ in range(2):  # the learning rate of the first step of a warm-up is 0
        case.step(tiny_batch())
    assert any(not torch.equal(value, before[key]) for key, value in case.parameters.items())
    assert all(torch.isfinite(value).all() for value in case.parameters.values())
    if name == "ours":
        assert case.state.step == 2


def test_exponents_are_slopes_of_last_points():
    points = [Point(1, 1.0, 8.0), Point(2, 3.0, 8.0), Point(4, 12.0, 16.0)]
    assert exponents(points) == (2.0, 1.0)
    assert exponents([Point(1, 2.0, None), Point(10, 20.0, None)]) == (1.0, None)
