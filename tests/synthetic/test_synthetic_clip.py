"""Is the shipped tiny CLIP what its card says, does its recipe learn, and do the commands around it behave?"""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors import safe_open

from multitask_vl.errors import EXIT_BAD_INPUT, InputError
from multitask_vl.synthetic.pretraining import clip_captions, clip_pretrain, clip_probe, pretrain, probe
from multitask_vl.synthetic.pretraining.clip_captions import (
    NOTHING,
    WORDS,
    full_caption,
    placed_caption,
    region_candidates,
    tokenize,
)
from multitask_vl.synthetic.pretraining.clip_data import SMALL_CANVAS, cell_values, crowds, singles
from multitask_vl.synthetic.pretraining.clip_model import (
    CONFIG_NAME,
    SHIPPED,
    WEIGHTS_NAME,
    cell_embeddings,
    enlarged,
    fresh_clip,
    grid,
    load_clip,
    pixels_of,
    save_clip,
)
from multitask_vl.synthetic.pretraining.clip_pretrain import Recipe, both_ways, first_loss, second_loss
from multitask_vl.synthetic.pretraining.thresholds import Gate, table
from multitask_vl.synthetic.render import render
from multitask_vl.synthetic.scenes import ATTRIBUTES, CANVAS, VALUES, Look, Object, Scene


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small convolutions on a shared machine: more threads wait more than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- the shipped weights


def test_shipped_weights_pass_every_gate():
    found = clip_probe.gates(seed=2026, num_fit=700, num_test=200, num_lone=100)
    assert {gate.name for gate in found} == {f"clip/{name}" for name in clip_probe.TARGETS}
    assert all(gate.passed for gate in found), table(found)


def test_shipped_files_are_small_and_load_through_open_clip():
    weights = SHIPPED / WEIGHTS_NAME
    assert weights.stat().st_size <= 8_000_000
    assert (SHIPPED / "README.md").read_text().startswith("# Tiny CLIP")
    with safe_open(weights, "pt") as file:
        notes = file.metadata()
        assert all(file.get_tensor(key).dtype in (torch.float16, torch.int64) for key in file.keys())  # noqa: SIM118
    assert Recipe(**json.loads(notes["recipe"])).first_batch == Recipe().first_batch
    open_clip.add_model_config(SHIPPED / CONFIG_NAME)
    theirs = open_clip.create_model("tiny_clip", pretrained=str(weights)).eval()
    ours = load_clip()
    assert type(theirs.visual) is open_clip.modified_resnet.ModifiedResNet
    assert theirs.visual.preprocess_cfg["mean"] == open_clip.OPENAI_DATASET_MEAN
    pixels = pixels_of(crowds(3, 0, 2, 4).pictures)
    with torch.no_grad():
        cells = grid(ours, pixels)
        assert cells.shape == (2, 512, 4, 4)
        torch.testing.assert_close(cells, grid(theirs, pixels), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.encode_image(pixels), theirs.encode_image(pixels), atol=1e-4, rtol=1e-4)


def test_shipped_text_tower_names_what_a_cell_holds():
    model = load_clip()
    scene = Scene((Object("large", "striped", "green", "star", 45, 80, 23),), 4)
    captions, spans = region_candidates()
    with torch.no_grad():
        cells = cell_embeddings(model, grid(model, pixels_of(render(scene)[None])))[0]
        scores = cells @ model.encode_text(tokenize(captions), normalize=True).T
    here = scores[scene.objects[0].cell]
    named = {name: VALUES[name][here[span].argmax()] for name, span in spans.items()}
    assert named == dict(zip(ATTRIBUTES, scene.objects[0].look, strict=True))
    assert scores[15].argmax() == captions.index(NOTHING)  # the far corner is empty


# ---- captions and batches


def test_captions_and_their_numbers():
    assert full_caption(Look("large", "striped", "red", "star")) == "a large striped red star"
    thing = Object("large", "striped", "red", "star", 10, 10, 23)
    assert placed_caption(thing) == "a red star at the top left"
    captions, spans = region_candidates()
    assert captions[-1] == NOTHING
    assert captions[spans["shape"]] == [f"a {shape}" for shape in VALUES["shape"]]
    assert captions[spans["color"]][0] == "a red thing"
    tokens = tokenize([placed_caption(thing), NOTHING])
    assert tokens.shape == (2, clip_captions.CONTEXT)
    assert tokens.argmax(1).tolist() == [8, 2]  # the end mark has the highest number, and open_clip pools there
    assert tokens.max() == len(WORDS) - 1
    with pytest.raises(KeyError, match="heart"):
        tokenize(["a heart"])


def test_batches_are_functions_of_seed_and_step():
    one, again, other = singles(0, 5, 4), singles(0, 5, 4), singles(0, 6, 4)
    assert np.array_equal(one.pictures, again.pictures)
    assert one.captions == again.captions != other.captions
    assert one.pictures.shape == (4, SMALL_CANVAS, SMALL_CANVAS, 3)
    for name, values in one.values.items():
        assert all(VALUES[name][k] in caption for k, caption in zip(values, one.captions, strict=True))
    crowd = crowds(0, 5, 6, 3)
    assert crowd.pictures.shape == (6, CANVAS, CANVAS, 3)
    assert crowd.truth.diagonal().all()
    counts = (crowd.values["shape"] >= 0).sum(1)
    assert 1 <= counts.min() <= counts.max() <= 3
    assert all(torch.equal(crowd.values["color"] >= 0, values >= 0) for values in crowd.values.values())
    place = cell_values([Scene((Object("small", "dotted", "blue", "cross", 80, 40, 14),))])
    assert place["color"][0, 6] == VALUES["color"].index("blue")
    assert (place["color"] >= 0).sum() == 1


