"""Open the feature store of a configuration."""

from __future__ import annotations

from pathlib import Path

from multitask_vl.config.schema import FeaturesConfig
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.format import is_url, shard_files
from multitask_vl.data.store.local_copy import local_copy
from multitask_vl.data.store.progress import ProgressFn, no_progress


def open_store(features: FeaturesConfig, data_dir: Path, progress: ProgressFn = no_progress) -> FeatureStore:
    """Open the configured store for this process and the workers it will start.

    Args:
        features: its `store`, `local_copy` and `cache` are used.
        data_dir: base of relative paths.
        progress: shows the progress of copying and loading.

    Raises:
        InputError: the store cannot be read, or there is not enough disk space or memory.
    """
    paths = [file for path in store_paths(features, data_dir) for file in shard_files(path)]
    if features.local_copy is not None:
        folder = data_dir / features.local_copy.expanduser()
        paths = [local_copy(path, folder, progress) for path in paths]
    store = FeatureStore(paths)
    if features.cache == "memory":
        store.load_into_memory(progress)
    return store


def store_paths(features: FeaturesConfig, data_dir: Path) -> list[Path | str]:
    """Return the paths and URLs of `features.store`; relative paths start at `data_dir`."""
    stores = features.store if isinstance(features.store, list) else [features.store]
    return [path if is_url(path) else data_dir / path.expanduser() for path in stores]
