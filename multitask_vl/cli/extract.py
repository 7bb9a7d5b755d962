"""Extract image features into a feature store.

Reads `vision`, `features` and `data_dir` of the configuration and fills `features.store` with the features of every
image of `features.images`: folders, tar shards, lists. Run the same command again to resume after an interruption, to
add new images or to extract corrupt rows again. Several processes share the work if `features.shards` is at least their
number: torchrun, accelerate launch, srun or a SLURM array, each process with the same command.

Exit codes: 0 the store is complete; 1 some images could not be read (listed in failures.jsonl next to the store), the
rest is done; 2 bad input; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from multitask_vl.errors import EXIT_FAILURE
from multitask_vl.logging import get_logger

if TYPE_CHECKING:
    from feature_extraction.extract import Summary

logger = get_logger(__name__)
EXIT_INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--config", type=Path, required=True, help="YAML file with vision, features and data_dir")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, such as features.num_workers=2")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from multitask_vl.config import load_config

    config = load_config(args.config, args.overrides)
    import torch

    from feature_extraction.extract import extract
    from multitask_vl.models.kernels.cpu_precision import slow_precision_warning

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if note := slow_precision_warning("features.precision", config.features.precision, device):
        logger.warning(note)
    try:
        summary = extract(config)
    except KeyboardInterrupt:
        logger.warning("stopped; stored features are kept and the same command resumes")
        return EXIT_INTERRUPTED
    print_summary(summary, config.visual.feature_dim)
    return 0 if summary.complete else EXIT_FAILURE


def print_summary(summary: Summary, feature_dim: int) -> None:
    """Print what was extracted and what needs attention.

    Args:
        feature_dim: the configured ``visual.feature_dim``.
    """
    from feature_extraction.failures import FAILURES_FILE

    manifest = summary.manifest
    grid = "x".join(map(str, (*manifest.grid, manifest.dim)))
    done = summary.skipped + summary.extracted
    rate = f" at {summary.extracted / summary.wall_s:,.1f} images/s" if summary.extracted else ""
    print(
        f"{summary.store}: {done:,} of {summary.images:,} images ({summary.extracted:,} new{rate}), {grid} float16, "
        f"{summary.size_bytes / 1e6:,.1f} MB"
    )
    if summary.failures:
        first = summary.failures[0]
        print(
            f"{len(summary.failures):,} images could not be read (first: {first['path']}: {first['reason']}); all of "
            f"them: {summary.store.with_name(FAILURES_FILE)}. Fix or remove them and run the same command"
        )
    if corrupt := summary.corrupt_rows:
        print(f"{len(corrupt):,} stored rows were corrupt and were extracted again (first: {corrupt[0]})")
    if summary.extra_rows:
        print(f"{summary.extra_rows:,} rows of the store have no image in features.images; they are kept")
    if summary.rotated:
        print(f"{summary.rotated:,} images were rotated by their EXIF orientation")
    if summary.non_images:
        print(f"{summary.non_images:,} files in the image folders are not images")
    if summary.duplicate_files:
        print(f"{summary.duplicate_files:,} files duplicate others of the same name and count once")
    if manifest.dim != feature_dim:
        logger.warning(
            f"training on this store needs visual.feature_dim={manifest.dim}; the configuration has {feature_dim}"
        )
