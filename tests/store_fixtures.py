"""What do tests of feature stores put into them: a small manifest, random features, files of both."""

import h5py
import numpy as np

from multitask_vl.data.store.feature_store import Manifest

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


def made(keys, seed=0) -> dict[str, np.ndarray]:
    """Random features by key."""
    return {
        key: np.random.default_rng([seed, len(key)]).standard_normal(SHAPE).astype("f2") + i
        for i, key in enumerate(keys)
    }


def content(path) -> tuple[bytes, ...]:
    """The bytes of everything a store file holds."""
    with h5py.File(path) as file:
        return tuple(file[name][:].tobytes() for name in ("features", "keys", "done", "crc32"))
