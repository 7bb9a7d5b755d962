"""Manifest of a feature store: how its features were made, and whether that matches a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from multitask_vl import __version__
from multitask_vl.config import locate
from multitask_vl.config.schema import PositiveInt, VisionConfig, VisualConfig
from multitask_vl.errors import InputError
from multitask_vl.storage.hashing import file_sha256

FORMAT_VERSION = 1
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
EXTRACT_COMMAND = "multitask-vl extract --config CONFIG"


class Manifest(BaseModel):
    """How the features of a store were made; stored as a JSON attribute of the file.

    Stores whose manifests differ in anything but `tool_version` have different features.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: PositiveInt = FORMAT_VERSION
    """Version of the file format; readers reject newer versions."""
    encoder: str
    """open_clip model name, stem of the JSON that describes the model, or `timm:NAME`."""
    weights_tag: str
    """Tag, file name, or `random:SEED`."""
    weights_sha256: str | None
    """SHA-256 of the weights file, or of the tensors if they are random. None: unknown, as for imported features."""
    activation: str | None = None
    """Activation function of the image encoder; None: unknown."""
    image_size: PositiveInt
    """Side of the square input image, in pixels."""
    resize: Literal["squash", "crop"]
    """Squash to the square, or resize the shortest side and crop the center."""
    interpolation: str = "bicubic"
    """Resampling filter (antialiased, as in Pillow)."""
    mean: tuple[float, float, float]
    """Subtracted from RGB in [0, 1]."""
    std: tuple[float, float, float]
    """RGB is divided by this."""
    layer: str
    """Layer whose output is stored; `pooled`: one vector per image."""
    pool: tuple[PositiveInt, PositiveInt] | None = None
    """Rows and columns that the grid was max-pooled to before storing; None: not pooled."""
    grid: tuple[PositiveInt, PositiveInt]
    """Rows and columns of the stored grid; cells are in row-major order."""
    dim: PositiveInt
    """Channels of a grid cell."""
    dtype: Literal["float16"] = "float16"
    """Data type of the stored features."""
    precision: str | None = None
    """Arithmetic of the image encoder (fp32, bf16, fp16); None: unknown."""
    pixels: str | None = None
    """How image files were converted to RGB (`feature_extraction.images.preprocessing`); None: unknown."""
    tool_version: str = __version__
    """Version of this project; the only field that may differ between files read as one store."""

    @property
    def cells(self) -> int:
        """Grid cells per image: T of the stored [T, D]."""
        return self.grid[0] * self.grid[1]

    @classmethod
    def from_json(cls, text: str, path: Path) -> Manifest:
        """Parse a manifest; InputError naming `path` if it is of a newer version or invalid."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            newer = any(each["type"] == "extra_forbidden" for each in error.errors())
            hint = "written by a newer version of this project? Update it" if newer else "extract the features again"
            first = error.errors()[0]
            raise InputError(
                f"{path}: invalid manifest ({'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}); {hint}"
            ) from error

    def differences(self, other: Manifest) -> list[str]:
        """Return ``field: mine, not theirs`` for each differing field except `tool_version`."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [
            f"{name}: {mine[name]}, not {theirs[name]}"
            for name in mine
            if name != "tool_version" and mine[name] != theirs[name]
        ]


def encoder_name(vision: VisionConfig) -> str:
    """Return the manifest's name of the model: its open_clip or timm name, or the stem of its JSON."""
    return Path(vision.model).stem if vision.model.endswith(".json") else vision.model


def weights_name(vision: VisionConfig) -> str:
    """Return the manifest's name of the weights: open_clip tag, file name without folders, or ``random:SEED``."""
    if vision.pretrained is None:
        return f"random:{vision.weights_seed}"
    return Path(vision.pretrained).name if vision.pretrained.endswith(WEIGHT_SUFFIXES) else vision.pretrained


def encoder_identity(manifest: Manifest) -> dict[str, str | None]:
    """Return the fields that identify the image encoder, as saved with an adapter trained on its features."""
    return manifest.model_dump(mode="json", include={"encoder", "weights_tag", "weights_sha256", "layer"})


def encoder_mismatch(manifest: Manifest, trained_on: Mapping[str, Any]) -> list[str]:
    """Return a warning if an adapter was trained on features of another image encoder.

    It is not an error, since two files of the same weights may have different checksums. There is no warning where
    either encoder is unknown, as for imported features and adapters of older versions.

    Args:
        manifest: of the store.
        trained_on: `encoder_identity` of the store that the adapter was trained on; may be empty.
    """
    current, known = encoder_identity(manifest), [key for key in ("encoder", "weights_sha256") if trained_on.get(key)]
    if all(current[key] is None or current[key] == trained_on[key] for key in known):
        return []
    (store, adapter) = (
        f"{each['encoder']} ({each['weights_tag']}, sha256 {(each['weights_sha256'] or 'unknown')[:12]})"
        for each in (current, trained_on)
    )
    return [
        f"the features were made by {store}, but the adapter was trained on features of {adapter}: unless these are "
        "two files of the same weights, answers are unreliable"
    ]


def check_manifest(manifest: Manifest, vision: VisionConfig, visual: VisualConfig) -> list[str]:
    """Return the problems of using a store with a configuration.

    Weights given as an existing local file are compared by SHA-256, otherwise by name. What only the image encoder
    knows (activation, and mean and std unless configured) is compared at extraction, not here. A store that was pooled
    to `visual.pool` matches: the model would pool it to the same grid.
    """
    problems = []

    def compare(key: str, stored: object, wanted: object, fix: str) -> None:
        if stored != wanted:
            problems.append(f"{key}: the features were made with {stored}, the configuration has {wanted}; {fix}")

    again = f"extract again: {EXTRACT_COMMAND} features.store=NEW.h5"
    compare("vision.model", manifest.encoder, encoder_name(vision), again)
    weights = Path(locate(vision.pretrained)) if vision.pretrained else None
    if weights is not None and weights.is_file() and manifest.weights_sha256:
        digest = file_sha256(weights)
        stored = f"{manifest.weights_tag} (sha256 {manifest.weights_sha256[:12]})"
        if digest != manifest.weights_sha256:
            compare("vision.pretrained", stored, f"{vision.pretrained} (sha256 {digest[:12]})", again)
    else:
        compare("vision.pretrained", manifest.weights_tag, weights_name(vision), again)
    compare("vision.image_size", manifest.image_size, vision.image_size, again)
    compare("vision.resize", manifest.resize, vision.resize, again)
    for key in ("mean", "std"):
        if getattr(vision, key) is not None:
            compare(f"vision.{key}", getattr(manifest, key), getattr(vision, key), again)
    compare("vision.output", "pooled" if manifest.layer == "pooled" else "grid", vision.output, again)
    if not {manifest.pool, vision.pool} <= {None, visual.pool}:  # pooled twice to one grid is pooled once
        compare("vision.pool", manifest.pool, vision.pool, again)
    compare("visual.feature_dim", manifest.dim, visual.feature_dim, f"set visual.feature_dim={manifest.dim}")
    if visual.pool is not None and any(want > have for want, have in zip(visual.pool, manifest.grid, strict=True)):
        rows, columns = manifest.grid
        problems.append(
            f"visual.pool: {visual.pool[0]}x{visual.pool[1]} cells cannot be pooled from a grid of {rows}x{columns}; "
            f"set visual.pool=null or [{rows}, {columns}]"
        )
    return problems
