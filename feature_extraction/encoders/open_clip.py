"""Vision encoders of open_clip: ResNets, vision transformers and timm models."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from types import SimpleNamespace

import open_clip
import torch
from open_clip.model import resize_pos_embed
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from feature_extraction.encoders.timm import activation_names, download_error, set_image_size, to_grid
from feature_extraction.encoders.weights import is_torchscript, load_weights, read_weights, tensors_sha256
from feature_extraction.vision_encoder import DEFAULT_LIBRARY, ENCODERS, POOLED, VisionEncoder
from multitask_vl.config import locate
from multitask_vl.config.schema import VisionConfig
from multitask_vl.data.store.manifest import encoder_name, weights_name
from multitask_vl.errors import InputError
from multitask_vl.storage.hashing import file_sha256

RESNET_STRIDE = 32
MINIMAL_TEXT_CONFIG = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}
"""The smallest text encoder: open_clip does not build a model without one, and ours is discarded."""


class ResNetGrid(nn.Module):
    """Output of `layer4` (after its last ReLU, so >= 0) of CLIP's ResNet; its attention pool is not called."""

    layer = "layer4"

    def __init__(self, visual: ModifiedResNet):
        super().__init__()
        self.visual = visual

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S], S a multiple of 32 -> [B, S / 32, S / 32, D]."""
        hidden = self.visual.stem(images)
        for layer in (self.visual.layer1, self.visual.layer2, self.visual.layer3, self.visual.layer4):
            hidden = layer(hidden)
        return hidden.permute(0, 2, 3, 1)


class PatchGrid(nn.Module):
    """Patch tokens of a vision transformer after its last block and norm, without the class token.

    In models with an attention pool the final norm comes after the pool; their patches are not normalized.
    """

    def __init__(self, visual: VisionTransformer):
        super().__init__()
        self.visual = visual
        self.norm = visual.attn_pool is None
        self.layer = "ln_post" if self.norm else "last block"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, S / patch, S / patch, D]."""
        outputs = self.visual.forward_intermediates(
            images, indices=1, normalize_intermediates=self.norm, intermediates_only=True
        )
        return outputs["image_intermediates"][-1].permute(0, 2, 3, 1)


