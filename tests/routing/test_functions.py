"""Routing functions: published formulas, several rows, cost."""

from __future__ import annotations

import pytest
import torch

from multitask_vl.errors import InputError
from multitask_vl.registry import ROUTING

BATCH, LENGTH, RANK = 3, 5, 7
NAMES = ["none", "mul", "add", "mm1", "mm2", "mm1_relu", "mm1_ones", "mm1_legacy_reshape"]


def matrix_form(name: str, t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The published formulas with explicit matrices."""
    transposed = v.transpose(1, 2)
    return {
        "none": lambda: t,
        "mul": lambda: t * v.expand_as(t),
        "add": lambda: t + v.expand_as(t),
        "mm1": lambda: torch.bmm(torch.bmm(t, transposed), v),
        "mm2": lambda: torch.bmm(t, v.expand(-1, t.shape[2], -1)),
        "mm1_relu": lambda: torch.bmm(torch.bmm(t.clamp(min=0), transposed.clamp(min=0)), v),
        "mm1_ones": lambda: torch.bmm(torch.bmm(t, transposed), torch.ones_like(v)),
        "mm1_legacy_reshape": lambda: torch.bmm(torch.bmm(t, v.reshape(len(v), v.shape[2], v.shape[1])), v),
    }[name]()


def inputs(rows: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (BATCH, LENGTH, RANK), (BATCH, rows, RANK)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize("name", NAMES)
def test_function_equals_matrix_form_for_one_row(name):
    t, v = inputs()
    torch.testing.assert_close(ROUTING.get(name)(t, v), matrix_form(name, t, v), atol=1e-12, rtol=0)
    if name == "mm1_legacy_reshape":
        torch.testing.assert_close(ROUTING.get(name)(t, v), ROUTING.get("mm1")(t, v), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["mm1", "mm1_relu", "mm1_ones", "mm1_legacy_reshape"])
@pytest.mark.parametrize("rows", [4, RANK, 3 * RANK])
def test_function_equals_matrix_form_for_several_rows(name, rows):
    t, v = inputs(rows)
    torch.testing.assert_close(ROUTING.get(name)(t, v), matrix_form(name, t, v), atol=1e-12, rtol=0)
    assert not torch.allclose(ROUTING.get("mm1")(t, v), ROUTING.get("mm1_legacy_reshape")(t, v))


@pytest.mark.parametrize("name", ["mul", "add", "mm2"])
def test_function_rejects_several_rows_where_undefined(name):
    with pytest.raises(InputError, match=f'"{name}" is defined for one routing row, not for 4'):
        ROUTING.get(name)(*inputs(4))


@pytest.mark.parametrize("name", NAMES[1:])
def test_function_routes_each_token_independently(name):
    """Cached decoding relies on it."""
    t, v = inputs()
    together = ROUTING.get(name)(t, v)
    tokens = [ROUTING.get(name)(t[:, i : i + 1], v) for i in range(LENGTH)]
    assert torch.equal(together, torch.cat(tokens, 1))


def test_function_cost_of_one_row_is_linear_in_rank():
    """No r x r matrix: no intermediate tensor is larger than the bottleneck."""
    t, v = torch.randn(1, 2, 4096), torch.randn(1, 1, 4096)
    for name in ROUTING.names():
        sizes = []

        class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None, sizes=sizes):
                result = function(*args, **(kwargs or {}))
                sizes.append(result.numel() if isinstance(result, torch.Tensor) else 0)
                return result

        with Sizes():
            ROUTING.get(name)(t, v)
        assert max(sizes, default=0) <= t.numel(), name
