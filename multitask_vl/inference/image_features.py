"""What does the model see of a picture file: its grid features, made by the trunk that the adapter was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from feature_extraction.encoder import load_encoder
from feature_extraction.images.preprocessing import Unreadable, read_square
from multitask_vl.config.schema import ClipConfig, VisualConfig
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.errors import InputError

BATCH = 16
"""Pictures of one pass through the trunk."""
UNSAID = ("tool_version", "precision")
"""Fields of a manifest in which two makers of the same features may differ."""
STARTS = {
    b"PK\x03\x04": "it is a zip archive; unpack it",
    b"%PDF": "it is a PDF; convert it to PNG",
    b"\x1f\x8b": "it is compressed by gzip; unpack it",
}
"""First bytes of files that people take for pictures -> what they are."""
MARKUP = {
    b"<svg": "it is an SVG, a drawing in text, which has no pixels; convert it to PNG",
    b"<html": "it is a web page, perhaps of a download that was refused; fetch the picture again",
}


class Pictures:
    """Features of picture files, read as a feature store is read, with paths for keys.

    Args:
        clip: the trunk.
        visual: what the model expects of its cells.
        device: where the trunk computes.

    Raises:
        InputError: the trunk or its weights cannot be had, or its cells are not what the model was built for.
    """

    def __init__(self, clip: ClipConfig, visual: VisualConfig, device: torch.device | str = "cpu"):
        self._clip = clip
        self._encoder = load_encoder(clip, device=device)
        self.manifest = self._encoder.manifest
        if self.manifest.dim != visual.feature_dim:
            raise InputError(
                f"clip.model: {clip.model} gives cells of {self.manifest.dim} channels, the adapter reads "
                f"{visual.feature_dim}; its features were made by another trunk: --clip-model NAME (in Python: "
                "clip_model=NAME)"
            )

    def get_many(self, paths: Sequence[str]) -> np.ndarray:
        """Features of picture files in the order of ``paths``, repeats allowed, float16 [N, T, D].

        Raises:
            InputError: naming every file that cannot be read as a picture, and why.
        """
        pixels, problems = {}, []
        for path in dict.fromkeys(paths):
            try:
                pixels[path], _ = read_square(Path(path), self._clip.image_size, self._clip.resize)
            except Unreadable as error:
                problems.append(f"{path}: cannot be read as a picture: {what_it_is(Path(path)) or error}")
        if problems:
            raise InputError(problems)
        stacked = torch.from_numpy(np.stack(list(pixels.values())))
        features = np.concatenate([self._encoder(some) for some in stacked.split(BATCH)])
        row = {path: at for at, path in enumerate(pixels)}
        return features[[row[path] for path in paths]]

    def check_store(self, store: Path) -> None:
        """Raise InputError unless the features of ``store`` were made as these are."""
        theirs, mine = FeatureStore(store).manifest.model_dump(), self.manifest.model_dump()
        problems = [
            f"{store}: {name} is {theirs[name]} there and {mine[name]} here; the adapter would see other features than "
            "it was trained on. Name the trunk of that store: --clip-model NAME --clip FILE"
            for name in mine
            # what an imported store does not know is no difference
            if name not in UNSAID and theirs[name] is not None and theirs[name] != mine[name]
        ]
        if problems:
            raise InputError(problems)


def what_it_is(path: Path) -> str | None:
    """What a file is that is no picture, with what to do; None where its first bytes do not say."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        return error.strerror
    if not head:
        return "it is empty"
    by_start = (what for start, what in STARTS.items() if head.startswith(start))
    by_markup = (what for mark, what in MARKUP.items() if head.lstrip().startswith(b"<") and mark in head.lower())
    return next(by_start, None) or next(by_markup, None)
