"""Vision encoders equal their libraries: grids, patches, pooled vectors, max-pooling and folded batch norms."""

import json
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from feature_extraction import encoder as encoder_module
from feature_extraction.encoder import load_encoder
from feature_extraction.encoders.fold_batchnorm import fold_batch_norms
from feature_extraction.encoders.timm import to_grid
from feature_extraction.extract import extract
from feature_extraction.vision_encoder import ENCODERS, VisionEncoder, load_vision_encoder
from multitask_vl.config.schema import VisionConfig, VisualConfig
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.manifest import check_manifest
from multitask_vl.errors import InputError
from multitask_vl.models.visual import VisualEmbedding
from tests.drawn_images import SIDE, TINY, random_image, tiny_config, tiny_weights
from tests.store_fixtures import MANIFEST

VIT = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": TINY["text_cfg"],
}
TIMM = {**VIT, "vision_cfg": {"timm_model_name": "test_efficientnet", "image_size": 64, "timm_pool": "avg"}}
PIXELS = torch.stack([torch.from_numpy(np.array(random_image(n, SIDE, SIDE))).permute(2, 0, 1) for n in range(3)])


def normalized(mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD) -> torch.Tensor:
    """Return `PIXELS` as a model expects them."""
    return (PIXELS.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.fixture
def write_model(tmp_path):
    """Function that writes a model's JSON and perturbed weights; returns our configuration and open_clip's encoder."""

    def write(content: dict, **changes):
        json_path, weights_path = tmp_path / "custom.json", tmp_path / "custom.safetensors"
        json_path.write_text(json.dumps(content))
        torch.manual_seed(1)
        model = open_clip.CLIP(**content)
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim < 2:
                tensor.add_(0.1 * torch.rand_like(tensor))
        save_file(model.state_dict(), weights_path)
        vision = VisionConfig(model=str(json_path), pretrained=str(weights_path), image_size=64)
        return vision.model_copy(update=changes), model.visual.eval()

    return write


def encode(vision: VisionConfig) -> tuple[torch.Tensor, dict]:
    """Return our features of `PIXELS` in float32 [B, rows, columns, D], and the manifest."""
    encoder = load_encoder(vision, device="cpu")
    with torch.inference_mode():
        return encoder.model(PIXELS), encoder.manifest


# ---- open_clip


def test_vit_grid_equals_patch_tokens(write_model):
    vision, visual = write_model(VIT)
    visual.output_tokens = True
    with torch.inference_mode():
        _, tokens = visual(normalized())
    grid, manifest = encode(vision)
    assert grid.shape == (3, 4, 4, 32)
    torch.testing.assert_close(grid.flatten(1, 2), tokens, atol=1e-5, rtol=0)
    assert (manifest.layer, manifest.activation, manifest.grid, manifest.dim) == ("ln_post", "gelu", (4, 4), 32)


@pytest.mark.parametrize("content", [TINY, VIT, TIMM], ids=["resnet", "transformer", "timm"])
def test_pooled_output_equals_open_clip(write_model, content):
    vision, visual = write_model(content, output="pooled")
    with torch.inference_mode():
        expected = visual(normalized())
    pooled, manifest = encode(vision)
    assert pooled.shape == (3, 1, 1, content["embed_dim"])
    torch.testing.assert_close(pooled[:, 0, 0], expected, atol=1e-5, rtol=1e-5)
    assert (manifest.layer, manifest.cells) == ("pooled", 1)


def test_timm_model_inside_open_clip_gives_its_grid(write_model):
    vision, visual = write_model(TIMM)
    with torch.inference_mode():
        expected = visual.trunk.forward_features(normalized())
    torch.testing.assert_close(encode(vision)[0], expected.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-5)


def test_vit_resizes_position_embeddings(write_model):
    vision, visual = write_model(VIT, image_size=96)
    assert load_encoder(vision, device="cpu").manifest.grid == (6, 6)
    larger = load_vision_encoder(vision).module.visual.positional_embedding
    assert larger.shape == (37, 32)
    torch.testing.assert_close(larger[0], visual.positional_embedding[0])
    torch.testing.assert_close(larger[1:].mean(0), visual.positional_embedding[1:].mean(0), atol=0.05, rtol=0)


def test_resnet_grid_grows_with_image_size(write_model):
    vision, _ = write_model(TINY, image_size=96)
    encoder = load_encoder(vision, device="cpu")
    assert encoder.manifest.grid == (3, 3)
    assert encoder.model.encoder.visual.attnpool is None


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_openai_archive_implies_quick_gelu(write_model, tmp_path):
    vision, _ = write_model(VIT)
    model = open_clip.CLIP(**VIT, quick_gelu=True)
    example = (torch.zeros(1, 3, 64, 64), torch.zeros(1, 16, dtype=torch.long))
    torch.jit.trace(model.eval(), example, check_trace=False).save(tmp_path / "custom.pt")
    vision = vision.model_copy(update={"pretrained": str(tmp_path / "custom.pt")})
    assert load_vision_encoder(vision).activation == "quickgelu"


# ---- timm


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_convnext", "resnet10t"])
def test_timm_features_equal_timm(tmp_path, name):
    torch.manual_seed(2)
    model = timm.create_model(name, num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    vision = VisionConfig(model=f"timm:{name}", pretrained=str(tmp_path / "w.pth"), image_size=64)
    if hasattr(model, "set_input_size"):
        model.set_input_size(64)
    defaults = timm.data.resolve_model_data_config(model)
    with torch.inference_mode():
        features = model.forward_features(normalized(defaults["mean"], defaults["std"]))
        expected = model.forward_head(features, pre_logits=True)
    grid, manifest = encode(vision)
    torch.testing.assert_close(grid, to_grid(model, features), atol=1e-5, rtol=1e-4)
    pooled, _ = encode(vision.model_copy(update={"output": "pooled"}))
    torch.testing.assert_close(pooled[:, 0, 0], expected, atol=1e-5, rtol=1e-4)
    assert (manifest.encoder, manifest.weights_tag) == (f"timm:{name}", "w.pth")
    assert (manifest.mean, manifest.std) == (defaults["mean"], defaults["std"])
    assert len(manifest.weights_sha256) == 64
    assert manifest.activation


def test_mean_and_std_can_be_set():
    vision = VisionConfig(model="timm:test_efficientnet", image_size=64, mean=(0.5, 0.4, 0.3), std=(0.5, 0.5, 0.5))
    manifest = load_encoder(vision, device="cpu").manifest
    assert (manifest.mean, manifest.std, manifest.weights_tag) == ((0.5, 0.4, 0.3), (0.5, 0.5, 0.5), "random:0")
    visual = VisualConfig(feature_dim=manifest.dim, pool=None)
    assert check_manifest(manifest, vision, visual) == []
    (problem,) = check_manifest(manifest, vision.model_copy(update={"mean": (0.5, 0.5, 0.5)}), visual)
    assert problem.startswith("vision.mean: the features were made with (0.5, 0.4, 0.3)")


def test_to_grid_accepts_maps_and_square_sequences():
    grid = torch.arange(2 * 4 * 4 * 3.0).reshape(2, 4, 4, 3)
    assert to_grid(SimpleNamespace(output_fmt="NHWC"), grid) is grid
    torch.testing.assert_close(to_grid(SimpleNamespace(), grid.permute(0, 3, 1, 2)), grid)
    tokens = torch.cat([torch.full((2, 1, 3), -1.0), grid.flatten(1, 2)], 1)
    torch.testing.assert_close(to_grid(SimpleNamespace(num_prefix_tokens=1), tokens), grid)
    for other in (grid[:, :3].flatten(1, 2), grid[:, 0, 0]):
        with pytest.raises(InputError, match="not a square grid"):
            to_grid(SimpleNamespace(), other)


def test_registered_function_adds_an_encoder_library(monkeypatch):
    monkeypatch.setattr(ENCODERS, "_entries", dict(ENCODERS._entries))

    class MeanColor(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, images):
            return self.scale * torch.nn.functional.avg_pool2d(images, 32).permute(0, 2, 3, 1)

    @ENCODERS.register("mean")
    def mean_color(vision):
        return VisionEncoder(MeanColor(), vision.model, "none", "0" * 64, (0.0,) * 3, (1.0,) * 3, "mean", None)

    grid, _ = encode(VisionConfig(model="mean:rgb", image_size=64))
    torch.testing.assert_close(grid[0, 1, 1], PIXELS[0, :, 32:, 32:].float().mean((1, 2)) / 255)


# ---- folding, max-pooling and compiling


def test_folded_batch_norms_change_nothing(write_model):
    _, visual = write_model(TINY)
    visual.load_state_dict({k.removeprefix("visual."): v for k, v in tiny_weights().items() if k.startswith("visual.")})

    def grid(images):
        return visual.forward_intermediates(images, intermediates_only=True)["image_intermediates"][-1]

    with torch.inference_mode():
        visual.double()
        exact = grid(normalized().double())
        visual.float()
        plain = grid(normalized())
        fold_batch_norms(visual)
        assert not [module for module in visual.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        folded = grid(normalized())
    assert exact.std() > 0.1
    assert (folded - exact).abs().max() < 2 * (plain - exact).abs().max() + 1e-7
    torch.testing.assert_close(folded, plain, atol=1e-5, rtol=0)


def test_norms_with_activation_are_not_folded():
    model = timm.create_model("test_efficientnet").eval()
    before = [type(module) for module in model.modules()]
    assert [type(module) for module in fold_batch_norms(model).modules()] == before


def test_pooled_store_equals_pooling_in_the_model(tmp_path):
    configs = {"full": tiny_config(tmp_path / "full", 4), "pooled": tiny_config(tmp_path / "pooled", 4)}
    stores = {}
    for name, config in configs.items():
        changes = {"image_size": 96, "pool": (2, 2) if name == "pooled" else None}
        config = config.model_copy(update={"vision": config.vision.model_copy(update=changes)})
        manifest = extract(config, "cpu").manifest
        stores[name] = FeatureStore(tmp_path / name / "features.h5")
    assert (manifest.grid, manifest.pool) == ((2, 2), (2, 2))
    embedding = VisualEmbedding(VisualConfig(feature_dim=256, pool=(2, 2)), 8, torch.nn.LayerNorm, None, 4)
    full, pooled = (torch.tensor(store.get_many(store.keys())).float()[:, None] for store in stores.values())
    assert full.shape[2] == 9
    torch.testing.assert_close(embedding.max_pool_grid(full), pooled, atol=0, rtol=0)
    torch.testing.assert_close(embedding.max_pool_grid(pooled), pooled, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("stored", "configured", "visual", "ok"),
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
def test_pooling_must_lead_to_one_grid(stored, configured, visual, ok):
    manifest = MANIFEST.model_copy(update={"pool": stored, "grid": stored or (7, 7), "dim": 2048})
    problems = check_manifest(manifest, VisionConfig(pool=configured), VisualConfig(pool=visual))
    assert [problem.partition(":")[0] for problem in problems] == ([] if ok else ["vision.pool"])


def test_compiling_is_optional_and_changes_nothing(write_model, monkeypatch):
    vision, _ = write_model(TINY)
    compiled = []
    monkeypatch.setattr(encoder_module.torch, "compile", lambda module: compiled.append(module) or module)
    plain = load_encoder(vision, device="cpu")(PIXELS)
    assert compiled == []
    np.testing.assert_array_equal(load_encoder(vision, device="cpu", compiled=True)(PIXELS), plain)
    assert len(compiled) == 1