class TimmGrid(nn.Module):
    """Output of the timm model inside an open_clip model, before pooling."""

    layer = "forward_features"

    def __init__(self, visual: TimmModel):
        super().__init__()
        self.visual = visual

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, rows, columns, D]."""
        return to_grid(self.visual.trunk, self.visual.trunk.forward_features(images))


class PooledVector(nn.Module):
    """The model's pooled and projected vector, as a 1 x 1 grid."""

    layer = POOLED

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, 1, 1, D]."""
        return self.visual(images)[:, None, None]


GRIDS = {ModifiedResNet: ResNetGrid, VisionTransformer: PatchGrid, TimmModel: TimmGrid}


@ENCODERS.register(DEFAULT_LIBRARY)
def open_clip_encoder(vision: VisionConfig) -> VisionEncoder:
    """Build the vision encoder of an open_clip model, given by name or by the path of its JSON.

    Only the vision encoder is built. It is built first in open_clip's `create_model` as well, so random weights are the
    same for the same seed.

    Raises:
        InputError: unknown model or weights, weights that do not fit, or an image size that the model does not accept.
    """
    model_config, preprocess = _model_config(vision)
    path = None
    if vision.pretrained is not None:
        path, tag_config = _weights_file(vision)
        preprocess = {**preprocess, **tag_config}
        # OpenAI trained with QuickGELU, but a model's plain name stands for GELU: features would be silently wrong.
        quick = tag_config.get("quick_gelu", False) or is_torchscript(path)
        model_config = {**model_config, "quick_gelu": quick or model_config.get("quick_gelu", False)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(vision.weights_seed)
        visual = _build(vision, model_config)
    unused = ()
    if vision.output == "grid" and isinstance(visual, ModifiedResNet):
        # The grid is the input of the attention pool, whose position embeddings fit one image size only.
        visual.attnpool, unused = None, ("attnpool.",)
    if path is None:
        sha256 = tensors_sha256(visual.state_dict())
    else:
        tensors = {k: v for k, v in read_weights(path, "visual.").items() if not k.startswith(unused)}
        load_weights(visual, _resize_position_embeddings(visual, tensors), path)
        sha256 = file_sha256(path)
    if isinstance(visual, TimmModel):
        set_image_size(visual.trunk, vision)
    module = (GRIDS[type(visual)] if vision.output == "grid" else PooledVector)(visual).eval().requires_grad_(False)
    return VisionEncoder(
        module,
        encoder_name(vision),
        weights_name(vision),
        sha256,
        mean=tuple(vision.mean or preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        std=tuple(vision.std or preprocess.get("std") or open_clip.OPENAI_DATASET_STD),
        layer=module.layer,
        activation=activation_names(visual),
    )


def _model_config(vision: VisionConfig) -> tuple[dict, dict]:
    """Return open_clip's configuration of the model, and its preprocessing (mean, std) if a JSON gives it."""
    name = vision.model.removeprefix(f"{DEFAULT_LIBRARY}:")
    if not name.endswith(".json"):
        model_config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
        if model_config is None:
            close = difflib.get_close_matches(name, open_clip.list_models(), n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else "."
            raise InputError(
                f"vision.model: {name!r} is not an open_clip model{hint} A custom model is the path of a .json; models "
                f"of other libraries are written LIBRARY:NAME (libraries: {', '.join(ENCODERS.names())})"
            )
        return model_config, {}
    path = Path(locate(name))
    try:
        content = json.loads(path.read_text())
        preprocess, model_config = content.get("preprocess_cfg", {}), content.get("model_cfg", content)
        model_config["vision_cfg"].keys(), model_config["embed_dim"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"vision.model: {path} is not an open_clip model configuration ({type(error).__name__}: {error})"
        ) from error
    return model_config, preprocess


def _build(vision: VisionConfig, model_config: dict) -> nn.Module:
    vision_cfg = {**model_config["vision_cfg"], "timm_model_pretrained": False, "patch_dropout": 0.0}
    resnet = isinstance(vision_cfg.get("layers"), list) and not vision_cfg.get("timm_model_name")
    default_size = vision_cfg.get("image_size", 224)
    if resnet and vision.output == "grid":
        _check_divisible(vision, RESNET_STRIDE)
    elif resnet and vision.image_size != default_size:
        raise InputError(
            f"vision.image_size: the attention pool of {vision.model} accepts {default_size} pixels only, not "
            f"{vision.image_size}; set vision.image_size={default_size}, or vision.output=grid"
        )
    elif not vision_cfg.get("timm_model_name"):
        patch = vision_cfg.get("patch_size", 16)
        _check_divisible(vision, *(patch if isinstance(patch, list) else [patch]))
        vision_cfg["image_size"] = vision.image_size
    quick_gelu = bool(model_config.get("quick_gelu"))
    try:
        return open_clip.CLIP(model_config["embed_dim"], vision_cfg, MINIMAL_TEXT_CONFIG, quick_gelu).visual
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError, AssertionError) as error:
        raise InputError(f"vision.model: the vision encoder of {vision.model} cannot be built ({error})") from error


def _check_divisible(vision: VisionConfig, *divisors: int) -> None:
    for divisor in divisors:
        if isinstance(divisor, int) and divisor > 0 and vision.image_size % divisor:
            nearest = max(divisor, round(vision.image_size / divisor) * divisor)
            raise InputError(
                f"vision.image_size: {vision.image_size} is not a multiple of {divisor}, so the right and lower border "
                f"would be lost; try {nearest}"
            )


def _weights_file(vision: VisionConfig) -> tuple[Path, dict]:
    """Return the local file of `vision.pretrained`, downloaded if it is a tag, and open_clip's settings of the tag."""
    path, name = Path(locate(vision.pretrained)), vision.model.removeprefix(f"{DEFAULT_LIBRARY}:")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if path.is_file():
        # A file has no tag; if all tags of a model share mean and std (as SigLIP's do), the file gets them too.
        configs = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
        first = configs[0] if configs else {}
        shared = {key for key in first if all(config.get(key) == first[key] for config in configs)}
        return path, {key: first[key] for key in ("mean", "std", "quick_gelu") if key in shared}
    tag_config = open_clip.get_pretrained_cfg(name, vision.pretrained)
    if not tag_config:
        raise InputError(
            f"vision.pretrained: {vision.pretrained!r} is neither a file nor a weights tag of {name} (tags: "
            f"{', '.join(tags) or 'none'})"
        )
    try:
        return Path(open_clip.download_pretrained(tag_config)), tag_config
    except Exception as error:  # any error of the hub's client or the network
        raise download_error(vision, error) from error


def _resize_position_embeddings(visual: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Resize a transformer's position embeddings if the image size differs from that of the weights."""
    if not isinstance(visual, VisionTransformer):
        return tensors
    prefixed = {f"visual.{name}": tensor for name, tensor in tensors.items()}
    resize_pos_embed(prefixed, SimpleNamespace(visual=visual))
    return {name.removeprefix("visual."): tensor for name, tensor in prefixed.items()}
