"""Real photographs, questions and captions through the commands, at small sizes."""

from __future__ import annotations

import json

import pytest

from tests import tiny_run
from tests.overfit_items import COUNT, write_real_items

SMALL = [
    "vision.model=bundled:clip/tiny_clip.json",
    "vision.pretrained=bundled:clip/model.safetensors",
    "vision.image_size=128",
    "visual.feature_dim=512",
    "visual.pool=null",
    "backbone.config.d_model=64",
    "backbone.config.encoder_layers=2",
    "backbone.config.decoder_layers=2",
    "backbone.config.encoder_attention_heads=4",
    "backbone.config.decoder_attention_heads=4",
    "backbone.config.encoder_ffn_dim=128",
    "backbone.config.decoder_ffn_dim=128",
    # std of new weights: at this width the default of 0.02 makes attention too weak to train within a test
    "backbone.config.init_std=0.1",
    "tracking.trackers=[]",
]
NUM_ITEMS = 24
pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.fixture(scope="module")
def data(shared):
    return shared / "data"


@pytest.fixture(scope="module")
def photo_store(data, tmp_path_factory):
    """Features of the photographs, extracted once."""
    store = tmp_path_factory.mktemp("store") / "photos.h5"
    overrides = [*SMALL, f"features.store={store}", f"features.images=[{data / 'coco_photos/images'}]"]
    config = "configs/examples/overfit_real_photos.yaml"
    assert tiny_run.launch("extract", "--config", config, *overrides) == 0
    return store


def paths(folder, data, store) -> list[str]:
    """Overrides that keep all files of a run in ``folder``."""
    return [
        f"run_dir={folder / 'run'}",
        f"cache_dir={folder / 'cache'}",
        f"features.store={store}",
        f"backbone.tokenizer={data / 'bart_tokenizer'}",
    ]


def test_sixteen_real_questions_overfit(data, photo_store, tmp_path):
    write_real_items(data, tmp_path)
    assert len(json.loads((tmp_path / "questions.json").read_text())["questions"]) == COUNT
    overrides = [
        *SMALL,
        *paths(tmp_path, data, photo_store),
        *(
            f"tasks.vqa.splits.{split}.{kind}={tmp_path / f'{kind}.json'}"
            for split in ("train", "test")
            for kind in ("questions", "annotations")
        ),
        "training.max_steps=100",
        "training.lr=2e-3",
    ]
    assert tiny_run.launch("train", "--config", "configs/examples/overfit_real_photos.yaml", *overrides) == 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["splits"]["test"]["tasks"]["vqa"]
    assert scores["count"] == COUNT
    assert scores["value"] == 100.0


def test_real_photos_run_completes(data, photo_store, tmp_path):
    """All tasks; of the drawings only some."""
    lines = (data / "nlvr1/dev_subset.json").read_text().splitlines()[:NUM_ITEMS]
    (tmp_path / "drawings.json").write_text("\n".join(lines) + "\n")
    (tmp_path / "drawings").mkdir()
    for line in lines:
        name = f"dev-{json.loads(line)['identifier']}-0.png"
        (source,) = (data / "nlvr1/images").rglob(name)
        (tmp_path / "drawings" / name).symlink_to(source)
    drawings = tmp_path / "drawings.h5"
    config = "configs/examples/real_photos.yaml"
    images = [f"features.store={drawings}", f"features.images=[{tmp_path / 'drawings'}]"]
    assert tiny_run.launch("extract", "--config", config, *SMALL, *images) == 0
    photos = data / "coco_photos"
    overrides = [
        *SMALL,
        *paths(tmp_path, data, f"[{photo_store},{drawings}]"),
        "training.max_steps=3",
        "evaluation.caption_tokenizer=python",
        *(f"tasks.vqa.splits.{split}.questions={photos / 'vqav2_questions.json'}" for split in ("train", "test")),
        *(f"tasks.vqa.splits.{split}.annotations={photos / 'vqav2_annotations.json'}" for split in ("train", "test")),
        *(f"tasks.nlvr2.splits.{split}.items={tmp_path / 'drawings.json'}" for split in ("train", "test")),
        *(f"tasks.coco_caption.splits.{split}.captions={photos / 'captions.json'}" for split in ("train", "test")),
        "tasks.coco_caption.scorers=[Bleu,CIDEr]",
        "tasks.coco_caption.decoding.max_length=8",
    ]
    assert tiny_run.launch("train", "--config", config, *overrides) == 0
    tasks = json.loads((tmp_path / "run" / "scores.json").read_text())["splits"]["test"]["tasks"]
    assert {name: task["count"] for name, task in tasks.items()} == {"vqa": 13, "nlvr2": NUM_ITEMS, "coco_caption": 56}
    written = {path.name for path in (tmp_path / "run" / "submission" / "test").iterdir()}
    assert len(written) == 3
