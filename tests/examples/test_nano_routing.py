"""`examples/nano_routing.py` against the package: same weights and batches, same losses, gradients and ids."""

import ast
import importlib.util
import json
import sys

import numpy as np
import pytest
import torch

from multitask_vl.config import load_config
from multitask_vl.data.batch import Batch
from multitask_vl.models.build import build_model, load_tokenizer
from tests.tiny_run import ROOT

SCRIPT = ROOT / "examples" / "nano_routing.py"
ROUTING = {"vqa": "mul", "gqa": "add", "nlvr2": "mm1", "coco_caption": "mm2"}
EXAMPLES = [
    ("a", "vqa: what color is the large star?", "red"),
    ("b", "vqa: is there a small striped thing left of the circle?", "no"),
    ("c", "vqa: how many things are there?", "3"),
]


@pytest.fixture(scope="module")
def nano():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("nano_routing", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(nano):
    """The package's model of the quickstart with a function per task, and the script's with the same weights."""
    overrides = [f"routing.function.{task}={name}" for task, name in ROUTING.items()]
    # random weights: the logits of the pretrained ones are so large that their rounding alone exceeds 1e-5
    config = load_config(ROOT / "configs" / "controls" / "random_bart.yaml", [*overrides, "method.rank=8"])
    tokenizer = load_tokenizer(config.backbone)
    package = build_model(config, tokenizer).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in package.trainable_parameters().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    lm = nano.BartForConditionalGeneration(package.lm.config)
    script = nano.NanoRouting(lm, config.visual.feature_dim, ROUTING, rank=8).eval()
    script.load_state_dict(package.state_dict())
    return package, script, tokenizer, config


@pytest.fixture(scope="module")
def features():
    """Random grid features by image key."""
    rng = np.random.default_rng(0)
    values = {key: rng.standard_normal((16, 512)).astype(np.float32) for key in "abc"}

    class ByKey:
        def __getitem__(self, keys):
            return torch.from_numpy(np.stack([values[key] for key in keys]))

    return ByKey()


def both_batches(nano, tokenizer, features, task):
    """The same rows for the script and for the package."""
    batch = nano.collate(task, EXAMPLES, tokenizer, features)
    tensors = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    return batch, Batch(task=task, ids=list("abc"), features=batch["features"].unsqueeze(1), **tensors)


@pytest.mark.parametrize("task", ROUTING)
def test_nano_losses_and_gradients_equal_package(nano, models, features, task):
    package, script, tokenizer, _ = models
    ours, theirs = both_batches(nano, tokenizer, features, task)
    losses, expected = script(ours), package(theirs)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=0)
    for model, values in ((script, losses), (package, expected)):
        model.zero_grad()
        nano.mean_loss(values, ours["labels"]).backward()
    gradients = {name: p.grad for name, p in script.named_parameters() if p.grad is not None}
    reference = {name: p.grad for name, p in package.named_parameters() if p.grad is not None}
    assert gradients.keys() == reference.keys()
    assert sum(f".down.{task}." in name for name in gradients) == 30  # weight and bias in 6 encoder and 9 decoder sites
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, reference[name], atol=1e-5, rtol=0, msg=lambda text, at=name: f"{at}: {text}"
        )


@pytest.mark.parametrize("task", ROUTING)
def test_nano_greedy_ids_equal_package(nano, models, features, task):
    package, script, tokenizer, config = models
    ours, theirs = both_batches(nano, tokenizer, features, task)
    decoding = config.tasks["vqa"].decoding
    assert torch.equal(script.generate(ours, decoding.max_length), package.generate(theirs, decoding))


def test_nano_trains_what_the_package_trains(models):
    package, script, _, _ = models
    trained = {name for name, parameter in script.named_parameters() if parameter.requires_grad}
    assert trained == package.trainable_parameters().keys()


def test_nano_is_one_short_file_without_the_package():
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 300
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    third_party = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert third_party == {"numpy", "torch", "transformers"}


def test_nano_trains_and_prints_both_accuracies(nano, tmp_path, monkeypatch, capsys):
    world, folder = tmp_path / "world", tmp_path / "features"
    for name in (world / "vqa", world / "gqa", folder):
        name.mkdir(parents=True)
    for split in ("train", "val"):
        questions = [{"question_id": n, "image_id": n, "question": "is there a red star?"} for n in range(70)]
        annotations = [{"question_id": n, "multiple_choice_answer": "yes"} for n in range(70)]
        (world / f"vqa/v2_OpenEnded_world_{split}_questions.json").write_text(json.dumps({"questions": questions}))
        (world / f"vqa/v2_world_{split}_annotations.json").write_text(json.dumps({"annotations": annotations}))
        items = {str(n): {"imageId": f"{n:012d}", "question": "is it red?", "answer": "no"} for n in range(70)}
        (world / f"gqa/{split}_balanced_questions.json").write_text(json.dumps(items))
    np.save(folder / "features.npy", np.random.default_rng(0).standard_normal((70, 16, 512)).astype(np.float16))
    (folder / "keys.txt").write_text("".join(f"{n:012d}\n" for n in range(70)))
    arguments = ["nano", "--world", str(world), "--features", str(folder), "--steps", "12", "--limit", "8"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(nano, "BATCH_SIZE", 8)
    nano.main()
    printed = capsys.readouterr().out
    losses = [float(line.split("loss ")[1]) for line in printed.splitlines() if "loss" in line]
    assert losses[2] < losses[0]  # the last step's loss against the first step's
    assert "vqa: validation accuracy 100.0, shuffled-image control 100.0" in printed


def test_nano_without_features_names_the_commands(nano, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nano", "--features", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_info:
        nano.main()
    assert exit_info.value.code == 2
    assert "no features.npy in" in capsys.readouterr().err
