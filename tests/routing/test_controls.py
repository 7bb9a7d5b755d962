"""Noise and ones in place of x_R (routing paper, Table B2)."""

from __future__ import annotations

import pytest
import torch

from multitask_vl.routing.controls import control_x_r


def noise(ids=("a", "b"), training=False, seed=1):
    return control_x_r("noise", ids, 1, 4, torch.zeros(1), training, seed)


def test_control_ones():
    assert torch.equal(control_x_r("ones", ["a", "b"], 3, 4, torch.zeros(1), True, 0), torch.ones(2, 3, 4))


def test_control_noise_in_training_follows_generator():
    torch.manual_seed(3)
    first, second = noise(training=True), noise(training=True)
    torch.manual_seed(3)
    assert torch.equal(noise(training=True), first)
    assert not torch.equal(first, second)


def test_control_noise_in_evaluation_depends_on_example():
    both = noise()
    torch.manual_seed(9)
    assert torch.equal(noise(("b",))[0], both[1])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(noise(seed=2), both)


def test_control_rejects_unknown_name():
    with pytest.raises(ValueError, match="unknown control 'zeros'"):
        control_x_r("zeros", ["a"], 1, 4, torch.zeros(1), True, 0)
