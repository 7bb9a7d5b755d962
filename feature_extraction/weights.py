"""Which trunk, with which weights: a CLIP ResNet by name or JSON, its weights by tag, by path or by seed."""

from __future__ import annotations

import difflib
import hashlib
import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from safetensors import SafetensorError
from safetensors.torch import load_file

from multitask_vl.config import locate
from multitask_vl.config.schema import ClipConfig
from multitask_vl.data.manifest import encoder_name, file_sha256, weights_name
from multitask_vl.errors import InputError


@dataclass(frozen=True)
class Trunk:
    """A visual tower without its attention pool, and what a manifest says of it.

    Attributes:
        visual: open_clip's ModifiedResNet in eval mode, float32, `attnpool` taken out.
        name: what the manifest calls the model.
        tag: what the manifest calls the weights.
        sha256: of the weights file, or of the tensors where they are random.
        mean: subtracted from RGB in [0, 1].
        std: RGB is divided by this.
    """

    visual: ModifiedResNet
    name: str
    tag: str
    sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load_trunk(clip: ClipConfig) -> Trunk:
    """Build the trunk of a configuration and load its weights.

    Only the visual tower is built, so neither time nor memory goes to the text tower; seeded random weights are those
    open_clip's own `create_model` draws, since it builds this tower first.

    Raises:
        InputError: unknown model or weights, a tower that is not a ResNet, or weights that do not fit it.
    """
    described, preprocess = _describe(clip)
    vision = described["vision_cfg"]
    if vision.get("timm_model_name") or not isinstance(vision.get("layers"), list):
        raise InputError(
            f"clip.model: the visual tower of {clip.model} is not a ResNet; so far features come from CLIP's ResNets "
            f"only: {', '.join(name for name in open_clip.list_models() if name.startswith('RN'))}, or a JSON of that "
            "kind"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(clip.weights_seed)
        visual = _build(clip, described["embed_dim"], vision)
    visual.attnpool = None  # never used: the grid is taken before it, and its positions fit one image size only
    if clip.pretrained is None:
        sha256 = _tensors_sha256(visual.state_dict())
    else:
        path, preprocess = _weights_file(clip, preprocess)
        _load_into(visual, trunk_tensors(path), path)
        sha256 = file_sha256(path)
    mean = tuple(preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN)
    std = tuple(preprocess.get("std") or open_clip.OPENAI_DATASET_STD)
    return Trunk(visual.eval().requires_grad_(False), encoder_name(clip), weights_name(clip), sha256, mean, std)


def trunk_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The trunk's tensors of a weights file, by their names in the visual tower.

    Takes safetensors, plain state dicts (also inside `state_dict`, also with `module.` before the names) and OpenAI's
    TorchScript archives; of a whole CLIP or of its visual tower alone. Nothing in the file is executed.
    """
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        elif _is_torchscript(path):
            tensors = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as weights ({first})") from error
    if isinstance(tensors, dict):
        tensors = tensors.get("state_dict", tensors)
    if not isinstance(tensors, dict) or not all(isinstance(one, torch.Tensor) for one in tensors.values()):
        raise InputError(f"{path}: not a state dict (names -> tensors)")
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    whole = any(name.startswith("visual.") for name in plain)
    tower = {k.removeprefix("visual."): v for k, v in plain.items() if not whole or k.startswith("visual.")}
    return {name: tensor for name, tensor in tower.items() if not name.startswith("attnpool.")}


def _describe(clip: ClipConfig) -> tuple[dict, dict]:
    """open_clip's description of the model, and what it says of preprocessing."""
    if not clip.model.endswith(".json"):
        described = open_clip.get_model_config(clip.model) if clip.model in open_clip.list_models() else None
        if described is None:
            close = difflib.get_close_matches(clip.model, open_clip.list_models(), n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else "."
            raise InputError(
                f"clip.model: {clip.model!r} is no open_clip model{hint} A model of your own is the path of a .json"
            )
        return described, {}
    path = Path(locate(clip.model))
    try:
        found = json.loads(path.read_text())
        preprocess, found = found.get("preprocess_cfg", {}), found.get("model_cfg", found)
        found["vision_cfg"].keys(), found["embed_dim"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"clip.model: {path} is no open_clip model configuration ({type(error).__name__}: {error})"
        ) from error
    return found, preprocess


def _build(clip: ClipConfig, embed_dim: int, vision: dict) -> ModifiedResNet:
    width = vision.get("width", 768)
    try:
        return ModifiedResNet(
            layers=vision["layers"],
            output_dim=embed_dim,
            heads=width * 32 // vision.get("head_width", 64),
            image_size=vision.get("image_size", 224),
            width=width,
        )
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"clip.model: {clip.model} describes no ResNet that can be built ({error})") from error


def _weights_file(clip: ClipConfig, preprocess: dict) -> tuple[Path, dict]:
    """The local file of `clip.pretrained`, fetched if it is a tag, and the preprocessing that goes with it."""
    path = Path(locate(clip.pretrained))
    if path.is_file():
        return path, preprocess
    tag = open_clip.get_pretrained_cfg(clip.model, clip.pretrained)
    if not tag:
        known = open_clip.list_pretrained_tags_by_model(clip.model)
        raise InputError(
            f"clip.pretrained: {clip.pretrained!r} is neither a file nor a weights tag of {clip.model} (tags: "
            f"{', '.join(known) or 'none'})"
        )
    try:
        return Path(open_clip.download_pretrained(tag)), {**preprocess, **tag}
    except Exception as error:  # whatever the hub's client or the network comes up with
        raise InputError(
            f"clip.pretrained: the weights {clip.pretrained!r} of {clip.model} cannot be fetched "
            f"({type(error).__name__}: {error}). Fetch them where there is a network and give their path: "
            "clip.pretrained=PATH"
        ) from error


def _load_into(visual: ModifiedResNet, tensors: dict[str, torch.Tensor], path: Path) -> None:
    wanted = visual.state_dict()
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}
    problems = [
        *(f"lacks {name}" for name in sorted(needed - tensors.keys())),
        *(f"has {name}, which the model has not" for name in sorted(tensors.keys() - wanted.keys())),
        *(
            f"{name} is {tuple(tensors[name].shape)}, not {tuple(wanted[name].shape)}"
            for name in sorted(needed & tensors.keys())
            if tensors[name].shape != wanted[name].shape
        ),
    ]
    if problems:
        raise InputError(
            f"clip.pretrained: {path} does not fit clip.model: {len(problems)} tensors differ (first: it "
            f"{problems[0]}); name the model these weights belong to"
        )
    visual.load_state_dict({**wanted, **tensors})


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} ".encode())
        digest.update(tensors[name].contiguous().numpy())
    return digest.hexdigest()
