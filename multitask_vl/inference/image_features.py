"""Grid features of image files, from the vision encoder that an adapter was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from feature_extraction.encoder import load_encoder
from feature_extraction.images.preprocessing import ImageDecodeError, load_square
from multitask_vl.config.schema import VisionConfig, VisualConfig
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.errors import InputError

BATCH_SIZE = 16
"""Images per forward pass of the vision encoder."""
IGNORED_FIELDS = ("tool_version", "precision")
"""Manifest fields that may differ between equal features."""
FILE_SIGNATURES = {
    b"PK\x03\x04": "it is a zip archive; unpack it",
    b"%PDF": "it is a PDF; convert it to PNG",
    b"\x1f\x8b": "it is compressed with gzip; unpack it",
}
"""First bytes of common files that are not images -> description and how to fix it."""
MARKUP_SIGNATURES = {
    b"<svg": "it is an SVG (vector graphics); convert it to PNG",
    b"<html": "it is a web page, perhaps from a failed download; download the image again",
}
"""Tag of common markup files that are not images -> description and how to fix it."""


class ImageFeaturizer:
    """Vision encoder with the interface of a feature store, where keys are paths of image files.

    Args:
        vision: the vision encoder.
        visual: the visual embedding of the model, which must fit the encoder.
        device: device of the vision encoder.

    Raises:
        InputError: the encoder or its weights are not available, or its feature dimension is not the model's.
    """

    def __init__(self, vision: VisionConfig, visual: VisualConfig, device: torch.device | str = "cpu"):
        self._vision = vision
        self._encoder = load_encoder(vision, device=device)
        self.manifest = self._encoder.manifest
        if self.manifest.dim != visual.feature_dim:
            raise InputError(
                f"vision.model: {vision.model} produces features of dimension {self.manifest.dim}, but the adapter was "
                f"trained on features of dimension {visual.feature_dim}. Pass the vision encoder of the training run: "
                "--vision-model NAME (in Python: vision_model=NAME)"
            )

    def get_many(self, paths: Sequence[str]) -> np.ndarray:
        """Return the features of image files in the order of ``paths``, float16 [N, T, D]; repeats are allowed.

        Raises:
            InputError: lists every file that cannot be read as an image, with the reason.
        """
        pixels, problems = {}, []
        for path in dict.fromkeys(paths):
            try:
                pixels[path], _ = load_square(Path(path), self._vision.image_size, self._vision.resize)
            except ImageDecodeError as error:
                problems.append(f"{path}: cannot be read as an image: {describe_non_image(Path(path)) or error}")
        if problems:
            raise InputError(problems)
        stacked = torch.from_numpy(np.stack(list(pixels.values())))
        features = np.concatenate([self._encoder(batch) for batch in stacked.split(BATCH_SIZE)])
        rows = {path: row for row, path in enumerate(pixels)}
        return features[[rows[path] for path in paths]]

    def check_store(self, path: Path) -> None:
        """Raise InputError unless the features of the store at ``path`` were made in the same way."""
        stored, current = FeatureStore(path).manifest.model_dump(), self.manifest.model_dump()
        problems = [
            f"{path}: {name} is {stored[name]} in the store and {current[name]} here, so the adapter would get other "
            "features than in training. Pass the vision encoder of the store: --vision-model NAME --vision-weights FILE"
            for name in current
            # imported stores may leave fields unset
            if name not in IGNORED_FIELDS and stored[name] is not None and stored[name] != current[name]
        ]
        if problems:
            raise InputError(problems)


def describe_non_image(path: Path) -> str | None:
    """Describe a file that is not an image, and how to fix it; None if its first bytes are not recognized."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        return error.strerror
    if not head:
        return "it is empty"
    for signature, description in FILE_SIGNATURES.items():
        if head.startswith(signature):
            return description
    if head.lstrip().startswith(b"<"):
        for tag, description in MARKUP_SIGNATURES.items():
            if tag in head.lower():
                return description
    return None
