"""Are the files that the embedded study makes of a world what they should be: perfect features, less to train on?"""

import json
from pathlib import Path

import numpy as np
import pytest

from multitask_vl.config import load_config
from multitask_vl.data.store.feature_store import FeatureStore, check_manifest
from multitask_vl.synthetic.build import build, image_id
from multitask_vl.synthetic.questions import staged_scene
from multitask_vl.synthetic.statements import pair_set
from multitask_vl.synthetic.writers import FILES, image_key, pair_key
from studies.synthetic_world import symbolic_store
from studies.synthetic_world.subset import write_subset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "world"
    build(folder, scale=0.004, processes=1)
    return folder


def test_symbolic_features_are_what_was_drawn(world):
    assert symbolic_store.main(["--world", str(world)]) == 0
    config = load_config(ROOT / "configs" / "controls" / "symbolic.yaml", [f"data_dir={world}"])
    store = FeatureStore(world / config.features.store)
    assert check_manifest(store.manifest, config.clip, config.visual) == []
    assert set(store.keys()) == {path.stem for path in (world / "images").iterdir()}
    scenes = {image_key(image_id("report", n)): staged_scene(0, "report", n) for n in range(8)}
    pairs = pair_set(0, "heldout", 2).pairs
    scenes |= {pair_key("heldout", 2, n, side): pair[side] for n, pair in enumerate(pairs) for side in (0, 1)}
    for key, scene in scenes.items():
        cells = store.get(key)
        told = {
            cell: {symbolic_store.CHANNELS[c] for c in np.flatnonzero(row)}
            for cell, row in enumerate(cells)
            if row.any()
        }
        assert told == {
            thing.cell: {
                "present",
                f"size {thing.size}",
                f"pattern {thing.pattern}",
                f"color {thing.color}",
                f"shape {thing.shape}",
            }
            for thing in scene.objects
        }


def test_symbolic_features_need_a_world(tmp_path, capsys):
    assert symbolic_store.main(["--world", str(tmp_path)]) == 2
    assert "8 of 8 scene graph files" in capsys.readouterr().err


def test_a_subset_is_the_first_part_with_all_that_belongs_to_it(world, tmp_path):
    whole = write_subset(world, tmp_path / "1", share=1)
    half = write_subset(world, tmp_path / "2", share=2)
    assert all(0.3 * whole[task] <= half[task] <= 0.7 * whole[task] for task in whole)
    kept = {image["cocoid"] for image in json.loads((tmp_path / "2" / "dataset_coco.json").read_text())["images"]}
    questions = json.loads((tmp_path / "2" / "vqa_questions.json").read_text())["questions"]
    annotations = json.loads((tmp_path / "2" / "vqa_annotations.json").read_text())["annotations"]
    assert [one["question_id"] for one in questions] == [one["question_id"] for one in annotations]
    everything = json.loads((world / FILES["vqa_questions"].format(split="train")).read_text())["questions"]
    assert questions == [one for one in everything if one["image_id"] in kept]
    first, again = ((tmp_path / n / "nlvr2.json").read_text() for n in "12")
    assert first.startswith(again)
