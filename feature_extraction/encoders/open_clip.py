"""How do open_clip's towers give features: ResNets' grids, transformers' patches, timm trunks, pooled vectors."""

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

from feature_extraction.encoders.timm import activations, as_cells, fit_square, not_fetched
from feature_extraction.encoders.weights import is_torchscript, load_into, read_weights, tensors_sha256
from feature_extraction.vision_encoder import DEFAULT_KIND, ENCODERS, POOLED, Trunk
from multitask_vl.config import locate
from multitask_vl.config.schema import ClipConfig
from multitask_vl.data.store.manifest import encoder_name, file_sha256, weights_name
from multitask_vl.errors import InputError

STRIDE = 32
NO_TEXT = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}
"""The smallest text tower: open_clip builds none without, and ours is thrown away."""


class ResNetGrid(nn.Module):
    """Output of `layer4` (after its last ReLU, so >= 0) of CLIP's ResNet; its attention pool is never called."""

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


class Patches(nn.Module):
    """Patch tokens of a vision transformer after its last block and norm, without the class token.

    A tower with an attention pool norms behind it, not the patches: those are taken as the last block leaves them.
    """

    def __init__(self, visual: VisionTransformer):
        super().__init__()
        self.visual = visual
        self.norm = visual.attn_pool is None
        self.layer = "ln_post" if self.norm else "last block"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, S / patch, S / patch, D]."""
        found = self.visual.forward_intermediates(
            images, indices=1, normalize_intermediates=self.norm, intermediates_only=True
        )
        return found["image_intermediates"][-1].permute(0, 2, 3, 1)


class TimmCells(nn.Module):
    """What timm's trunk inside a tower gives before pooling."""

    layer = "forward_features"

    def __init__(self, visual: TimmModel):
        super().__init__()
        self.visual = visual

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, rows, columns, D]."""
        return as_cells(self.visual.trunk, self.visual.trunk.forward_features(images))


class Pooled(nn.Module):
    """The tower's own pooled and projected vector, as a grid of one cell."""

    layer = POOLED

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, 1, 1, D]."""
        return self.visual(images)[:, None, None]


GRIDS = {ModifiedResNet: ResNetGrid, VisionTransformer: Patches, TimmModel: TimmCells}


@ENCODERS.register(DEFAULT_KIND)
def open_clip_trunk(clip: ClipConfig) -> Trunk:
    """A visual tower of open_clip, by the name of its model or the path of its JSON.

    Only the visual tower is built, so neither time nor memory goes to the text tower; seeded random weights are those
    open_clip's own `create_model` draws, since it builds this tower first.
    """
    described, preprocess = _describe(clip)
    path = None
    if clip.pretrained is not None:
        path, tag = _weights_file(clip)
        preprocess = {**preprocess, **tag}
        # OpenAI trained with QuickGELU; a model's plain name says GELU, and features would be silently wrong.
        quick = tag.get("quick_gelu", False) or is_torchscript(path)
        described = {**described, "quick_gelu": quick or described.get("quick_gelu", False)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(clip.weights_seed)
        visual = _build(clip, described)
    ignored = ()
    if clip.layer == "grid" and isinstance(visual, ModifiedResNet):
        # The grid is taken before the attention pool, whose positions fit one image size only.
        visual.attnpool, ignored = None, ("attnpool.",)
    if path is None:
        sha256 = tensors_sha256(visual.state_dict())
    else:
        tensors = {k: v for k, v in read_weights(path, "visual.").items() if not k.startswith(ignored)}
        load_into(visual, _resized(visual, tensors), path)
        sha256 = file_sha256(path)
    if isinstance(visual, TimmModel):
        fit_square(visual.trunk, clip)
    module = (GRIDS[type(visual)] if clip.layer == "grid" else Pooled)(visual).eval().requires_grad_(False)
    return Trunk(
        module,
        encoder_name(clip),
        weights_name(clip),
        sha256,
        mean=tuple(clip.mean or preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        std=tuple(clip.std or preprocess.get("std") or open_clip.OPENAI_DATASET_STD),
        layer=module.layer,
        activation=activations(visual),
    )


def _describe(clip: ClipConfig) -> tuple[dict, dict]:
    """open_clip's description of the model, and what it says of preprocessing."""
    name = clip.model.removeprefix(f"{DEFAULT_KIND}:")
    if not name.endswith(".json"):
        described = open_clip.get_model_config(name) if name in open_clip.list_models() else None
        if described is None:
            close = difflib.get_close_matches(name, open_clip.list_models(), n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else "."
            raise InputError(
                f"clip.model: {name!r} is no open_clip model{hint} A model of your own is the path of a .json; other "
                f"kinds are named by a word before a colon ({', '.join(ENCODERS.names())})"
            )
        return described, {}
    path = Path(locate(name))
    try:
        found = json.loads(path.read_text())
        preprocess, found = found.get("preprocess_cfg", {}), found.get("model_cfg", found)
        found["vision_cfg"].keys(), found["embed_dim"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"clip.model: {path} is no open_clip model configuration ({type(error).__name__}: {error})"
        ) from error
    return found, preprocess


def _build(clip: ClipConfig, described: dict) -> nn.Module:
    vision = {**described["vision_cfg"], "timm_model_pretrained": False, "patch_dropout": 0.0}
    resnet = isinstance(vision.get("layers"), list) and not vision.get("timm_model_name")
    own = vision.get("image_size", 224)
    if resnet and clip.layer == "grid":
        _whole_cells(clip, STRIDE)
    elif resnet and clip.image_size != own:
        raise InputError(
            f"clip.image_size: the attention pool of {clip.model} sees {own} pixels only, not {clip.image_size}; set "
            f"clip.image_size={own}, or clip.layer=grid"
        )
    elif not vision.get("timm_model_name"):
        patch = vision.get("patch_size", 16)
        _whole_cells(clip, *(patch if isinstance(patch, list) else [patch]))
        vision["image_size"] = clip.image_size
    try:
        return open_clip.CLIP(described["embed_dim"], vision, NO_TEXT, bool(described.get("quick_gelu"))).visual
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError, AssertionError) as error:
        raise InputError(f"clip.model: {clip.model} describes no tower that can be built ({error})") from error


