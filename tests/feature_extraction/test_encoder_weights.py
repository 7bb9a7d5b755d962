"""Weights of vision encoders: random, by tag, by path in every format, and errors where they do not fit."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from feature_extraction.encoder import load_encoder
from feature_extraction.encoders import weights
from feature_extraction.vision_encoder import load_vision_encoder
from multitask_vl.config.schema import VisionConfig
from multitask_vl.errors import InputError
from tests.drawn_images import DIM, TINY, tiny_weights


@pytest.fixture
def vision(tmp_path) -> VisionConfig:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    return VisionConfig(model=str(tmp_path / "tiny.json"), image_size=64)


def load(vision: VisionConfig, **changes):
    return load_vision_encoder(vision.model_copy(update=changes))


def grid_weights(tensors: dict) -> dict:
    """Return the tensors that grid features need, by their names in the vision encoder."""
    return {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.") and "attnpool" not in k}


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor.to(found[name].dtype), rtol=0, atol=0)


def test_random_weights_equal_open_clip(vision, tmp_path):
    open_clip.add_model_config(tmp_path / "tiny.json")
    torch.manual_seed(3)
    expected = grid_weights(open_clip.create_model("tiny").state_dict())
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    encoder = load(vision, weights_seed=3)
    assert (torch.random.get_rng_state() == before).all(), "the caller's random state is unchanged"
    assert_equal(encoder.module.visual.state_dict(), expected)
    assert (encoder.name, encoder.tag) == ("tiny", "random:3")
    assert encoder.sha256 == load(vision, weights_seed=3).sha256 != load(vision).sha256
    assert not encoder.module.visual.training
    assert not any(parameter.requires_grad for parameter in encoder.module.visual.parameters())


# ---- formats of weights files


def safetensors_file(path):
    save_file(tiny_weights(), path / "w.safetensors")
    return path / "w.safetensors"


def half_precision_file(path):
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in tiny_weights().items()}
    save_file(tensors, path / "w.safetensors")
    return path / "w.safetensors"


def state_dict_file(path):
    torch.save(tiny_weights(), path / "w.pt")
    return path / "w.pt"


def training_checkpoint(path):
    state_dict = {f"module.{name}": tensor for name, tensor in tiny_weights().items()}
    torch.save({"epoch": 3, "state_dict": state_dict}, path / "w.pt")
    return path / "w.pt"


def vision_only_file(path):
    torch.save(grid_weights(tiny_weights()), path / "w.bin")
    return path / "w.bin"


def torchscript_archive(path):
    model = open_clip.CLIP(**TINY)
    model.load_state_dict(tiny_weights())
    example = (torch.zeros(1, 3, 64, 64), torch.zeros(1, 16, dtype=torch.long))
    torch.jit.trace(model.eval(), example, check_trace=False).save(path / "w.pt")
    return path / "w.pt"


FORMATS = [
    safetensors_file, half_precision_file, state_dict_file, training_checkpoint, vision_only_file, torchscript_archive
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("write", FORMATS)
def test_weights_file_formats_are_read(vision, tmp_path, write):
    path = write(tmp_path)
    encoder = load(vision, pretrained=str(path))
    expected = grid_weights(tiny_weights())
    if write is half_precision_file:
        expected = {name: t.half() if t.is_floating_point() else t for name, t in expected.items()}
    assert_equal(encoder.module.visual.state_dict(), expected)
    assert encoder.tag == path.name
    assert all(parameter.dtype == torch.float32 for parameter in encoder.module.visual.parameters())


def another_model(path):
    tensors = tiny_weights()
    tensors["visual.layer2.1.conv1.weight"] = torch.zeros(1)
    tensors["visual.conv1.weight"] = torch.zeros(4, 3, 5, 5)
    del tensors["visual.bn1.bias"]
    torch.save(tensors, path / "w.pt")
    return r"3 tensors differ \(first: lacks bn1.bias\)"


def text(path):
    (path / "w.pt").write_text("not weights")
    return "cannot be read as weights"


def broken_safetensors(path):
    (path / "w.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0brok")
    return "cannot be read as weights"


def pickled_function(path):
    torch.save(tiny_weights, path / "w.pt")
    return "cannot be read as weights"


def tensor_list(path):
    torch.save([torch.zeros(2)], path / "w.pt")
    return "not a state dict"


def text_that_starts_like_a_pickle(path):
    (path / "w.pt").write_text("hello world")
    return r"cannot be read as weights \(KeyError: 101\)"


def numbered_tensors(path):
    torch.save({0: torch.zeros(2)}, path / "w.pt")
    return "not a state dict"


UNSUITABLE = [
    another_model, text, broken_safetensors, pickled_function, tensor_list, text_that_starts_like_a_pickle,
    numbered_tensors,
]  # fmt: skip


@pytest.mark.parametrize("write", UNSUITABLE)
def test_unsuitable_weights_file_is_an_error(vision, tmp_path, write):
    message = write(tmp_path)
    (path,) = tmp_path.glob("w.*")
    with pytest.raises(InputError, match=message):
        load(vision, pretrained=str(path))


def test_weights_files_are_not_unpickled(vision, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(weights.torch, "load", lambda *args, **options: calls.append(options) or tiny_weights())
    (tmp_path / "w.pt").write_bytes(b"")
    load(vision, pretrained=str(tmp_path / "w.pt"))
    assert [options["weights_only"] for options in calls] == [True]


# ---- tags and model configurations


def test_tag_is_downloaded_and_recorded(tmp_path, monkeypatch):
    model_config = {**open_clip.get_model_config("RN50"), **TINY}
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: model_config)
    downloaded = state_dict_file(tmp_path)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: str(downloaded))
    encoder = load_vision_encoder(VisionConfig(model="RN50", pretrained="openai"))
    assert (encoder.name, encoder.tag) == ("RN50", "openai")
    assert_equal(encoder.module.visual.state_dict(), grid_weights(tiny_weights()))

    def no_network(tag):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", no_network)
    with pytest.raises(InputError, match=r"'openai' of RN50 cannot be downloaded .*no route.*vision\.pretrained=PATH"):
        load_vision_encoder(VisionConfig(model="RN50", pretrained="openai"))


def test_model_json_may_state_mean_and_std(tmp_path):
    content = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
    (tmp_path / "custom.json").write_text(json.dumps(content))
    manifest = load_encoder(VisionConfig(model=str(tmp_path / "custom.json"), image_size=96), device="cpu").manifest
    assert (manifest.encoder, manifest.mean, manifest.std) == ("custom", (0.5,) * 3, (0.25,) * 3)
    assert (manifest.grid, manifest.dim) == ((3, 3), DIM)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"model": "RN11"}, r"'RN11' is not an open_clip model; did you mean .*RN101"),
        ({"model": "zzz"}, r"not an open_clip model\. A custom model is the path of a \.json"),
        ({"model": "ViT-B-32", "image_size": 100}, r"100 is not a multiple of 32.*try 96"),
        ({"model": "tim:resnet18"}, r"'tim:resnet18' is not an open_clip model.*\(libraries: open_clip, timm\)"),
        ({"model": "timm:efficientnet_lit0"}, r"not a timm model; did you mean .*efficientnet_lite0"),
        ({"model": "timm:resnet18", "pretrained": "a1"}, r"neither a file nor a weights tag of resnet18 .*a1_in1k"),
        ({"output": "pooled", "image_size": 96}, r"the attention pool of .* accepts 64 pixels only, not 96"),
        ({"pool": (3, 2)}, r"vision.pool: 3x2 cells cannot be pooled from a grid of 2x2"),
        ({"model": "gone.json"}, r"gone\.json is not an open_clip model configuration \(FileNotFoundError"),
        ({"pretrained": "openai"}, r"'openai' is neither a file nor a weights tag of .*tiny\.json \(tags: none\)"),
        ({"model": "RN101", "pretrained": "opanai"}, r"tag of RN101 \(tags: openai, yfcc15m\)"),
        ({"image_size": 100}, r"vision.image_size: 100 is not a multiple of 32.*try 96"),
    ],
)
def test_unknown_or_unsuitable_model_is_an_error(vision, update, message):
    with pytest.raises(InputError, match=message):
        load_encoder(vision.model_copy(update=update), device="cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "is not an open_clip model configuration"),
        ("{", "is not an open_clip model configuration"),
        ('{"vision_cfg": 3, "embed_dim": 4}', "is not an open_clip model configuration"),
        ('{"vision_cfg": {"layers": [1, 1, 1, 1], "width": "wide"}, "embed_dim": 4}', "cannot be built"),
    ],
)
def test_invalid_model_json_is_an_error(tmp_path, content, message):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_vision_encoder(VisionConfig(model=str(tmp_path / "bad.json")))
