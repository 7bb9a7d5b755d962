"""May this run go on from that checkpoint: what of a configuration decides training, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from multitask_vl.config.resolved import flatten
from multitask_vl.config.schema import Config

MEASURED = ("evaluation.final", "evaluation.caption_tokenizer", "tasks.*.decoding.*")
"""Keys that decide what a score is of, though not what is trained."""
MAY_DIFFER = (
    "run_dir",
    "cache_dir",
    "evaluation.*",
    "tracking.*",
    "tasks.*.decoding.*",
    "features.images",
    "features.shards",
    "features.compile",
    "features.read",
    "features.local_copy",
    "features.batch_size",
    "features.workers",
    "features.precision",
    "training.resume",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.keep_best*",
    "training.on_nonfinite",
    "training.max_skips",
    "training.workers",
    "training.micro_batch_size",
    "training.on_oom",
    "training.gradient_checkpointing",
    "training.compile",
)
"""Keys that a resumed run may change: they decide where things go, what is measured and how memory is used;
and what happens to a step that would have ended the run."""


def fingerprint(config: Config | Mapping[str, Any]) -> str:
    """SHA-256 (hex) of everything that decides training, the same on every machine.

    Args:
        config: a configuration, or its ``model_dump(mode="json")`` as kept in a checkpoint.
    """
    decisive = {".".join(keys): value for keys, value in _decisive(config).items()}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def differences(old: Config | Mapping[str, Any], new: Config | Mapping[str, Any], measured: bool = False) -> list[str]:
    """What forbids going on from ``old`` with ``new``: lines such as ``training.lr: was 0.001, is 0.0003``, or none.

    Args:
        old: the configuration that the checkpoint was made with, or its ``model_dump(mode="json")``.
        new: the configuration now, likewise.
        measured: tell differences of `MEASURED` as well.
    """
    before, now, defaults = (_decisive(one, measured) for one in (old, new, Config()))
    lines = []
    for keys in dict.fromkeys([*before, *now]):
        # a key that was not known when the checkpoint was made: what it does by default was done then
        was, is_ = before.get(keys, defaults.get(keys, _Absent)), now.get(keys, _Absent)
        if was != is_:
            lines.append(f"{'.'.join(keys)}: was {_told(was)}, is {_told(is_)}")
    return lines


class _Absent:
    """Stands for a key that one side does not have; None is a value."""


def _told(value: Any) -> str:
    return "not set" if value is _Absent else json.dumps(value)


def _decisive(config: Config | Mapping[str, Any], measured: bool = False) -> dict[tuple[str, ...], Any]:
    dumped = config.model_dump(mode="json") if isinstance(config, Config) else dict(config)
    found = {}
    for keys, value in flatten(dumped).items():
        name = ".".join(keys)
        may_differ = any(fnmatchcase(name, pattern) for pattern in MAY_DIFFER)
        if not may_differ or (measured and any(fnmatchcase(name, pattern) for pattern in MEASURED)):
            found[keys] = value
    return found
