"""How do images become features: python launch/extract_features.py --config CONFIG [key=value ...]

Reads `clip`, `features` and `data_dir` of the configuration and fills `features.store` with the features of every
image of `features.images`: folders, tar shards, lists. Run the same command again to go on after an interruption, to
add new images or to redo damaged rows. Several processes share the work if `features.shards` is at least their number:
torchrun, accelerate launch, srun or a SLURM array, each process with the same command. `python -m feature_extraction`
is the same command.

Exit codes: 0 the store is complete; 1 some images could not be read (listed in failures.jsonl beside the store), the
rest is done; 2 bad input, nothing can be done before it is mended; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from feature_extraction.extract import Summary, extract
from feature_extraction.failures import FAILURES
from multitask_vl.config import load_config
from multitask_vl.errors import exits_cleanly
from multitask_vl.models.kernels.cpu_precision import slower_than_fp32

EXIT_SOME_FAILED = 1
EXIT_STOPPED = 130


@exits_cleanly
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file with clip, features and data_dir")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as features.workers=2")
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config, arguments.overrides)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if note := slower_than_fp32("features.precision", config.features.precision, device):
        print(f"note: {note}", file=sys.stderr)
    try:
        summary = extract(config)
    except KeyboardInterrupt:
        print("stopped; what is stored is kept, the same command goes on from here", file=sys.stderr)
        return EXIT_STOPPED
    tell(summary, config.visual.feature_dim)
    return 0 if summary.complete else EXIT_SOME_FAILED


def tell(summary: Summary, feature_dim: int) -> None:
    """Print what was done and what deserves a look."""
    manifest = summary.manifest
    grid = "x".join(map(str, (*manifest.grid, manifest.dim)))
    done = summary.skipped + summary.extracted
    rate = f" at {summary.extracted / summary.wall_s:,.1f} images/s" if summary.extracted else ""
    print(
        f"{summary.store}: {done:,} of {summary.images:,} images ({summary.extracted:,} new{rate}), {grid} float16, "
        f"{summary.size / 1e6:,.1f} MB"
    )
    if summary.failures:
        first = summary.failures[0]
        print(
            f"{len(summary.failures):,} images could not be read (first: {first['path']}: {first['reason']}); all of "
            f"them: {summary.store.with_name(FAILURES)}. Mend or remove them and run the same command"
        )
    if summary.damaged:
        print(f"{len(summary.damaged):,} stored rows were damaged and have been redone (first: {summary.damaged[0]})")
    if summary.beyond:
        print(f"{summary.beyond:,} rows of the store have no image in features.images; they stay")
    if summary.turned:
        print(f"{summary.turned:,} images were turned upright by their orientation tag")
    if summary.ignored:
        print(f"{summary.ignored:,} files in the image folders are no images")
    if summary.copies:
        print(f"{summary.copies:,} files are copies of others of the same name and count once")
    if manifest.dim != feature_dim:
        print(
            f"note: training on this store needs visual.feature_dim={manifest.dim}; the configuration says "
            f"{feature_dim}"
        )


if __name__ == "__main__":
    sys.exit(main())
