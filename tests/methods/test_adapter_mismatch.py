"""Adapters that do not match the model are rejected with all problems, before any weight changes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.adapter_io import load_adapter, save_adapter
from multitask_vl.models.build import build_model
from tests.tiny_models import tiny_config, tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved adapter; tests that change its files copy it."""
    folder = tmp_path_factory.mktemp("adapter")
    config = tiny_config("adapter", sharing="per_task")
    save_adapter(build_model(config), folder, config)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def check_rejected(folder, model, *parts):
    before = {name: value.clone() for name, value in model.trainable_parameters().items()}
    with pytest.raises(InputError) as caught:
        load_adapter(model, folder)
    for part in parts:
        assert part in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.trainable_parameters().items())
    return caught.value.problems


def test_adapter_of_another_method_or_rank(saved):
    problems = check_rejected(saved, tiny_model("adapter", rank=5), "method.0.rank is 16 in the adapter", "sharing")
    assert len(problems) == 2


def test_adapter_of_another_backbone(saved):
    config = tiny_config("adapter", sharing="per_task").model_copy(update={"seed": 8})
    check_rejected(saved, build_model(config), "backbone.weights", "another backbone")


def test_adapter_of_other_tasks(saved):
    config = tiny_config("adapter", sharing="per_task")
    config = config.model_copy(update={"tasks": {"vqa": config.tasks["vqa"]}})
    check_rejected(saved, build_model(config), "tasks", "another list of tasks")


def test_adapter_of_other_routing(saved):
    model = tiny_model("adapter", {"function": "mul"}, sharing="per_task")
    check_rejected(saved, model, 'routing.function is "none" in the adapter and "mul"')


def test_adapter_with_missing_unknown_and_reshaped_tensors(copy):
    file = copy / "adapter_model.safetensors"
    tensors = load_file(file)
    first, second = list(tensors)[:2]
    tensors["surprise"] = tensors.pop(first)
    tensors[second] = torch.zeros(3, 3, 3)
    save_file(tensors, file)
    model = tiny_model("adapter", sharing="per_task")
    check_rejected(copy, model, f"1 tensors are missing (first: {first})", "surprise", f"{second} has shape [3, 3, 3]")


def test_adapter_missing_incomplete_or_corrupt(copy, tmp_path):
    model = tiny_model("adapter", sharing="per_task")
    check_rejected(tmp_path / "nowhere", model, "no adapter found")
    tensors = copy / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    check_rejected(copy, model, "cannot be read")
    tensors.unlink()
    check_rejected(copy, model, "the adapter is incomplete")
    record = copy / "adapter_config.json"
    record.write_text(record.read_text().replace('"format_version": 2', '"format_version": 9'))
    check_rejected(copy, model, "format_version is 9")
    record.write_text("{")
    check_rejected(copy, model, "JSON")


def test_card_describes_the_adapter(saved):
    card = (saved / "README.md").read_text()
    assert "adapter for vqa, nlvr2" in card
    assert "| visual_embedding |" in card
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert sorted(path.name for path in saved.iterdir()) == names
