"""What made the features of a store, and does it agree with what a configuration asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from multitask_vl import __version__
from multitask_vl.config import locate
from multitask_vl.config.schema import ClipConfig, Positive, VisualConfig
from multitask_vl.errors import InputError

FORMAT_VERSION = 1
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


class Manifest(BaseModel):
    """How the features of a store were made. Kept as one JSON attribute of the file.

    Two stores whose manifests differ in anything but `tool_version` do not hold the same features.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: Positive = FORMAT_VERSION
    """Version of the file layout; a reader refuses a newer one than it knows."""
    encoder: str
    """open_clip model name, the stem of the JSON that describes the model, or `timm:NAME`."""
    weights_tag: str
    """Tag, file name, or `random:SEED`."""
    weights_sha256: str | None
    """Of the weights file, or of the tensors where they are random. None: imported features, nobody knows."""
    activation: str | None = None
    """Non-linearity of the trunk; None: not known."""
    image_size: Positive
    """Side of the square the trunk saw, in pixels."""
    resize: Literal["squash", "crop"]
    """Squashed to the square, or shortest side and centre crop."""
    interpolation: str = "bicubic"
    """Resampling filter (antialiased, as Pillow does it)."""
    mean: tuple[float, float, float]
    """Subtracted from RGB in [0, 1]."""
    std: tuple[float, float, float]
    """RGB is divided by this."""
    layer: str
    """Whose output was stored; `pooled`: one vector an image."""
    pool: tuple[Positive, Positive] | None = None
    """Rows and columns that the grid was max-pooled to before storing; None: it was not."""
    grid: tuple[Positive, Positive]
    """Rows and columns of stored cells; a row of `features` holds them row by row."""
    dim: Positive
    """Channels of a cell."""
    dtype: Literal["float16"] = "float16"
    """Of the stored numbers."""
    precision: str | None = None
    """Arithmetic of the trunk (fp32, bf16, fp16); None: not known."""
    pixels: str | None = None
    """How files became RGB (`feature_extraction.images.preprocessing.CONVENTION`); None: not known."""
    tool_version: str = __version__
    """Version of this project; the only field that may differ between files read as one."""

    @property
    def cells(self) -> int:
        """Cells of a grid: T of the `[T, D]` stored for an image."""
        return self.grid[0] * self.grid[1]

    @classmethod
    def from_json(cls, text: str, path: Path) -> Manifest:
        """The manifest in `text`; InputError naming `path` where it is of a newer format or not a manifest."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            newer = [one for one in error.errors() if one["type"] == "extra_forbidden"]
            hint = "written by a newer version of this project? Update it" if newer else "extract the features again"
            first = error.errors()[0]
            raise InputError(
                f"{path}: manifest not understood ({'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}); "
                f"{hint}"
            ) from error

    def differences(self, other: Manifest) -> list[str]:
        """``field: mine, not theirs`` for each field in which the features may differ."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [
            f"{name}: {mine[name]}, not {theirs[name]}"
            for name in mine
            if name != "tool_version" and mine[name] != theirs[name]
        ]


def encoder_name(clip: ClipConfig) -> str:
    """What a manifest calls the model: its open_clip name, or the stem of its JSON."""
    return Path(clip.model).stem if clip.model.endswith(".json") else clip.model


def weights_name(clip: ClipConfig) -> str:
    """What a manifest calls the weights: the open_clip tag, the file's name without folders, or ``random:SEED``."""
    if clip.pretrained is None:
        return f"random:{clip.weights_seed}"
    return Path(clip.pretrained).name if clip.pretrained.endswith(WEIGHT_SUFFIXES) else clip.pretrained


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def trunk_of(manifest: Manifest) -> dict[str, str | None]:
    """Which trunk made the features of a store, as an adapter that is trained on them keeps it."""
    return manifest.model_dump(mode="json", include={"encoder", "weights_tag", "weights_sha256", "layer"})


def other_trunk(manifest: Manifest, trained_on: Mapping[str, Any]) -> list[str]:
    """A remark where features are made by another trunk than those that an adapter was trained on (`trunk_of`).

    Not an error: one file of the same weights may have another checksum than another. Empty where either is not known,
    as of imported features and of adapters of older versions.
    """
    mine, known = trunk_of(manifest), [key for key in ("encoder", "weights_sha256") if trained_on.get(key)]
    if all(mine[key] is None or mine[key] == trained_on[key] for key in known):
        return []
    (here, before) = (
        f"{one['encoder']} ({one['weights_tag']}, sha256 {(one['weights_sha256'] or 'unknown')[:12]})"
        for one in (mine, trained_on)
    )
    return [
        f"features are made by {here}, the adapter was trained on those of {before}: unless these are two files of the "
        "same weights, answers mean little"
    ]


def check_manifest(manifest: Manifest, clip: ClipConfig, visual: VisualConfig) -> list[str]:
    """Where a store disagrees with what a run expects of it; empty if nowhere.

    Weights given as a local file that exists are compared by SHA-256, wherever the file lies; else by name. What only
    the trunk itself can tell (activation, mean and std unless configured) is compared when extracting, not here. A
    store that was pooled to `visual.pool` already holds what the model would pool to.
    """
    found = []

    def compare(key: str, stored: object, wanted: object, mend: str) -> None:
        if stored != wanted:
            found.append(f"{key}: the features were made with {stored}, the configuration says {wanted}; {mend}")

    again = "extract again: python launch/extract_features.py --config CONFIG features.store=NEW.h5"
    compare("clip.model", manifest.encoder, encoder_name(clip), again)
    weights = Path(locate(clip.pretrained)) if clip.pretrained else None
    if weights is not None and weights.is_file() and manifest.weights_sha256:
        digest = file_sha256(weights)
        stored = f"{manifest.weights_tag} (sha256 {manifest.weights_sha256[:12]})"
        if digest != manifest.weights_sha256:
            compare("clip.pretrained", stored, f"{clip.pretrained} (sha256 {digest[:12]})", again)
    else:
        compare("clip.pretrained", manifest.weights_tag, weights_name(clip), again)
    compare("clip.image_size", manifest.image_size, clip.image_size, again)
    compare("clip.resize", manifest.resize, clip.resize, again)
    for key in ("mean", "std"):
        if getattr(clip, key) is not None:
            compare(f"clip.{key}", getattr(manifest, key), getattr(clip, key), again)
    compare("clip.layer", "pooled" if manifest.layer == "pooled" else "grid", clip.layer, again)
    if not {manifest.pool, clip.pool} <= {None, visual.pool}:  # pooled twice to one grid is pooled once
        compare("clip.pool", manifest.pool, clip.pool, again)
    compare("visual.feature_dim", manifest.dim, visual.feature_dim, f"set visual.feature_dim={manifest.dim}")
    if visual.pool is not None and any(want > have for want, have in zip(visual.pool, manifest.grid, strict=True)):
        rows, columns = manifest.grid
        found.append(
            f"visual.pool: {visual.pool[0]}x{visual.pool[1]} cells cannot be pooled from a grid of {rows}x{columns}; "
            f"set visual.pool=null or [{rows}, {columns}]"
        )
    return found
