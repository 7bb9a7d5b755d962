"""Schema of the image sections: vision encoder, feature store, visual embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from multitask_vl.config.base_model import PositiveFloat, PositiveInt, Section, Url


class VisualConfig(Section):
    """The visual embedding, which maps grid features to visual tokens (VL-Adapter)."""

    feature_dim: PositiveInt = 2048
    """Channels per grid cell; must match the feature store."""
    pool: tuple[PositiveInt, PositiveInt] | None = (6, 6)
    """Adaptive max pooling of each image's grid to [rows, columns]. Null: no pooling."""
    max_images: PositiveInt = 2
    """Maximum number of images per example (size of the image-order embedding)."""
    box_coords: Literal["zeros", "grid"] = "zeros"
    """Input of the box layer: zeros (published), or the corners of each grid cell in [0, 1]."""
    order_embedding: bool = True
    """Add embeddings of the image order and of the position in the grid (rows of the frozen word embedding)."""
    init_normalize: bool = False
    """Initialize the projection such that it normalizes each channel by the mean and std of the training features. Off
    in the published recipe."""


class VisionConfig(Section):
    """The frozen vision encoder that extracts features."""

    model: str = "RN101"
    """An open_clip model name, the path of an open_clip model configuration (JSON), or `timm:NAME`."""
    pretrained: str | None = None
    """A weights tag (such as `openai`) or a local file. Null: random weights, seeded by `weights_seed`."""
    weights_seed: int = 0
    """Seed of the random weights if `pretrained` is null."""
    image_size: PositiveInt = 224
    """Side of the square input in pixels. The grid has image_size / 32 cells per side for a ResNet, image_size / patch
    size for a ViT."""
    resize: Literal["squash", "crop"] = "squash"
    """`squash` resizes to the square regardless of the aspect ratio (published); `crop` resizes the shorter side and
    center-crops."""
    mean: tuple[float, float, float] | None = None
    """Mean subtracted from RGB in [0, 1]. Null: the value the weights were trained with."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Std that RGB is divided by. Null: the value the weights were trained with."""
    output: Literal["grid", "pooled"] = "grid"
    """`grid`: features before pooling (the grid of a ResNet, the patches of a ViT); `pooled`: the pooled vector as a
    single cell."""
    pool: tuple[PositiveInt, PositiveInt] | None = None
    """Adaptive max pooling of the grid to [rows, columns] before it is stored, as `visual.pool` does in the model.
    Null: no pooling (published)."""


class FeaturesConfig(Section):
    """The HDF5 store of image features, and how they are extracted."""

    store: list[Url | Path] | Url | Path = Path("features.h5")
    """One store or several, whose keys must not overlap: files or URLs (https, s3, ..., read by fsspec)."""
    cache: Literal["none", "memory"] = "none"
    """`memory`: each training process loads all features first and shares them with its data-loading processes."""
    local_copy: Path | None = None
    """Folder on a fast disk (or /dev/shm, shared by all processes of the machine) to which the store is copied and
    verified first. Null: no copy."""
    images: list[Path] = []
    """Image sources: folders (searched recursively), tar shards (`a.tar`, `a-*.tar`, `a-{000..099}.tar`), lists (`.txt`
    with one path per line, or `KEY<tab>PATH`). The key of an image is its file name without the extension."""
    shards: Annotated[int, Field(ge=1, le=99999)] = 1
    """Number of files the images are distributed to; as many processes can extract in parallel."""
    batch_size: PositiveInt = 64
    """Images per forward pass."""
    num_workers: Annotated[int, Field(ge=0)] | None = None
    """Number of image-decoding processes. Null: one per core, at most 16; without a GPU they run at lower priority than
    the vision encoder."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the vision encoder; features are always stored as float16."""
    compile: bool = False
    """Compile the vision encoder with torch.compile; useful on GPUs only, and changes rounding."""
    shuffle_images: bool = False
    """Shuffled-image control: every example gets the features of another image, in training and evaluation."""
