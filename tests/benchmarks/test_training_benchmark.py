"""The benchmark of a training step: every product is seen, plain and ours are the same model."""

import torch

from benchmarks.growth import Point, exponents
from benchmarks.matrix_products import Products
from benchmarks.training_cases import plain_loss
from tests.tiny_models import tiny_batch, tiny_model


def test_products_of_a_forward_and_a_backward_pass_are_counted():
    maps = torch.nn.Linear(5, 7)
    states = torch.randn(3, 4, 5, requires_grad=True)
    with Products() as seen:
        (maps(states) @ torch.randn(3, 7, 2)).sum().backward()
    shapes = sorted(result for (_, _, (result, _)), count in seen.found.items() for _ in range(count))
    # the map, its two gradients; the batched product and the gradient of its left side
    assert shapes == [(3, 4, 2), (3, 4, 7), (7, 5), (12, 5), (12, 7)]
    assert seen.seconds(repeats=1) > 0


def test_plain_and_ours_have_the_same_loss():
    model, batch = tiny_model("adapter"), tiny_batch()
    with torch.no_grad():
        ours = model(batch).sum() / (batch.labels != -100).sum()
        torch.testing.assert_close(plain_loss(model, batch), ours, atol=1e-6, rtol=1e-6)


def test_exponents():
    points = [Point(1, 1.0, 8.0), Point(2, 3.0, 8.0), Point(4, 12.0, 16.0)]
    assert exponents(points) == (2.0, 1.0)
    assert exponents([Point(1, 2.0, None), Point(10, 20.0, None)]) == (1.0, None)
