"""Are the trunk's weights the right ones: by seed, by tag, by path in every form, and refused where they do not fit?"""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from feature_extraction.encoder import load_encoder
from feature_extraction.encoders import weights
from feature_extraction.vision_encoder import load_trunk
from multitask_vl.config.schema import ClipConfig
from multitask_vl.errors import InputError
from tests.drawn_images import DIM, TINY, tiny_weights


@pytest.fixture
def clip(tmp_path) -> ClipConfig:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    return ClipConfig(model=str(tmp_path / "tiny.json"), image_size=64)


def trunk_of(tensors: dict) -> dict:
    return {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.") and "attnpool" not in k}


def assert_same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor.to(found[name].dtype), rtol=0, atol=0)


def test_random_weights_are_those_open_clip_draws(clip, tmp_path):
    open_clip.add_model_config(tmp_path / "tiny.json")
    torch.manual_seed(3)
    wanted = trunk_of(open_clip.create_model("tiny").state_dict())
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    trunk = load_trunk(clip.model_copy(update={"weights_seed": 3}))
    assert (torch.random.get_rng_state() == before).all(), "the caller's generator is left alone"
    assert_same(trunk.module.visual.state_dict(), wanted)
    assert (trunk.name, trunk.tag) == ("tiny", "random:3")
    again, other = load_trunk(clip.model_copy(update={"weights_seed": 3})), load_trunk(clip)
    assert trunk.sha256 == again.sha256 != other.sha256
    assert not trunk.module.visual.training
    assert not any(one.requires_grad for one in trunk.module.visual.parameters())


def _safetensors(path):
    save_file(tiny_weights(), path / "w.safetensors")
    return path / "w.safetensors"


def _half(path):
    save_file(
        {name: one.half() if one.is_floating_point() else one for name, one in tiny_weights().items()},
        path / "w.safetensors",
    )
    return path / "w.safetensors"


def _state_dict(path):
    torch.save(tiny_weights(), path / "w.pt")
    return path / "w.pt"


def _training_checkpoint(path):
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": one for name, one in tiny_weights().items()}}, path / "w.pt"
    )
    return path / "w.pt"


def _tower_alone(path):
    torch.save(trunk_of(tiny_weights()), path / "w.bin")
    return path / "w.bin"


def _torchscript(path):
    model = open_clip.CLIP(**TINY)
    model.load_state_dict(tiny_weights())
    example = (torch.zeros(1, 3, 64, 64), torch.zeros(1, 16, dtype=torch.long))
    torch.jit.trace(model.eval(), example, check_trace=False).save(path / "w.pt")
    return path / "w.pt"


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("form", [_safetensors, _half, _state_dict, _training_checkpoint, _tower_alone, _torchscript])
def test_a_weights_file_of_any_form_is_read(clip, tmp_path, form):
    path = form(tmp_path)
    trunk = load_trunk(clip.model_copy(update={"pretrained": str(path)}))
    wanted = trunk_of(tiny_weights())
    if form is _half:
        wanted = {name: one.half() if one.is_floating_point() else one for name, one in wanted.items()}
    assert_same(trunk.module.visual.state_dict(), wanted)
    assert trunk.tag == path.name
    assert all(one.dtype == torch.float32 for one in trunk.module.visual.parameters())


def _of_another_model(path):
    tensors = tiny_weights()
    tensors["visual.layer2.1.conv1.weight"] = torch.zeros(1)
    tensors["visual.conv1.weight"] = torch.zeros(4, 3, 5, 5)
    del tensors["visual.bn1.bias"]
    torch.save(tensors, path / "w.pt")
    return r"3 tensors differ \(first: it lacks bn1.bias\)"


def _text(path):
    (path / "w.pt").write_text("not weights")
    return "cannot be read as weights"


def _broken_safetensors(path):
    (path / "w.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0brok")
    return "cannot be read as weights"


def _code(path):
    torch.save(tiny_weights, path / "w.pt")
    return "cannot be read as weights"


def _list(path):
    torch.save([torch.zeros(2)], path / "w.pt")
    return "not a state dict"


def _read_as_a_pickle(path):
    (path / "w.pt").write_text("hello world")
    return r"cannot be read as weights \(KeyError: 101\)"


