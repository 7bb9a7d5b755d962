"""Which reader of features does a configuration ask for: where they lie, copied nearer or not, from disk or memory."""

from __future__ import annotations

from pathlib import Path

from multitask_vl.config.schema import FeaturesConfig
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import is_url, shards
from multitask_vl.data.store.local_copy import local_copy
from multitask_vl.data.store.writer import Watch


def open_store(features: FeaturesConfig, data_dir: Path, watch: Watch = lambda rows, what: rows) -> FeatureStore:
    """The store of a configuration, ready to be read by this process and the workers it will start.

    Args:
        features: `store`, `local_copy` and `read` are followed.
        data_dir: where relative paths start.
        watch: shows the progress of copying and loading.

    Raises:
        InputError: the store cannot be read, or disk or memory are too small for what was asked.
    """
    paths = [file for path in store_paths(features, data_dir) for file in shards(path)]
    if features.local_copy is not None:
        folder = data_dir / features.local_copy.expanduser()
        paths = [local_copy(path, folder, watch) for path in paths]
    store = FeatureStore(paths)
    if features.read == "ram":
        store.load_into_memory(watch)
    return store


def store_paths(features: FeaturesConfig, data_dir: Path) -> list[Path | str]:
    """What `features.store` names: paths that start at `data_dir` where they are relative, and URLs as they stand."""
    stores = features.store if isinstance(features.store, list) else [features.store]
    return [path if is_url(path) else data_dir / path.expanduser() for path in stores]
