"""Does VL-PET compute what the published code does in the sizes of which no file is here, on either backbone?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.golden.__main__ import run
from tests.golden.fixture import ATOL, RTOL, NotUnderstood, read
from tests.golden.names import methods_of
from tests.published_vl_pet import GATES, computed, record, with_gates

GOLDEN = Path(__file__).parent / "golden"
FILES = {"bart": ("vlpet_large", 1.0), "t5": ("t5_vlpet_large", 0.3)}
"""Family -> recorded file, and the scale of its gates."""


@pytest.mark.parametrize("family", FILES)
def test_the_formulas_written_down_here_are_the_recorded_ones(family):
    """The second implementation must itself agree with what was recorded, or its own files would prove nothing."""
    name, scale = FILES[family]
    fixture = read(GOLDEN / f"{name}.safetensors")
    found = computed(fixture, scale)
    compared = [name for name in found if name in fixture.tensors]
    assert len(compared) > 20
    for name in compared:
        expected = fixture.tensors[name]
        if name.startswith("generate/"):
            assert found[name][:, 1].tolist() == expected[:, 1].tolist()
        else:
            torch.testing.assert_close(found[name], expected, atol=ATOL, rtol=RTOL)


@pytest.mark.parametrize("granularity", [name for name in GATES if name != "large"])
@pytest.mark.parametrize("family", FILES)
def test_other_sizes(family, granularity, tmp_path):
    name, scale = FILES[family]
    fixture = with_gates(read(GOLDEN / f"{name}.safetensors"), granularity)
    path = tmp_path / "other.safetensors"
    record(path, fixture, computed(fixture, scale))
    (config,) = methods_of(read(path))
    assert (config.granularity, config.gate_scale, config.num_heads) == (granularity, scale, 4)
    # the source averages small gates over padding, of which there is some
    assert config.legacy_pad_mean == (granularity == "small")
    assert bool((fixture.tensors["input/input_ids"] == fixture.meta["config"]["pad_token_id"]).any())
    report = run(path)
    assert report.failures == []
    assert report.compared > 100
    assert report.worst < 2e-5


def test_a_gate_may_be_a_row(tmp_path):
    """A vector of the source's may have an axis of one entry more than ours."""
    name, scale = FILES["bart"]
    fixture = with_gates(read(GOLDEN / f"{name}.safetensors"), "middleY")
    outputs = computed(fixture, scale)
    rows = {key: value[None] for key, value in (fixture.tensors | outputs).items() if key.endswith("middle_ia3_add")}
    assert len(rows) > 4
    path = tmp_path / "rows.safetensors"
    record(path, replace(fixture, tensors=fixture.tensors | rows), outputs | rows)
    assert run(path).failures == []


def test_a_head_too_few_is_noticed(tmp_path):
    fixture = read(GOLDEN / "vlpet_large.safetensors")
    tensors = {name: value for name, value in fixture.tensors.items() if "multihead_down.2." not in name}
    path = tmp_path / "less.safetensors"
    outputs = {name: value for name, value in tensors.items() if name.startswith("output/")}
    record(path, replace(fixture, tensors=tensors), outputs)
    with pytest.raises(NotUnderstood, match="nothing recorded for"):
        run(path)