def _numbered(path):
    torch.save({0: torch.zeros(2)}, path / "w.pt")
    return "not a state dict"


@pytest.mark.parametrize(
    "content", [_of_another_model, _text, _broken_safetensors, _code, _list, _read_as_a_pickle, _numbered]
)
def test_a_file_that_holds_no_fitting_weights_is_refused(clip, tmp_path, content):
    said = content(tmp_path)
    (path,) = tmp_path.glob("w.*")
    with pytest.raises(InputError, match=said):
        load_trunk(clip.model_copy(update={"pretrained": str(path)}))


def test_a_tag_is_fetched_and_recorded(tmp_path, monkeypatch):
    described = {**open_clip.get_model_config("RN50"), **TINY}
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: described)
    fetched = _state_dict(tmp_path)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: str(fetched))
    trunk = load_trunk(ClipConfig(model="RN50", pretrained="openai"))
    assert (trunk.name, trunk.tag) == ("RN50", "openai")
    assert_same(trunk.module.visual.state_dict(), trunk_of(tiny_weights()))

    def no_network(tag):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", no_network)
    with pytest.raises(InputError, match=r"'openai' of RN50 cannot be fetched .*no route.*clip\.pretrained=PATH"):
        load_trunk(ClipConfig(model="RN50", pretrained="openai"))


def test_a_file_beside_the_model_may_give_mean_and_std(tmp_path):
    described = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
    (tmp_path / "own.json").write_text(json.dumps(described))
    manifest = load_encoder(ClipConfig(model=str(tmp_path / "own.json"), image_size=96), device="cpu").manifest
    assert (manifest.encoder, manifest.mean, manifest.std) == ("own", (0.5,) * 3, (0.25,) * 3)
    assert (manifest.grid, manifest.dim) == ((3, 3), DIM)


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"model": "RN11"}, r"'RN11' is no open_clip model; did you mean .*RN101"),
        ({"model": "zzz"}, r"no open_clip model\. A model of your own is the path of a \.json"),
        ({"model": "ViT-B-32", "image_size": 100}, r"100 is not a multiple of 32.*try 96"),
        ({"model": "tim:resnet18"}, r"'tim:resnet18' is no open_clip model.*\(open_clip, timm\)"),
        ({"model": "timm:efficientnet_lit0"}, r"no timm model; did you mean .*efficientnet_lite0"),
        ({"model": "timm:resnet18", "pretrained": "a1"}, r"neither a file nor a weights tag of resnet18 .*a1_in1k"),
        ({"layer": "pooled", "image_size": 96}, r"the attention pool of .* sees 64 pixels only, not 96"),
        ({"pool": (3, 2)}, r"clip.pool: 3x2 cells cannot be pooled from a grid of 2x2"),
        ({"model": "gone.json"}, r"gone\.json is no open_clip model configuration \(FileNotFoundError"),
        ({"pretrained": "openai"}, r"'openai' is neither a file nor a weights tag of .*tiny\.json \(tags: none\)"),
        ({"model": "RN101", "pretrained": "opanai"}, r"tag of RN101 \(tags: openai, yfcc15m\)"),
        ({"image_size": 100}, r"clip.image_size: 100 is not a multiple of 32.*try 96"),
    ],
)
def test_a_trunk_that_cannot_be_had_is_told(clip, update, said):
    with pytest.raises(InputError, match=said):
        load_encoder(clip.model_copy(update=update), device="cpu")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "is no open_clip model configuration"),
        ("{", "is no open_clip model configuration"),
        ('{"vision_cfg": 3, "embed_dim": 4}', "is no open_clip model configuration"),
        ('{"vision_cfg": {"layers": [1, 1, 1, 1], "width": "wide"}, "embed_dim": 4}', "no tower that can be built"),
    ],
)
def test_a_model_description_that_makes_no_sense_is_told(tmp_path, content, said):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(InputError, match=said):
        load_trunk(ClipConfig(model=str(tmp_path / "bad.json")))


def test_no_file_is_unpickled(clip, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(weights.torch, "load", lambda *args, **options: asked.append(options) or tiny_weights())
    (tmp_path / "w.pt").write_bytes(b"")
    load_trunk(clip.model_copy(update={"pretrained": str(tmp_path / "w.pt")}))
    assert [options["weights_only"] for options in asked] == [True]
