"""Feature store fixtures: a small manifest, random features, and the bytes of a store."""

import h5py
import numpy as np

from multitask_vl.data.store.format import read_local_header
from multitask_vl.data.store.manifest import Manifest

MANIFEST = Manifest(
    encoder="RN101",
    weights_tag="random:0",
    weights_sha256="ab" * 32,
    activation="relu",
    image_size=224,
    resize="squash",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    layer="layer4",
    grid=(2, 3),
    dim=8,
)
SHAPE = (6, 8)


def random_features(keys, seed=0) -> dict[str, np.ndarray]:
    """Return random features [6, 8] float16 by key."""
    return {
        key: np.random.default_rng([seed, len(key)]).standard_normal(SHAPE).astype("f2") + i
        for i, key in enumerate(keys)
    }


def store_bytes(path) -> tuple[bytes, ...]:
    """Return the bytes of every dataset of a store file."""
    with h5py.File(path) as file:
        return tuple(file[name][:].tobytes() for name in ("features", "keys", "done", "crc32"))


def corrupt_row(path, row: int) -> None:
    """Overwrite two bytes of a row, so that its checksum fails."""
    header = read_local_header(path)
    with path.open("r+b") as file:
        file.seek(header.features_offset + row * header.row_bytes)
        file.write(b"\xff\x01")
