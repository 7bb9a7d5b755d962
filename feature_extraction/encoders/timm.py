"""Vision encoders of timm, ``timm:NAME``, and what open_clip's timm models share with them."""

from __future__ import annotations

import difflib
import math
from pathlib import Path

import timm
import torch
from huggingface_hub import hf_hub_download
from timm.data import resolve_model_data_config
from torch import nn

from feature_extraction.encoders.weights import load_weights, read_weights, tensors_sha256
from feature_extraction.vision_encoder import ENCODERS, POOLED, VisionEncoder
from multitask_vl.config import locate
from multitask_vl.config.schema import VisionConfig
from multitask_vl.data.store.manifest import encoder_name, weights_name
from multitask_vl.errors import InputError
from multitask_vl.storage.hashing import file_sha256

LIBRARY = "timm"


class TimmEncoder(nn.Module):
    """A timm model up to its pooling, or up to its pooled vector before the classifier.

    Args:
        model: created with ``num_classes=0``.
        output: ``grid`` or ``pooled``.
    """

    def __init__(self, model: nn.Module, output: str):
        super().__init__()
        self.model = model
        self.layer = "forward_features" if output == "grid" else POOLED

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, rows, columns, D]."""
        features = self.model.forward_features(images)
        if self.layer == POOLED:
            return self.model.forward_head(features, pre_logits=True)[:, None, None]
        return to_grid(self.model, features)


@ENCODERS.register(LIBRARY)
def timm_encoder(vision: VisionConfig) -> VisionEncoder:
    """Build a timm model with random weights, or weights from a path or a tag; mean and std default to timm's.

    Raises:
        InputError: unknown model or weights, or weights that do not fit.
    """
    name = vision.model.removeprefix(f"{LIBRARY}:")
    if not timm.is_model(name):
        close = " or ".join(difflib.get_close_matches(name, timm.list_models(), n=3))
        raise InputError(
            f"vision.model: {name!r} is not a timm model; did you mean {close or 'one of timm.list_models()'}?"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(vision.weights_seed)
        model = timm.create_model(name, pretrained=False, num_classes=0)
    if vision.pretrained is None:
        sha256 = tensors_sha256(model.state_dict())
    else:
        path = _weights_file(vision, name)
        heads = model.pretrained_cfg.get("classifier") or ()
        heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
        load_weights(model, {k: v for k, v in read_weights(path).items() if not k.startswith(heads)}, path)
        sha256 = file_sha256(path)
    set_image_size(model, vision)
    defaults = resolve_model_data_config(model)
    module = TimmEncoder(model, vision.output).eval().requires_grad_(False)
    return VisionEncoder(
        module,
        encoder_name(vision),
        weights_name(vision),
        sha256,
        mean=tuple(vision.mean or defaults["mean"]),
        std=tuple(vision.std or defaults["std"]),
        layer=module.layer,
        activation=activation_names(model),
    )


def to_grid(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Reshape the output of ``forward_features`` to a grid [B, rows, columns, D].

    Accepts NCHW and NHWC maps and square token sequences, with prefix tokens dropped.

    Raises:
        InputError: the output is not a square grid.
    """
    if features.ndim == 4:
        return features if getattr(model, "output_fmt", None) == "NHWC" else features.permute(0, 2, 3, 1)
    tokens = features[:, getattr(model, "num_prefix_tokens", 0) :] if features.ndim == 3 else features
    side = math.isqrt(tokens.shape[1])
    if tokens.ndim != 3 or side * side != tokens.shape[1]:
        raise InputError(
            f"vision.model: the output of {type(model).__name__} is not a square grid (shape {list(features.shape)}); "
            "use its pooled vector: vision.output=pooled"
        )
    return tokens.unflatten(1, (side, side))


def set_image_size(model: nn.Module, vision: VisionConfig) -> None:
    """Resample a timm model's position embeddings to `vision.image_size`; models without them accept any size.

    Raises:
        InputError: the model does not accept this size.
    """
    default = model.pretrained_cfg.get("input_size", (3, vision.image_size))[-1]
    if default == vision.image_size or not hasattr(model, "set_input_size"):
        return
    try:
        model.set_input_size(vision.image_size)
    except (AssertionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"vision.image_size: {vision.model} does not accept {vision.image_size} pixels ({error}); set "
            f"vision.image_size={default}"
        ) from error


def activation_names(module: nn.Module) -> str | None:
    """Return the activation functions among the submodules, such as ``relu6``; None: there are none."""
    names = {
        type(child).__name__.lower()
        for child in module.modules()
        if type(child).__module__ in ("torch.nn.modules.activation", "timm.layers.activations", "open_clip.transformer")
        and "attention" not in type(child).__name__.lower()
        and not list(child.children())
        and not list(child.parameters(recurse=False))
    }
    return ", ".join(sorted(names)) or None


def download_error(vision: VisionConfig, error: Exception) -> InputError:
    """Return the error to raise if weights cannot be downloaded."""
    return InputError(
        f"vision.pretrained: the weights {vision.pretrained!r} of {vision.model} cannot be downloaded "
        f"({type(error).__name__}: {error}). Download them on a machine with network access and set their path: "
        "vision.pretrained=PATH"
    )


def _weights_file(vision: VisionConfig, name: str) -> Path:
    path = Path(locate(vision.pretrained))
    if path.is_file():
        return path
    models = {each.partition(".")[2]: each for each in timm.list_pretrained(f"{name.partition('.')[0]}.*")}
    if vision.pretrained not in models:
        raise InputError(
            f"vision.pretrained: {vision.pretrained!r} is neither a file nor a weights tag of {name} (tags: "
            f"{', '.join(models) or 'none'})"
        )
    try:
        repo_id = timm.get_pretrained_cfg(models[vision.pretrained]).hf_hub_id
        return Path(hf_hub_download(repo_id, "model.safetensors"))
    except Exception as error:  # any error of the hub's client or the network
        raise download_error(vision, error) from error
