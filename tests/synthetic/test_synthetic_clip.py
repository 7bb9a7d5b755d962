"""Bundled tiny CLIP: its accuracy and files, its pretraining, and the pretraining commands."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import open_clip
import pytest
import torch
from safetensors import safe_open

from multitask_vl.errors import EXIT_BAD_INPUT, InputError
from multitask_vl.synthetic.pretraining import __main__ as command
from multitask_vl.synthetic.pretraining import clip_pretrain, clip_probe
from multitask_vl.synthetic.pretraining.clip_captions import (
    CONTEXT_LENGTH,
    NOTHING,
    VALUE_CAPTIONS,
    VOCABULARY,
    full_caption,
    quadrant_caption,
    region_captions,
    tokenize,
)
from multitask_vl.synthetic.pretraining.clip_data import (
    SMALL_CANVAS,
    cell_values,
    multi_object_batch,
    single_object_batch,
)
from multitask_vl.synthetic.pretraining.clip_model import (
    BUNDLED_CLIP,
    CONFIG_NAME,
    WEIGHTS_NAME,
    cell_embeddings,
    enlarge_clip,
    grid_features,
    init_clip,
    load_clip,
    normalize_pixels,
    save_clip,
)
from multitask_vl.synthetic.pretraining.clip_pretrain import Recipe, contrastive_loss, stage1_loss, stage2_loss
from multitask_vl.synthetic.pretraining.thresholds import Threshold, format_thresholds
from multitask_vl.synthetic.render import render
from multitask_vl.synthetic.scenes import ATTRIBUTES, CANVAS, VALUES, Appearance, Object, Scene


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small convolutions are slower with several threads on a shared machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- bundled weights


def test_bundled_clip_passes_every_threshold():
    results = clip_probe.check_thresholds(seed=2026, num_fit=300, num_test=100, num_single=60)
    assert {result.name for result in results} == {f"clip/{name}" for name in clip_probe.REQUIRED_ACCURACY}
    assert all(result.passed for result in results), format_thresholds(results)


def test_bundled_clip_loads_through_open_clip():
    weights = BUNDLED_CLIP / WEIGHTS_NAME
    assert weights.stat().st_size <= 8_000_000
    assert (BUNDLED_CLIP / "README.md").read_text().startswith("# Tiny CLIP")
    with safe_open(weights, "pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
        assert all(file.get_tensor(key).dtype in (torch.float16, torch.int64) for key in file.keys())  # noqa: SIM118
    assert list(recipe.values()) == list(asdict(Recipe(seed=recipe["seed"])).values())
    open_clip.add_model_config(BUNDLED_CLIP / CONFIG_NAME)
    theirs = open_clip.create_model("tiny_clip", pretrained=str(weights)).eval()
    ours = load_clip()
    assert type(theirs.visual) is open_clip.modified_resnet.ModifiedResNet
    assert theirs.visual.preprocess_cfg["mean"] == open_clip.OPENAI_DATASET_MEAN
    pixels = normalize_pixels(multi_object_batch(3, 0, 2, 4).images)
    with torch.no_grad():
        grid = grid_features(ours, pixels)
        assert grid.shape == (2, 512, 4, 4)
        torch.testing.assert_close(grid, grid_features(theirs, pixels), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.encode_image(pixels), theirs.encode_image(pixels), atol=1e-4, rtol=1e-4)


def test_bundled_text_encoder_names_cell_content():
    model = load_clip()
    scene = Scene((Object("large", "striped", "green", "star", 45, 80, 23),), 4)
    captions, spans = region_captions()
    with torch.no_grad():
        cells = cell_embeddings(model, grid_features(model, normalize_pixels(render(scene)[None])))[0]
        scores = cells @ model.encode_text(tokenize(captions), normalize=True).T
    occupied = scores[scene.objects[0].cell]
    predicted = {name: VALUES[name][occupied[span].argmax()] for name, span in spans.items()}
    assert predicted == dict(zip(ATTRIBUTES, scene.objects[0].appearance, strict=True))
    assert scores[15].argmax() == captions.index(NOTHING)  # the opposite corner is empty


# ---- captions and batches


def test_captions_and_token_ids():
    assert full_caption(Appearance("large", "striped", "red", "star")) == "a large striped red star"
    thing = Object("large", "striped", "red", "star", 10, 10, 23)
    assert quadrant_caption(thing) == "a red star at the top left"
    captions, spans = region_captions()
    assert captions[-1] == NOTHING
    assert captions[spans["shape"]] == [f"a {shape}" for shape in VALUES["shape"]]
    assert captions[spans["color"]][0] == "a red thing"
    tokens = tokenize([quadrant_caption(thing), NOTHING])
    assert tokens.shape == (2, CONTEXT_LENGTH)
    assert tokens.argmax(1).tolist() == [8, 2]  # the end token has the highest id, where open_clip pools
    assert tokens.max() == len(VOCABULARY) - 1
    with pytest.raises(KeyError, match="heart"):
        tokenize(["a heart"])


def test_batches_are_functions_of_seed_and_step():
    first, again, other = (single_object_batch(0, step, 4) for step in (5, 5, 6))
    assert np.array_equal(first.images, again.images)
    assert first.captions == again.captions != other.captions
    assert first.images.shape == (4, SMALL_CANVAS, SMALL_CANVAS, 3)
    for name, values in first.values.items():
        assert all(VALUES[name][k] in caption for k, caption in zip(values, first.captions, strict=True))
    batch = multi_object_batch(0, 5, 6, 3)
    assert batch.images.shape == (6, CANVAS, CANVAS, 3)
    assert batch.matches.diagonal().all()
    counts = (batch.values["shape"] >= 0).sum(1)
    assert 1 <= counts.min() <= counts.max() <= 3
    assert all(torch.equal(batch.values["color"] >= 0, values >= 0) for values in batch.values.values())
    values = cell_values([Scene((Object("small", "dotted", "blue", "cross", 80, 40, 14),))])
    assert values["color"][0, 6] == VALUES["color"].index("blue")
    assert (values["color"] >= 0).sum() == 1


def test_normalize_pixels():
    pixels = normalize_pixels(np.full((1, 2, 2, 3), 255, np.uint8))
    expected = (1 - torch.tensor(open_clip.OPENAI_DATASET_MEAN)) / torch.tensor(open_clip.OPENAI_DATASET_STD)
    torch.testing.assert_close(pixels[0, :, 0, 0], expected)
    assert normalize_pixels(np.zeros((2, 4, 4, 3), np.uint8)).is_contiguous(memory_format=torch.channels_last)


# ---- pretraining


def test_contrastive_loss_with_several_positives():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    target = torch.arange(2)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrastive_loss(logits, torch.eye(2, dtype=torch.bool)), expected)
    all_positive = contrastive_loss(torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(all_positive, torch.tensor(2.0).log())


def test_init_and_enlarge_clip():
    small = init_clip(1, SMALL_CANVAS)
    assert all((block.bn3.weight == 1).all() for stage in (small.visual.layer1, small.visual.layer4) for block in stage)
    assert torch.equal(init_clip(1, SMALL_CANVAS).text_projection, small.text_projection)
    large = enlarge_clip(small)
    key = "visual.attnpool.positional_embedding"
    before, after = small.state_dict(), large.state_dict()
    assert (before[key].shape, after[key].shape) == ((5, 512), (17, 512))
    torch.testing.assert_close(after[key][0], before[key][0])
    torch.testing.assert_close(after[key][1], before[key][1])  # corners stay corners
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name != key)


def test_clip_command_lowers_losses_and_saves(tmp_path, capsys):
    argv = ["clip", "--out", str(tmp_path / "clip"), "--seed", "7", "--stage1-batch-size", "16"]
    argv += ["--stage1-max-steps", "14", "--stage2-batch-size", "8", "--stage2-steps", "10", "--warmup-steps", "2"]
    assert command.main(argv) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in printed if line.startswith("{")]
    first, second = ([row["loss"] for row in rows if row["stage"] == stage] for stage in (1, 2))
    assert first[-1] < 0.98 * first[0]
    assert second[-1] < 0.7 * second[0]
    assert "wrote" in printed[-1]
    assert not load_clip(tmp_path / "clip").training
    with safe_open(tmp_path / "clip" / WEIGHTS_NAME, "pt") as file:
        assert json.loads(file.metadata()["recipe"])["seed"] == 7
    weak = clip_probe.check_thresholds(1, tmp_path / "clip", num_fit=40, num_test=20, num_single=8)
    assert not all(result.passed for result in weak)


def test_stage1_ends_when_shape_is_learned(monkeypatch):
    def solved(model, *_):
        return sum(value.sum() for value in model.parameters()) * 0, dict.fromkeys(ATTRIBUTES, 1.0)

    monkeypatch.setattr(clip_pretrain, "stage1_loss", solved)
    recipe = Recipe(stage1_batch_size=2, stage1_max_steps=60, stage2_batch_size=2, stage2_steps=2, warmup_steps=1)
    rows = list(clip_pretrain.pretrain(recipe))
    assert max(row["step"] for row in rows if row.get("stage") == 1) == 20
    assert rows[-1]["images"] == (40, 4)


def test_losses_reach_every_weight():
    small = init_clip(0, SMALL_CANVAS).train()
    value_tokens = {name: tokenize(captions) for name, captions in VALUE_CAPTIONS.items()}
    loss, accuracies = stage1_loss(small, single_object_batch(0, 0, 4), value_tokens, 2.0)
    loss.backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in small.parameters())
    assert accuracies.keys() == set(ATTRIBUTES)
    large = enlarge_clip(small).train()
    captions, spans = region_captions()
    loss, parts = stage2_loss(large, multi_object_batch(0, 0, 4, 2), tokenize(captions), spans)
    loss.backward()
    assert all(value.grad is not None for value in large.parameters())
    assert 0 < parts["image"] < loss.item()


# ---- commands


def test_command_invalid_arguments(tmp_path, capsys):
    assert command.main([]) == EXIT_BAD_INPUT
    assert command.main(["clop"]) == EXIT_BAD_INPUT
    assert "unknown command 'clop'" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert command.main(["clip", "--out", str(tmp_path / "file")]) == EXIT_BAD_INPUT
    assert command.main(["clip", "--out", str(tmp_path / "new"), "--stage2-steps", "0"]) == EXIT_BAD_INPUT
    assert "--stage2-steps 0: must be 1 or more" in capsys.readouterr().err
    assert command.main(["--help"]) == 0
    assert "pretraining probe" in capsys.readouterr().out


def test_load_clip_names_missing_files(tmp_path):
    with pytest.raises(
        InputError, match=r"no tiny_clip\.json and no model\.safetensors; to create them: .*pretraining clip"
    ):
        load_clip(tmp_path)
    save_clip(init_clip(0, CANVAS), tmp_path, {"note": "random"})
    assert not load_clip(tmp_path).training


def test_probe_command_reports_missed_thresholds(monkeypatch, capsys):
    results = [Threshold("clip/color", 99.0, 95.0, 10), Threshold("bart/plain", 20.0, None, 10)]

    class Module:
        @staticmethod
        def check_thresholds(seed):
            assert seed == 4
            return results

    monkeypatch.setattr(command.importlib, "import_module", lambda name: Module)
    assert command.main(["probe", "clip", "--seed", "4"]) == 0
    assert "1 of 1 thresholds passed" in capsys.readouterr().out
    results[0] = Threshold("clip/color", 94.9, 95.0, 10)
    assert command.main(["probe", "--seed", "4", "--json"]) == command.EXIT_MISSED
    found = json.loads(capsys.readouterr().out)
    assert (found["seed"], found["passed"], len(found["thresholds"])) == (4, False, 4)
    table = format_thresholds(results)
    assert "MISS  clip/color" in table
    assert "not required" in table
    assert command.main(["probe", "clop"]) == EXIT_BAD_INPUT
