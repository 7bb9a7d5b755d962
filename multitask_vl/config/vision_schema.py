"""What may stand in a configuration about images: the trunk, its features, and how they become tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from multitask_vl.config.base_model import Positive, Section, Spread, Url


class VisualConfig(Section):
    """How grid features become tokens (VL-Adapter's visual embedding)."""

    feature_dim: Positive = 2048
    """Channels of a grid cell; must agree with the feature store."""
    pool: tuple[Positive, Positive] | None = (6, 6)
    """Adaptive max-pool of each image's grid, rows by columns. None: cells as stored."""
    max_images: Positive = 2
    """Rows of the image-order embedding."""
    boxes: Literal["zeros", "grid"] = "zeros"
    """What enters the box branch: zeros as published, or each cell's own corners in [0, 1]."""
    order_embedding: bool = True
    """Add image-order and cell-order embeddings (the latter are rows of the frozen word embedding)."""
    standardize: bool = False
    """Start the projection so that it standardises each channel by the training features' mean and spread (an initial
    value only). Off in the published recipe."""


class ClipConfig(Section):
    """The frozen trunk that makes features. Two lines swap the tiny one for the real one."""

    model: str = "RN101"
    """An open_clip model name, the path of a JSON with an open_clip model configuration, or `timm:NAME`."""
    pretrained: str | None = None
    """A weights tag (`openai`) or a local path. None: random weights, seeded by `weights_seed`."""
    weights_seed: int = 0
    """Seed of the random weights when `pretrained` is None."""
    image_size: Positive = 224
    """Side of the square the trunk sees, in pixels. The grid's side is a thirty-second of it for a ResNet, a
    patch-size-th for a transformer."""
    resize: Literal["squash", "crop"] = "squash"
    """Squash to the square (published), or shortest side + centre crop."""
    mean: tuple[float, float, float] | None = None
    """Subtracted from RGB in [0, 1]. None: what the weights were trained with."""
    std: tuple[Spread, Spread, Spread] | None = None
    """RGB is divided by this. None: what the weights were trained with."""
    layer: Literal["grid", "pooled"] = "grid"
    """Cells before pooling (a ResNet's grid, a transformer's patches), or the pooled vector as a single cell."""
    pool: tuple[Positive, Positive] | None = None
    """Adaptive max-pool of the grid before it is stored, rows by columns, as `visual.pool` does it in the model. None:
    cells as they come (published)."""


class FeaturesConfig(Section):
    """The HDF5 store of grid features, and how to fill it."""

    store: list[Url | Path] | Url | Path = Path("features.h5")
    """One store or several; keys must not repeat between them. A URL (https, s3, ...: by fsspec) is read there."""
    read: Literal["disk", "ram"] = "disk"
    """`ram`: a process loads all features before training and shares them with its workers."""
    local_copy: Path | None = None
    """Folder on a fast disk (/dev/shm: memory, for all processes of the machine) to which the store is copied first,
    and checked. None: read where it is."""
    images: list[Path] = []
    """Where images lie: folders (searched in depth), tar shards (`a.tar`, `a-*.tar`, `a-{000..099}.tar`), lists
    (`.txt`, a path a line, `KEY<tab>PATH` to name it). A picture's key is its file name without the ending."""
    shards: Annotated[int, Field(ge=1, le=99999)] = 1
    """Files that extraction deals the images to, so that as many processes can fill them."""
    batch_size: Positive = 64
    """Images a forward pass."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that decode images. None: one a core, 16 at most; without a GPU they give way to the trunk."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the trunk; the store is float16 in any case."""
    compile: bool = False
    """Let torch.compile work on the trunk first; pays on a GPU only, and rounds differently."""
    control: Literal["none", "shuffled"] = "none"
    """`shuffled`: every example gets the features of another image, in training and evaluation: the blind control."""
