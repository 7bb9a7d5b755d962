"""Is an adapter that does not fit refused, with everything that is wrong, before anything is changed?"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.adapter_io import load_adapter, save_adapter
from multitask_vl.models.build import build_model
from tests.tiny_models import tiny_config, tiny_model


@pytest.fixture
def folder(tmp_path):
    config = tiny_config("adapter", sharing="per_task")
    save_adapter(build_model(config), tmp_path, config)
    return tmp_path


def refused(folder, model, *parts):
    before = {name: value.clone() for name, value in model.trainable().items()}
    with pytest.raises(InputError) as caught:
        load_adapter(model, folder)
    for part in parts:
        assert part in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.trainable().items())
    return caught.value.problems


def test_another_method_and_rank(folder):
    problems = refused(folder, tiny_model("adapter", rank=5), "method.0.rank is 16 there and 5", "sharing")
    assert len(problems) == 2


def test_another_backbone(folder):
    config = tiny_config("adapter", sharing="per_task").model_copy(update={"seed": 8})
    refused(folder, build_model(config), "backbone.weights", "another backbone")


def test_another_task_list(folder):
    config = tiny_config("adapter", sharing="per_task")
    config = config.model_copy(update={"tasks": {"vqa": config.tasks["vqa"]}})
    refused(folder, build_model(config), "tasks", "another list of tasks")


def test_other_routing(folder):
    model = tiny_model("adapter", {"function": "mul"}, sharing="per_task")
    refused(folder, model, 'routing.function is "none" there and "mul"')


def test_tensors_missing_unknown_and_of_another_shape(folder):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    first, second = list(tensors)[:2]
    tensors["surprise"] = tensors.pop(first)
    tensors[second] = torch.zeros(3, 3, 3)
    save_file(tensors, file)
    model = tiny_model("adapter", sharing="per_task")
    refused(folder, model, f"1 tensors are missing (first: {first})", "surprise", f"{second} is [3, 3, 3] there")


def test_no_adapter_half_an_adapter_and_a_broken_one(folder, tmp_path):
    model = tiny_model("adapter", sharing="per_task")
    refused(tmp_path / "nowhere", model, "no adapter here")
    tensors = folder / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    refused(folder, model, "cannot be read")
    tensors.unlink()
    refused(folder, model, "not written to its end")
    record = folder / "adapter_config.json"
    record.write_text(record.read_text().replace('"format_version": 2', '"format_version": 9'))
    refused(folder, model, "format_version is 9")
    record.write_text("{")
    refused(folder, model, "not readable as JSON")


def test_the_card_says_what_it_is(folder):
    card = (folder / "README.md").read_text()
    assert "adapter for vqa, nlvr2" in card
    assert "| visual_embedding |" in card
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