def _whole_cells(clip: ClipConfig, *sides: int) -> None:
    for side in sides:
        if isinstance(side, int) and side > 0 and clip.image_size % side:
            near = max(side, round(clip.image_size / side) * side)
            raise InputError(
                f"clip.image_size: {clip.image_size} is not a multiple of {side}, so the right and lower border would "
                f"be lost; try {near}"
            )


def _weights_file(clip: ClipConfig) -> tuple[Path, dict]:
    """The local file of `clip.pretrained`, fetched if it is a tag, and what open_clip says of such weights."""
    path, name = Path(locate(clip.pretrained)), clip.model.removeprefix(f"{DEFAULT_KIND}:")
    known = open_clip.list_pretrained_tags_by_model(name)
    if path.is_file():
        # A file has no tag; where all weights of a model want the same mean and std (SigLIP's), so will these.
        tags = [open_clip.get_pretrained_cfg(name, tag) for tag in known]
        agreed = {key for key in tags[0] if all(one.get(key) == tags[0][key] for one in tags)} if tags else set()
        return path, {key: tags[0][key] for key in ("mean", "std", "quick_gelu") if key in agreed}
    tag = open_clip.get_pretrained_cfg(name, clip.pretrained)
    if not tag:
        raise InputError(
            f"clip.pretrained: {clip.pretrained!r} is neither a file nor a weights tag of {name} (tags: "
            f"{', '.join(known) or 'none'})"
        )
    try:
        return Path(open_clip.download_pretrained(tag)), tag
    except Exception as error:  # whatever the hub's client or the network comes up with
        raise not_fetched(clip, error) from error


def _resized(visual: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformer's position embeddings, resized where its square is not the one the weights were trained on."""
    if not isinstance(visual, VisionTransformer):
        return tensors
    named = {f"visual.{name}": one for name, one in tensors.items()}
    resize_pos_embed(named, SimpleNamespace(visual=visual))
    return {name.removeprefix("visual."): one for name, one in named.items()}
