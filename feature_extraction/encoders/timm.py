"""How do timm's trunks give features: ``timm:efficientnet_lite0`` and every other name that timm knows."""

from __future__ import annotations

import difflib
import math
from pathlib import Path

import timm
import torch
from huggingface_hub import hf_hub_download
from timm.data import resolve_model_data_config
from torch import nn

from feature_extraction.encoders.weights import load_into, read_weights, tensors_sha256
from feature_extraction.vision_encoder import ENCODERS, POOLED, Trunk
from multitask_vl.config import locate
from multitask_vl.config.schema import ClipConfig
from multitask_vl.data.store.manifest import encoder_name, file_sha256, weights_name
from multitask_vl.errors import InputError

KIND = "timm"


class Cells(nn.Module):
    """A trunk up to its pooling, or its pooled vector before the classifier."""

    def __init__(self, trunk: nn.Module, layer: str):
        super().__init__()
        self.trunk = trunk
        self.layer = "forward_features" if layer == "grid" else POOLED

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, rows, columns, D]."""
        features = self.trunk.forward_features(images)
        if self.layer == POOLED:
            return self.trunk.forward_head(features, pre_logits=True)[:, None, None]
        return as_cells(self.trunk, features)


@ENCODERS.register(KIND)
def timm_trunk(clip: ClipConfig) -> Trunk:
    """A trunk of timm with weights by seed, by path or by tag; mean and std are timm's own for it unless set."""
    name = clip.model.removeprefix(f"{KIND}:")
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise InputError(
            f"clip.model: {name!r} is no timm model; did you mean {' or '.join(close) or 'one of timm.list_models()'}?"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(clip.weights_seed)
        trunk = timm.create_model(name, pretrained=False, num_classes=0)
    if clip.pretrained is None:
        sha256 = tensors_sha256(trunk.state_dict())
    else:
        path = _weights_file(clip, name)
        heads = trunk.pretrained_cfg.get("classifier") or ()
        heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
        load_into(trunk, {k: v for k, v in read_weights(path).items() if not k.startswith(heads)}, path)
        sha256 = file_sha256(path)
    fit_square(trunk, clip)
    expected = resolve_model_data_config(trunk)
    module = Cells(trunk, clip.layer).eval().requires_grad_(False)
    return Trunk(
        module,
        encoder_name(clip),
        weights_name(clip),
        sha256,
        mean=tuple(clip.mean or expected["mean"]),
        std=tuple(clip.std or expected["std"]),
        layer=module.layer,
        activation=activations(trunk),
    )


def as_cells(trunk: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """What `forward_features` gives, in whatever form, as cells [B, rows, columns, D].

    Raises:
        InputError: a trunk of another form, without a grid.
    """
    if features.ndim == 4:
        return features if getattr(trunk, "output_fmt", None) == "NHWC" else features.permute(0, 2, 3, 1)
    cells = features[:, getattr(trunk, "num_prefix_tokens", 0) :] if features.ndim == 3 else features
    side = math.isqrt(cells.shape[1])
    if cells.ndim != 3 or side * side != cells.shape[1]:
        raise InputError(
            f"clip.model: {type(trunk).__name__} gives no square grid (shape {list(features.shape)}); take its pooled "
            "vector: clip.layer=pooled"
        )
    return cells.unflatten(1, (side, side))


def fit_square(trunk: nn.Module, clip: ClipConfig) -> None:
    """Make a trunk with positions see squares of `clip.image_size`; those loaded before are resampled."""
    own = trunk.pretrained_cfg.get("input_size", (3, clip.image_size))[-1]
    if own == clip.image_size or not hasattr(trunk, "set_input_size"):
        return
    try:
        trunk.set_input_size(clip.image_size)
    except (AssertionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"clip.image_size: {clip.model} cannot see squares of {clip.image_size} ({error}); its own are {own}"
        ) from error


def activations(module: nn.Module) -> str | None:
    """The non-linearities inside a trunk by name, such as ``relu6``; None where it has none as modules."""
    names = {
        type(one).__name__.lower()
        for one in module.modules()
        if type(one).__module__ in ("torch.nn.modules.activation", "timm.layers.activations", "open_clip.transformer")
        and "attention" not in type(one).__name__.lower()
        and not list(one.children())
        and not list(one.parameters(recurse=False))
    }
    return ", ".join(sorted(names)) or None


def not_fetched(clip: ClipConfig, error: Exception) -> InputError:
    """The sentence about weights that the network did not give."""
    return InputError(
        f"clip.pretrained: the weights {clip.pretrained!r} of {clip.model} cannot be fetched "
        f"({type(error).__name__}: {error}). Fetch them where there is a network and give their path: "
        "clip.pretrained=PATH"
    )


def _weights_file(clip: ClipConfig, name: str) -> Path:
    path = Path(locate(clip.pretrained))
    if path.is_file():
        return path
    tagged = {one.partition(".")[2]: one for one in timm.list_pretrained(f"{name.partition('.')[0]}.*")}
    if clip.pretrained not in tagged:
        raise InputError(
            f"clip.pretrained: {clip.pretrained!r} is neither a file nor a weights tag of {name} (tags: "
            f"{', '.join(tagged) or 'none'})"
        )
    try:
        hub = timm.get_pretrained_cfg(tagged[clip.pretrained]).hf_hub_id
        return Path(hf_hub_download(hub, "model.safetensors"))
    except Exception as error:  # whatever the hub's client or the network comes up with
        raise not_fetched(clip, error) from error