def test_pixels_are_normalised_as_clips():
    pixels = pixels_of(np.full((1, 2, 2, 3), 255, np.uint8))
    expected = (1 - torch.tensor(open_clip.OPENAI_DATASET_MEAN)) / torch.tensor(open_clip.OPENAI_DATASET_STD)
    torch.testing.assert_close(pixels[0, :, 0, 0], expected)
    assert pixels_of(np.zeros((2, 4, 4, 3), np.uint8)).is_contiguous(memory_format=torch.channels_last)


# ---- the recipe


def test_contrastive_loss_with_several_true_pairs():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    plain = both_ways(logits, torch.eye(2, dtype=torch.bool))
    target = torch.arange(2)
    cross = torch.nn.functional.cross_entropy
    torch.testing.assert_close(plain, (cross(logits, target) + cross(logits.T, target)) / 2)
    twins = both_ways(torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(twins, torch.tensor(2.0).log())


def test_fresh_weights_and_enlarging():
    small = fresh_clip(1, SMALL_CANVAS)
    assert all((block.bn3.weight == 1).all() for stage in (small.visual.layer1, small.visual.layer4) for block in stage)
    assert torch.equal(fresh_clip(1, SMALL_CANVAS).text_projection, small.text_projection)
    large = enlarged(small)
    key = "visual.attnpool.positional_embedding"
    before, after = small.state_dict(), large.state_dict()
    assert (before[key].shape, after[key].shape) == ((5, 512), (17, 512))
    torch.testing.assert_close(after[key][0], before[key][0])
    torch.testing.assert_close(after[key][1], before[key][1])  # corners stay corners
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name != key)


def test_recipe_lowers_its_losses(tmp_path, capsys):
    argv = ["--out", str(tmp_path / "clip"), "--seed", "7", "--first-batch", "32", "--second-batch", "12"]
    assert pretrain.main(["clip", *argv, "--first-most", "21", "--second-steps", "14", "--warmup", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in printed if line.startswith("{")]
    first, second = ([row["loss"] for row in rows if row["stage"] == stage] for stage in (1, 2))
    assert first[-1] < 0.8 * first[0]
    assert second[-1] < 0.6 * second[0]
    assert "wrote" in printed[-1]
    made = load_clip(tmp_path / "clip")
    assert not made.training
    with safe_open(tmp_path / "clip" / WEIGHTS_NAME, "pt") as file:
        assert json.loads(file.metadata()["recipe"])["seed"] == 7
    weak = clip_probe.gates(1, tmp_path / "clip", num_fit=40, num_test=20, num_lone=8)
    assert not all(gate.passed for gate in weak)


def test_first_stage_ends_when_shape_is_known(monkeypatch):
    right = dict.fromkeys(ATTRIBUTES, 1.0)

    def solved(model, *rest):
        return sum(value.sum() for value in model.parameters()) * 0, right

    monkeypatch.setattr(clip_pretrain, "first_loss", solved)
    rows = list(clip_pretrain.pretrain(Recipe(first_batch=2, first_most=60, second_batch=2, second_steps=2, warmup=1)))
    assert max(row["step"] for row in rows if row.get("stage") == 1) == 20
    assert rows[-1]["pictures"] == (40, 4)


def test_losses_reach_every_weight_they_should():
    small = fresh_clip(0, SMALL_CANVAS).train()
    tokens = {name: tokenize(captions) for name, captions in clip_captions.VALUE_CAPTIONS.items()}
    loss, right = first_loss(small, singles(0, 0, 4), tokens, 2.0)
    loss.backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in small.parameters())
    assert right.keys() == set(ATTRIBUTES)
    large = enlarged(small).train()
    candidates, spans = region_candidates()
    loss, parts = second_loss(large, crowds(0, 0, 4, 2), tokenize(candidates), spans)
    loss.backward()
    assert all(value.grad is not None for value in large.parameters())
    assert 0 < parts["whole"] < loss.item()


# ---- commands


def test_pretrain_command_refuses_bad_input(tmp_path, capsys):
    assert pretrain.main([]) == EXIT_BAD_INPUT
    assert pretrain.main(["clop"]) == EXIT_BAD_INPUT
    assert "got 'clop'" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert pretrain.main(["clip", "--out", str(tmp_path / "file")]) == EXIT_BAD_INPUT
    assert pretrain.main(["clip", "--out", str(tmp_path / "new"), "--second-steps", "0"]) == EXIT_BAD_INPUT
    assert "must be at least 1" in capsys.readouterr().err


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"no tiny_clip\.json and no model\.safetensors; make them: .*pretrain clip"):
        load_clip(tmp_path)
    save_clip(fresh_clip(0, CANVAS), tmp_path, {"note": "random"})
    assert not load_clip(tmp_path).training


def test_probe_command_counts_misses(monkeypatch, capsys):
    gates = [Gate("clip/color", 99.0, 95.0, 10), Gate("bart/plain", 20.0, None, 10)]

    class Module:
        @staticmethod
        def gates(seed):
            assert seed == 4
            return gates

    monkeypatch.setattr(probe.importlib, "import_module", lambda name: Module)
    assert probe.main(["clip", "--seed", "4"]) == 0
    assert "1 of 1 required gates passed" in capsys.readouterr().out
    gates[0] = Gate("clip/color", 94.9, 95.0, 10)
    assert probe.main(["--seed", "4", "--json"]) == probe.EXIT_MISSED
    found = json.loads(capsys.readouterr().out)
    assert (found["seed"], found["passed"], len(found["gates"])) == (4, False, 4)
    assert "MISS  clip/color" in table(gates)
    assert "not required" in table(gates)
    assert probe.main(["clop"]) == EXIT_BAD_INPUT
