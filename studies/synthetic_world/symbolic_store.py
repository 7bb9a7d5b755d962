"""Feature store of a perfect image encoder: python -m studies.synthetic_world.symbolic_store --world DIR

Each grid cell contains the attributes of its object, read from the scene graphs of a synthetic world: presence, then
one-hot size, pattern, color and shape. An empty cell is all zeros. Only for `configs/controls/symbolic.yaml`, an upper
bound for the features of any image encoder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multitask_vl.data.store.manifest import Manifest
from multitask_vl.data.store.writer import write_store
from multitask_vl.errors import InputError, cli_errors
from multitask_vl.synthetic.scenes import ATTRIBUTES, CANVAS, CELL, GRID, SPLITS, VALUES
from multitask_vl.synthetic.writers import FILES

CHANNELS = ["present", *(f"{name} {value}" for name in ATTRIBUTES for value in VALUES[name])]
MANIFEST = Manifest(
    encoder="symbolic",
    weights_tag="scene_graphs",
    weights_sha256=None,
    image_size=CANVAS,
    resize="squash",
    mean=(0, 0, 0),
    std=(1, 1, 1),
    layer="none",
    grid=(GRID, GRID),
    dim=len(CHANNELS),
)


def symbolic_features(graph: dict[str, Any]) -> np.ndarray:
    """Features of an image [GRID * GRID, len(CHANNELS)], row-major, 0 or 1, from its scene graph."""
    cells = np.zeros((GRID * GRID, len(CHANNELS)), np.float16)
    for thing in graph["objects"].values():
        size, pattern, color = thing["attributes"]
        row = int((thing["y"] + thing["h"] / 2) // CELL)
        column = int((thing["x"] + thing["w"] / 2) // CELL)
        cell = cells[row * GRID + column]
        cell[0] = 1
        for name, value in {"size": size, "pattern": pattern, "color": color, "shape": thing["name"]}.items():
            cell[CHANNELS.index(f"{name} {value}")] = 1
    return cells


def read_graphs(world: Path) -> dict[str, Any]:
    """Image key -> scene graph, for every image of a world.

    Raises:
        InputError: a file is missing.
    """
    paths = [world / FILES[kind].format(split=split) for kind in ("gqa_scenes", "nlvr2_scenes") for split in SPLITS]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]} is missing ({len(missing)} of {len(paths)} scene graph files): build the world first: "
            f"multitask-vl make-synthetic --out {world}"
        )
    return {key: graph for path in paths for key, graph in json.loads(path.read_text()).items()}


@cli_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, write the store, print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="folder of a synthetic world")
    parser.add_argument("--store", type=Path, help="file to write; default: features_symbolic.h5 in the world")
    options = parser.parse_args(argv)
    graphs = read_graphs(options.world)
    store = options.store or options.world / "features_symbolic.h5"
    write_store(store, MANIFEST, {key: symbolic_features(graph) for key, graph in graphs.items()})
    print(f"{store}: {len(graphs):,} images, {GRID}x{GRID}x{len(CHANNELS)}, {store.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
