"""Real photographs and questions through the same programs, at sizes that a test can afford."""

import json

import pytest

from tests import tiny_run
from tests.overfit_items import COUNT, write_real_items

SMALL = [
    "clip.model=embedded:clip/tiny_clip.json",
    "clip.pretrained=embedded:clip/model.safetensors",
    "clip.image_size=128",
    "visual.feature_dim=512",
    "visual.pool=null",
    "backbone.config.d_model=64",
    "backbone.config.encoder_layers=2",
    "backbone.config.decoder_layers=2",
    "backbone.config.encoder_attention_heads=4",
    "backbone.config.decoder_attention_heads=4",
    "backbone.config.encoder_ffn_dim=128",
    "backbone.config.decoder_ffn_dim=128",
    # spread of new weights: at this width the default 0.02 leaves attention too faint to find within a test
    "backbone.config.init_std=0.1",
    "tracking.trackers=[]",
]
pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.fixture(scope="module")
def data(shared):
    return shared / "data"


def paths(folder, data) -> list[str]:
    """Overrides that keep every file of a run inside ``folder``."""
    return [
        f"run_dir={folder / 'run'}",
        f"cache_dir={folder / 'cache'}",
        f"features.store={folder / 'features.h5'}",
        f"backbone.tokenizer={data / 'bart_tokenizer'}",
    ]


def test_sixteen_real_questions_are_learnt_by_heart(data, tmp_path):
    write_real_items(data, tmp_path)
    assert len(json.loads((tmp_path / "questions.json").read_text())["questions"]) == COUNT
    words = [
        *SMALL,
        *paths(tmp_path, data),
        f"features.images=[{data / 'coco_photos/images'}]",
        *(
            f"tasks.vqa.splits.{split}.{kind}={tmp_path / f'{kind}.json'}"
            for split in ("train", "report")
            for kind in ("questions", "annotations")
        ),
        "training.steps=100",
        "training.lr=2e-3",
    ]
    assert tiny_run.launch("extract_features", "--config", "configs/examples/overfit_real_photos.yaml", *words) == 0
    assert tiny_run.launch("train_multitask", "--config", "configs/examples/overfit_real_photos.yaml", *words) == 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["splits"]["report"]["tasks"]["vqa"]
    assert scores["count"] == COUNT
    assert scores["value"] == 100.0


def test_every_task_of_the_real_run_completes(data, tmp_path):
    words = [*SMALL, *paths(tmp_path, data), "training.steps=3", "evaluation.caption_tokenizer=python"]
    absolute = [
        f"features.images=[{data / 'coco_photos/images'},{data / 'nlvr1/images'}]",
        *(f"tasks.vqa.splits.{s}.questions={data / 'coco_photos/vqav2_questions.json'}" for s in ("train", "report")),
        *(
            f"tasks.vqa.splits.{s}.annotations={data / 'coco_photos/vqav2_annotations.json'}"
            for s in ("train", "report")
        ),
        *(f"tasks.nlvr2.splits.{s}.items={data / 'nlvr1/dev_subset.json'}" for s in ("train", "report")),
        *(f"tasks.coco_caption.splits.{s}.captions={data / 'coco_photos/captions.json'}" for s in ("train", "report")),
        "tasks.coco_caption.scorers=[Bleu,CIDEr]",
        "tasks.coco_caption.decoding.max_length=8",
    ]
    config = "configs/examples/real_photos.yaml"
    assert tiny_run.launch("extract_features", "--config", config, *words, *absolute) == 0
    assert tiny_run.launch("train_multitask", "--config", config, *words, *absolute) == 0
    tasks = json.loads((tmp_path / "run" / "scores.json").read_text())["splits"]["report"]["tasks"]
    assert {name: task["count"] for name, task in tasks.items()} == {"vqa": 13, "nlvr2": 452, "coco_caption": 56}
    written = {path.name for path in (tmp_path / "run" / "submission" / "report").iterdir()}
    assert len(written) == 3
