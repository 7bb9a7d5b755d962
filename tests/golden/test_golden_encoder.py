"""Does the runner compare recorded image trunks, and fail where one was made otherwise?"""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.golden.__main__ import main, run
from tests.golden.fixture import NotUnderstood
from tests.published_clip import record_trunk


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "clip_modified_resnet.safetensors"
    record_trunk(path)
    return path


def changed(path, out, change, config=None) -> None:
    """A copy of a recorded file with other tensors."""
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["json"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    change(tensors)
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        out,
        {"json": json.dumps(meta | {"config": config or meta["config"]})},
    )


def test_a_trunk_recorded_by_the_formulas_reproduces(recorded, capsys):
    assert main([str(recorded)]) == 0
    assert capsys.readouterr().out.split()[-1] == "pass"
    report = run(recorded)
    assert report.compared == 5
    assert report.worst < 5e-5


def test_names_without_prefix_and_half_precision_weights_reproduce(tmp_path):
    record_trunk(tmp_path / "bare.safetensors", prefix="")
    halved = tmp_path / "half.safetensors"

    def half(tensors):
        for name, value in tensors.items():
            if name.startswith("weight/") and value.is_floating_point():
                tensors[name] = value.half()

    changed(tmp_path / "bare.safetensors", halved, half)
    assert run(halved).failures == []


@pytest.mark.parametrize(
    ("name", "alter"),
    [
        ("weight/visual.layer4.0.conv3.weight", lambda value: value * 1.01),
        ("input/images_uint8", lambda value: value.flip(-1)),
        ("output/features49", lambda value: value.unflatten(1, (7, 7)).transpose(1, 2).flatten(1, 2)),
        ("output/features36", lambda value: value.roll(1, 1)),
    ],
)
def test_a_trunk_recorded_otherwise_fails(recorded, tmp_path, name, alter):
    changed(recorded, tmp_path / "other.safetensors", lambda tensors: tensors.update({name: alter(tensors[name])}))
    assert run(tmp_path / "other.safetensors").failures


def test_what_is_not_known_is_said(recorded, tmp_path):
    changed(recorded, tmp_path / "a.safetensors", lambda tensors: tensors.update({"output/text": torch.ones(2)}))
    with pytest.raises(NotUnderstood, match="'text'"):
        run(tmp_path / "a.safetensors")
    changed(recorded, tmp_path / "b.safetensors", lambda _: None, {"layers": [1, 1, 1, 1], "width": 16})
    with pytest.raises(NotUnderstood, match="does not fit"):
        run(tmp_path / "b.safetensors")
