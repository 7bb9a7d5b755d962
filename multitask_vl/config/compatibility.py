"""Compatibility of configurations: which keys determine training, and how two configurations differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from multitask_vl.config.resolved import flatten
from multitask_vl.config.schema import Config

METRIC_KEYS = ("evaluation.final_splits", "evaluation.caption_tokenizer", "tasks.*.decoding.*")
"""Keys that change the reported scores but not training."""
RUNTIME_KEYS = (
    "run_dir",
    "cache_dir",
    "reproduces",
    "reproduces.*",
    "evaluation.*",
    "tracking.*",
    "tasks.*.decoding.*",
    "features.images",
    "features.shards",
    "features.compile",
    "features.cache",
    "features.local_copy",
    "features.batch_size",
    "features.num_workers",
    "features.precision",
    "training.resume",
    "training.log_steps",
    "training.checkpoint_steps",
    "training.max_checkpoints",
    "training.keep_best*",
    "training.on_nonfinite",
    "training.max_consecutive_skips",
    "training.num_workers",
    "training.micro_batch_size",
    "training.on_oom",
    "training.gradient_checkpointing",
    "training.compile",
)
"""Keys that a resumed run may change: paths, evaluation, memory use, and the response to a step that cannot be used."""
_MISSING = object()


def fingerprint(config: Config | Mapping[str, Any]) -> str:
    """SHA-256 (hex) of everything that determines training, equal on every machine.

    Args:
        config: a configuration, or its ``model_dump(mode="json")``.
    """
    return hashlib.sha256(json.dumps(training_settings(config), sort_keys=True).encode()).hexdigest()


def differences(
    old: Config | Mapping[str, Any], new: Config | Mapping[str, Any], include_metrics: bool = False
) -> list[str]:
    """Differences that prevent resuming: lines such as ``training.lr: was 0.001, is 0.0003``.

    Args:
        old: the configuration of the checkpoint, or its ``model_dump(mode="json")``.
        new: the current configuration, in either form.
        include_metrics: also compare `METRIC_KEYS`.
    """
    before, after, defaults = (training_settings(config, include_metrics) for config in (old, new, Config()))
    lines = []
    for key in dict.fromkeys([*before, *after]):
        # a key that did not exist when the checkpoint was written had today's default behavior
        was, now = before.get(key, defaults.get(key, _MISSING)), after.get(key, _MISSING)
        if was != now:
            lines.append(f"{key}: was {_show(was)}, is {_show(now)}")
    return lines


def training_settings(config: Config | Mapping[str, Any], include_metrics: bool = False) -> dict[str, Any]:
    """Settings that determine training, as dotted key -> value.

    Args:
        config: a configuration, or its ``model_dump(mode="json")``.
        include_metrics: also return `METRIC_KEYS`.
    """
    dumped = config.model_dump(mode="json") if isinstance(config, Config) else dict(config)
    settings = {".".join(keys): value for keys, value in flatten(dumped).items()}
    return {
        key: value
        for key, value in settings.items()
        if not _matches(key, RUNTIME_KEYS) or (include_metrics and _matches(key, METRIC_KEYS))
    }


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _show(value: Any) -> str:
    return "not set" if value is _MISSING else json.dumps(value)
