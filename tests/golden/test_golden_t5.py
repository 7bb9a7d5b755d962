"""Does the runner understand T5's files of kinds that are not here, and do they reproduce?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.golden.__main__ import run
from tests.golden.fixture import read
from tests.golden.names import methods_of
from tests.golden.test_golden import inputs_of
from tests.published import TASKS, record, record_training
from tests.published_t5 import PublishedT5, tensors_of

GOLDEN = Path(__file__).parent / "golden"
SMALL = {
    "model_type": "t5",
    "d_model": 24,
    "d_kv": 6,
    "num_heads": 3,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "vocab_size": 120,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "feed_forward_proj": "relu",
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "feat_dim": 10,
    "n_boxes": 36,
    "n_images": 2,
    "downsample": True,
}


@pytest.mark.parametrize("name", ["t5_plain", "t5_single_adapter"])
def test_the_formulas_written_down_here_are_the_recorded_ones(name):
    fixture = read(GOLDEN / f"{name}.safetensors")
    model = PublishedT5(fixture.weights, fixture.aliases, fixture.meta["config"])
    outputs = model.outputs(fixture.under("input"), "vqa")
    for key, value in fixture.under("output/vqa").items():
        torch.testing.assert_close(outputs[key], value, atol=5e-5, rtol=1e-4)
    ids = fixture.tensors["generate/vqa/greedy"]
    assert model.greedy(fixture.under("input"), "vqa", ids.shape[1]).tolist() == ids.tolist()


MARKS = {
    "full": ("",),
    "frozen": ("nothing else",),
    "bitfit": ("bias",),
    "adapter": ("_adapter.",),
    "adapter_and_norms": ("_adapter.", "layer_norm"),
    "lora": ("bias", "lora"),
    "prompt": ("prompt",),
}
VARIANTS = {
    "two_images": ("none", False, "full", {}, {"images": 2}),
    "two_images_7x7": ("none", False, "bitfit", {}, {"images": 2, "cells": 49}),
    "other_sizes": (
        "adapter",
        False,
        "adapter",
        {"d_kv": 8, "num_decoder_layers": 2, "n_boxes": 25, "num_layers": 3},
        {},
    ),
    "adapter_per_task": ("adapter", True, "adapter", {}, {}),
    "adapter_per_task_two_images": ("adapter", True, "adapter_and_norms", {}, {"images": 2}),
    "lora": ("lora", False, "lora", {}, {}),
    "lora_per_task": ("lora", True, "lora", {}, {"images": 2}),
    "prompt": ("prompt", False, "prompt", {}, {}),
    "prompt_per_task_two_images": ("prompt", True, "prompt", {}, {"images": 2}),
    "frozen": ("none", False, "frozen", {}, {"cells": 49}),
}


def trained_of(weights: dict, marks: tuple[str, ...]) -> list[str]:
    """Names that the source trains."""
    return [name for name in weights if "visual_embedding" in name or any(mark in name for mark in marks)]


@pytest.mark.parametrize("name", VARIANTS)
def test_files_of_kinds_that_are_not_here_are_understood(name, tmp_path):
    method, own, trained, sizes, given = VARIANTS[name]
    config = SMALL | sizes
    made = tensors_of(config, method, own)
    model = PublishedT5(made.weights, made.aliases, config, scale=2.0)
    path = tmp_path / f"{name}.safetensors"
    inputs = inputs_of(config, pad=0, **given)
    arguments = {"lora_alpha": 10, "tasks": ",".join(TASKS)}
    names = trained_of(made.weights, MARKS[trained])
    record(path, model, inputs, names, TASKS[:2] if own else TASKS[:1], method_args=arguments)
    found = methods_of(read(path))[0]
    assert found.name == (trained if method == "none" else method)
    report = run(path)
    assert report.failures == []
    assert report.worst < 5e-5
    if own:
        assert found.sharing == "per_task"
        norms = read(path).under("grad_norm")
        assert all(bool((norm == -1).any()) for norm in norms.values()), "some task's tensors must have no gradient"


def test_a_training_run_is_understood(tmp_path):
    made = tensors_of(SMALL, "adapter", False)
    path = tmp_path / "train_t5.safetensors"
    batches = [inputs_of(SMALL, pad=0, seed=seed) for seed in range(3)]
    model = PublishedT5(made.weights, made.aliases, SMALL)
    record_training(path, model, batches, trained_of(made.weights, MARKS["adapter"]))
    report = run(path)
    assert report.failures == []
    assert report.compared > 30
