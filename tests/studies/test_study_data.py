"""Files that the synthetic study derives from a world: symbolic features, smaller train sets."""

import json
from pathlib import Path

import numpy as np
import pytest

from multitask_vl.config import load_config
from multitask_vl.data.store.feature_store import FeatureStore
from multitask_vl.data.store.manifest import check_manifest
from multitask_vl.synthetic.build import build_world, image_id
from multitask_vl.synthetic.questions import world_scene
from multitask_vl.synthetic.statements import pair_set
from multitask_vl.synthetic.writers import FILES, image_key, pair_key
from studies.synthetic_world import symbolic_store
from studies.synthetic_world.subset import write_subset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "world"
    build_world(folder, scale=0.004, processes=1)
    return folder


def test_symbolic_store_matches_scenes(world):
    assert symbolic_store.main(["--world", str(world)]) == 0
    config = load_config(ROOT / "configs" / "controls" / "symbolic.yaml", [f"data_dir={world}"])
    store = FeatureStore(world / config.features.store)
    assert check_manifest(store.manifest, config.vision, config.visual) == []
    assert set(store.keys()) == {path.stem for path in (world / "images").iterdir()}
    scenes = {image_key(image_id("test", n)): world_scene(0, "test", n) for n in range(8)}
    for number, pair in enumerate(pair_set(0, "ood", 2).pairs):
        scenes |= {pair_key("ood", 2, number, side): pair[side] for side in (0, 1)}
    for key, scene in scenes.items():
        stored = {
            cell: {symbolic_store.CHANNELS[c] for c in np.flatnonzero(row)}
            for cell, row in enumerate(store.get(key))
            if row.any()
        }
        assert stored == {
            thing.cell: {
                "present",
                f"size {thing.size}",
                f"pattern {thing.pattern}",
                f"color {thing.color}",
                f"shape {thing.shape}",
            }
            for thing in scene.objects
        }


def test_symbolic_store_without_world(tmp_path, capsys):
    assert symbolic_store.main(["--world", str(tmp_path)]) == 2
    assert "8 of 8 scene graph files" in capsys.readouterr().err


def test_subset_is_a_consistent_prefix(world, tmp_path):
    full = write_subset(world, tmp_path / "1", divisor=1)
    half = write_subset(world, tmp_path / "2", divisor=2)
    assert all(0.3 * full[task] <= half[task] <= 0.7 * full[task] for task in full)
    kept = {image["cocoid"] for image in json.loads((tmp_path / "2" / "dataset_coco.json").read_text())["images"]}
    questions = json.loads((tmp_path / "2" / "vqa_questions.json").read_text())["questions"]
    annotations = json.loads((tmp_path / "2" / "vqa_annotations.json").read_text())["annotations"]
    assert [row["question_id"] for row in questions] == [row["question_id"] for row in annotations]
    all_questions = json.loads((world / FILES["vqa_questions"].format(split="train")).read_text())["questions"]
    assert questions == [row for row in all_questions if row["image_id"] in kept]
    full_rows, half_rows = ((tmp_path / n / "nlvr2.json").read_text() for n in "12")
    assert full_rows.startswith(half_rows)
