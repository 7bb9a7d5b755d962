"""Does every kind of encoder give what its own library gives: grids, patches, pooled vectors, pooled and folded?"""

import json
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from feature_extraction import encoder as encoder_file
from feature_extraction.encoder import load_encoder
from feature_extraction.encoders.fold_batchnorm import fold_batch_norms
from feature_extraction.encoders.timm import as_cells
from feature_extraction.extract import extract
from feature_extraction.vision_encoder import ENCODERS, Trunk, load_trunk
from multitask_vl.config.schema import ClipConfig, VisualConfig
from multitask_vl.data.store.feature_store import FeatureStore, check_manifest
from multitask_vl.errors import InputError
from multitask_vl.models.visual import VisualEmbedding
from tests.drawn_images import SIDE, TINY, picture, tiny_config, tiny_weights
from tests.store_fixtures import MANIFEST

VIT = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": TINY["text_cfg"],
}
INNER = {**VIT, "vision_cfg": {"timm_model_name": "test_efficientnet", "image_size": 64, "timm_pool": "avg"}}
PIXELS = torch.stack([torch.from_numpy(np.array(picture(n, SIDE, SIDE))).permute(2, 0, 1) for n in range(3)])


def normalised(mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD) -> torch.Tensor:
    """The pixels as a model wants them."""
    return (PIXELS.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.fixture
def described(tmp_path):
    """Writes a model's description and lively weights; gives its configuration and open_clip's own tower."""

    def write(what: dict, **changes):
        (tmp_path / "own.json").write_text(json.dumps(what))
        torch.manual_seed(1)
        model = open_clip.CLIP(**what)
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim < 2:
                tensor.add_(0.1 * torch.rand_like(tensor))
        save_file(model.state_dict(), tmp_path / "own.safetensors")
        clip = ClipConfig(model=str(tmp_path / "own.json"), pretrained=str(tmp_path / "own.safetensors"), image_size=64)
        return clip.model_copy(update=changes), model.visual.eval()

    return write


def cells(clip: ClipConfig) -> torch.Tensor:
    """What ours gives in float32, [B, rows, columns, D]."""
    with torch.inference_mode():
        return load_encoder(clip, device="cpu").trunk(PIXELS)


# ---- open_clip's towers


def test_patches_are_the_tokens_of_the_tower(described):
    clip, visual = described(VIT)
    visual.output_tokens = True
    with torch.inference_mode():
        _, tokens = visual(normalised())
    found = cells(clip)
    assert found.shape == (3, 4, 4, 32)
    torch.testing.assert_close(found.flatten(1, 2), tokens, atol=1e-5, rtol=0)
    manifest = load_encoder(clip, device="cpu").manifest
    assert (manifest.layer, manifest.activation, manifest.grid, manifest.dim) == ("ln_post", "gelu", (4, 4), 32)


@pytest.mark.parametrize("what", [TINY, VIT, INNER], ids=["resnet", "transformer", "timm"])
def test_a_pooled_vector_is_the_tower_s_own(described, what):
    clip, visual = described(what, layer="pooled")
    with torch.inference_mode():
        expected = visual(normalised())
    found = cells(clip)
    assert found.shape == (3, 1, 1, what["embed_dim"])
    torch.testing.assert_close(found[:, 0, 0], expected, atol=1e-5, rtol=1e-5)
    manifest = load_encoder(clip, device="cpu").manifest
    assert (manifest.layer, manifest.cells) == ("pooled", 1)


def test_a_timm_trunk_inside_a_tower_gives_its_grid(described):
    clip, visual = described(INNER)
    with torch.inference_mode():
        expected = visual.trunk.forward_features(normalised())
    torch.testing.assert_close(cells(clip), expected.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-5)


def test_a_transformer_sees_another_square_through_resized_positions(described):
    clip, visual = described(VIT)
    assert load_encoder(clip.model_copy(update={"image_size": 96}), device="cpu").manifest.grid == (6, 6)
    larger = load_trunk(clip.model_copy(update={"image_size": 96})).module.visual
    assert larger.positional_embedding.shape == (37, 32)
    torch.testing.assert_close(larger.positional_embedding[0], visual.positional_embedding[0])
    torch.testing.assert_close(
        larger.positional_embedding[1:].mean(0), visual.positional_embedding[1:].mean(0), atol=0.05, rtol=0
    )


def test_a_larger_square_gives_a_resnet_a_larger_grid_without_its_attention_pool(described):
    clip, _ = described(TINY, image_size=96)
    encoder = load_encoder(clip, device="cpu")
    assert encoder.manifest.grid == (3, 3)
    assert encoder.trunk.trunk.visual.attnpool is None


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_openai_s_archive_means_quick_gelu(described, tmp_path):
    clip, _ = described(VIT)
    model = open_clip.CLIP(**VIT, quick_gelu=True)
    example = (torch.zeros(1, 3, 64, 64), torch.zeros(1, 16, dtype=torch.long))
    torch.jit.trace(model.eval(), example, check_trace=False).save(tmp_path / "own.pt")
    assert load_trunk(clip.model_copy(update={"pretrained": str(tmp_path / "own.pt")})).activation == "quickgelu"


# ---- timm's trunks


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_convnext", "resnet10t"])
def test_a_timm_trunk_gives_its_features(tmp_path, name):
    torch.manual_seed(2)
    model = timm.create_model(name, num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    clip = ClipConfig(model=f"timm:{name}", pretrained=str(tmp_path / "w.pth"), image_size=64)
    if hasattr(model, "set_input_size"):
        model.set_input_size(64)
    expected = timm.data.resolve_model_data_config(model)
    with torch.inference_mode():
        features = model.forward_features(normalised(expected["mean"], expected["std"]))
        pooled = model.forward_head(features, pre_logits=True)
    found = cells(clip)
    torch.testing.assert_close(found, as_cells(model, features), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        cells(clip.model_copy(update={"layer": "pooled"}))[:, 0, 0], pooled, atol=1e-5, rtol=1e-4
    )
    manifest = load_encoder(clip, device="cpu").manifest
    assert (manifest.encoder, manifest.weights_tag) == (f"timm:{name}", "w.pth")
    assert (manifest.mean, manifest.std) == (expected["mean"], expected["std"])
    assert len(manifest.weights_sha256) == 64
    assert manifest.activation


def test_mean_and_std_may_be_set():
    clip = ClipConfig(model="timm:test_efficientnet", image_size=64, mean=(0.5, 0.4, 0.3), std=(0.5, 0.5, 0.5))
    manifest = load_encoder(clip, device="cpu").manifest
    assert (manifest.mean, manifest.std, manifest.weights_tag) == ((0.5, 0.4, 0.3), (0.5, 0.5, 0.5), "random:0")
    visual = VisualConfig(feature_dim=manifest.dim, pool=None)
    assert check_manifest(manifest, clip, visual) == []
    (said,) = check_manifest(manifest, clip.model_copy(update={"mean": (0.5, 0.5, 0.5)}), visual)
    assert said.startswith("clip.mean: the features were made with (0.5, 0.4, 0.3)")


def test_forms_of_features_become_cells_or_are_refused():
    there = torch.arange(2 * 4 * 4 * 3.0).reshape(2, 4, 4, 3)
    assert as_cells(SimpleNamespace(output_fmt="NHWC"), there) is there
    torch.testing.assert_close(as_cells(SimpleNamespace(), there.permute(0, 3, 1, 2)), there)
    tokens = torch.cat([torch.full((2, 1, 3), -1.0), there.flatten(1, 2)], 1)
    torch.testing.assert_close(as_cells(SimpleNamespace(num_prefix_tokens=1), tokens), there)
    for other in (there[:, :3].flatten(1, 2), there[:, 0, 0]):
        with pytest.raises(InputError, match="no square grid"):
            as_cells(SimpleNamespace(), other)


def test_another_kind_is_one_registered_function(monkeypatch):
    monkeypatch.setattr(ENCODERS, "_entries", dict(ENCODERS._entries))

    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, images):
            return self.scale * torch.nn.functional.avg_pool2d(images, 32).permute(0, 2, 3, 1)

    @ENCODERS.register("mean")
    def mean(clip):
        return Trunk(Mean(), clip.model, "none", "0" * 64, (0.0,) * 3, (1.0,) * 3, "mean", None)

    found = cells(ClipConfig(model="mean:rgb", image_size=64))
    torch.testing.assert_close(found[0, 1, 1], PIXELS[0, :, 32:, 32:].float().mean((1, 2)) / 255)


# ---- folding, pooling, compiling


def test_folded_batch_norms_give_what_they_gave(described):
    _, visual = described(TINY)
    lively = {k.removeprefix("visual."): v for k, v in tiny_weights().items() if k.startswith("visual.")}
    visual.load_state_dict(lively)
    with torch.inference_mode():
        exact = visual.double().forward_intermediates(normalised().double(), intermediates_only=True)[
            "image_intermediates"
        ][-1]
        visual.float()
        plain = visual.forward_intermediates(normalised(), intermediates_only=True)["image_intermediates"][-1]
        fold_batch_norms(visual)
        assert not [one for one in visual.modules() if isinstance(one, torch.nn.BatchNorm2d)]
        folded = visual.forward_intermediates(normalised(), intermediates_only=True)["image_intermediates"][-1]
    assert exact.std() > 0.1
    assert (folded - exact).abs().max() < 2 * (plain - exact).abs().max() + 1e-7
    torch.testing.assert_close(folded, plain, atol=1e-5, rtol=0)


def test_norms_with_an_activation_inside_are_left_alone():
    model = timm.create_model("test_efficientnet").eval()
    before = [type(one) for one in model.modules()]
    assert [type(one) for one in fold_batch_norms(model).modules()] == before


def test_a_store_pooled_when_written_is_what_the_model_would_pool(tmp_path):
    whole, pooled = tiny_config(tmp_path / "a"), tiny_config(tmp_path / "b")
    wide = {"image_size": 96}
    whole = whole.model_copy(update={"clip": whole.clip.model_copy(update=wide)})
    pooled = pooled.model_copy(update={"clip": pooled.clip.model_copy(update={**wide, "pool": (2, 2)})})
    manifest = extract(pooled, "cpu").manifest
    assert (manifest.grid, manifest.pool) == ((2, 2), (2, 2))
    extract(whole, "cpu")
    one, other = FeatureStore(tmp_path / "a" / "features.h5"), FeatureStore(tmp_path / "b" / "features.h5")
    embedding = VisualEmbedding(VisualConfig(feature_dim=256, pool=(2, 2)), 8, torch.nn.LayerNorm, None, 4)
    big, small = (torch.tensor(store.get_many(one.keys())).float()[:, None] for store in (one, other))
    assert big.shape[2] == 9
    torch.testing.assert_close(embedding.pool(big), small, atol=0, rtol=0)
    torch.testing.assert_close(embedding.pool(small), small, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("stored", "asked", "visual", "fine"),
    [
        (None, None, (6, 6), True),
        ((6, 6), (6, 6), (6, 6), True),
        ((6, 6), None, (6, 6), True),
        (None, (6, 6), (6, 6), True),
        ((6, 6), (6, 6), None, True),
        ((6, 6), None, None, False),
        (None, (6, 6), None, False),
        ((5, 5), (6, 6), (5, 5), False),
        ((6, 6), None, (3, 3), False),
    ],
)
def test_pooling_twice_to_one_grid_agrees_and_to_two_does_not(stored, asked, visual, fine):
    manifest = MANIFEST.model_copy(update={"pool": stored, "grid": stored or (7, 7), "dim": 2048})
    said = check_manifest(manifest, ClipConfig(pool=asked), VisualConfig(pool=visual))
    assert [one.partition(":")[0] for one in said] == ([] if fine else ["clip.pool"])


def test_compiling_is_asked_for_and_changes_nothing_else(described, monkeypatch):
    clip, _ = described(TINY)
    asked = []
    monkeypatch.setattr(encoder_file.torch, "compile", lambda module: asked.append(module) or module)
    plain = load_encoder(clip, device="cpu")(PIXELS)
    assert asked == []
    np.testing.assert_array_equal(load_encoder(clip, device="cpu", compiled=True)(PIXELS), plain)
    assert len(asked) == 1
