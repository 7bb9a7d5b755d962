"""The YAML files of `configs/`: they load, have a header, and contain the published values."""

import difflib
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from multitask_vl.config import load, load_config
from multitask_vl.config.resolved import flatten

CONFIGS = Path(__file__).parents[2] / "configs"
COMPLETE = sorted(
    path
    for path in CONFIGS.rglob("*.yaml")
    if path.relative_to(CONFIGS).parts[0] in ("base.yaml", "controls", "examples", "experiments", "training")
)
LAUNCHERS = sorted((CONFIGS / "accelerate").glob("*.yaml"))
SWEEPS = sorted((CONFIGS / "sweeps").glob("*.yaml"))
"""Read by tests/sweep/test_sweep.py."""
FRAGMENTS = sorted(set(CONFIGS.rglob("*.yaml")) - {*COMPLETE, *LAUNCHERS, *SWEEPS})
FOUR = ["vqa", "gqa", "nlvr2", "coco_caption"]


def _name(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def _composed(fragment: Path, tmp_path: Path) -> Path:
    layers = [CONFIGS / "base.yaml"]
    if fragment.parent.name == "routing":
        layers.append(CONFIGS / "tasks" / "vl_adapter.yaml")  # functions per task need the tasks
    if fragment.stem.startswith(("vqa_", "gqa_")):
        layers.append(CONFIGS / "tasks" / "official.yaml")  # these change one of all tasks
    path = tmp_path / "composed.yaml"
    path.write_text(yaml.safe_dump({"compose": [str(layer) for layer in [*layers, fragment]]}))
    return path


@pytest.mark.parametrize("path", COMPLETE, ids=_name)
def test_config_loads(path, tmp_path):
    loaded = load(path)
    folder = path.relative_to(CONFIGS).parts[0]
    if folder != "experiments":  # those are many, and alike in what is written
        loaded.write_resolved(tmp_path / "resolved.yaml")
        assert load(tmp_path / "resolved.yaml").config == loaded.config
    if folder not in ("base.yaml", "training"):
        assert loaded.config.method
        assert loaded.config.tasks
        name = _name(path).removeprefix("experiments/").removeprefix("examples/")
        assert name == loaded.config.run_dir.relative_to("runs").as_posix()


@pytest.mark.parametrize("path", FRAGMENTS, ids=_name)
def test_fragment_loads_over_base(path, tmp_path):
    loaded = load(_composed(path, tmp_path))
    values = flatten(yaml.safe_load(path.read_text()))
    own = [origin for origin in loaded.origins.values() if origin.startswith(str(path))]
    assert own
    assert len(own) <= len(values)


@pytest.mark.parametrize("path", LAUNCHERS, ids=_name)
def test_launcher_file_loads_in_accelerate(path):
    config = load_config_from_file(str(path))
    named = {"cpu": 1, "one_gpu": 1, "two_gpus_ddp": 2, "two_processes_cpu": 2, "many_gpus_ddp": 8}
    assert config.num_processes == named.get(path.stem, 2)
    assert config.use_cpu == ("cpu" in path.stem)


@pytest.mark.parametrize("path", [*COMPLETE, *FRAGMENTS, *LAUNCHERS, *SWEEPS], ids=_name)
def test_header_states_purpose_and_usage(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert path.read_text().startswith("#")
    assert any(word in header for word in ("launch", "compose", "multitask-vl ", "python -m", "make ")), header
    if "experiments" in path.parts:
        for word in ("Run: ", "Length: ", f"configs/{_name(path)}.yaml"):
            assert word in header
    # files named in a header exist, because commands are copied from it
    for word in header.replace("\\", " ").split():
        if word.startswith("configs/") and word.endswith(".yaml"):
            near = difflib.get_close_matches(
                word, [f"configs/{_name(other)}.yaml" for other in CONFIGS.rglob("*.yaml")], n=1
            )
            assert (CONFIGS.parent / word).is_file(), f"{word} does not exist; did you mean {near}?"


def test_published_recipe_values():
    config = load_config(CONFIGS / "experiments" / "vl_adapter" / "single_adapter.yaml")
    training = config.training
    assert (training.epochs, training.batch_size, training.lr, training.warmup_ratio) == (20, 500, 1e-3, 0.1)
    assert (training.optimizer, training.eps, training.weight_decay, training.max_grad_norm) == (
        "adamw_hf_legacy",
        1e-6,
        0.01,
        5.0,
    )
    assert training.betas == (0.9, 0.999)
    assert {name: int(training.batch_size * task.batch_size_ratio) for name, task in config.tasks.items()} == {
        "vqa": 500,
        "gqa": 833,
        "nlvr2": 166,
        "coco_caption": 416,
    }
    assert [task.prompt for task in config.tasks.values()] == ["vqa: ", "gpa: ", "nlvr: ", "caption: "]
    limits = {name: (task.max_input_tokens, task.max_target_tokens) for name, task in config.tasks.items()}
    assert limits == {"vqa": (20, 10), "gqa": (20, None), "nlvr2": (None, None), "coco_caption": (40, 40)}
    assert {task.decoding.mode for name, task in config.tasks.items() if name in ("vqa", "gqa")} == {"greedy"}
    assert config.tasks["nlvr2"].decoding.choices == ("false", "true")
    caption = config.tasks["coco_caption"].decoding
    assert (caption.mode, caption.num_beams, caption.max_length, caption.no_repeat_ngram_size) == ("beam", 5, 40, 3)
    assert config.method[0].model_dump(include={"rank", "sharing", "train_layer_norms", "activation"}) == {
        "rank": 96,
        "sharing": "single",
        "train_layer_norms": "all",
        "activation": "gelu_new",
    }
    assert (config.vision.model, config.vision.pretrained, config.visual.pool) == ("RN101", "openai", (6, 6))


def test_t5_recipe_differs_in_decoding_and_batch_size():
    bart, t5 = (
        load_config(CONFIGS / "training" / f"{name}.yaml").model_dump() for name in ("vl_adapter", "vl_adapter_t5")
    )
    before, after = flatten(bart), flatten(t5)
    changed = {".".join(keys): value for keys, value in after.items() if before[keys] != value}
    assert changed == {
        "backbone.family": "t5",
        "backbone.pretrained": "google-t5/t5-base",
        "tasks.vqa.decoding.no_repeat_ngram_size": 0,
        "tasks.gqa.decoding.no_repeat_ngram_size": 0,
        "tasks.coco_caption.decoding.no_repeat_ngram_size": 0,
        "tasks.coco_caption.decoding.early_stopping": False,
        "training.batch_size": 300,
    }
    assert [int(300 * task["batch_size_ratio"]) for task in t5["tasks"].values()] == [300, 500, 100, 250]
    for path in (CONFIGS / "experiments" / "vl_adapter").glob("t5_*.yaml"):
        tasks = load_config(path).tasks
        assert {name: task.decoding.model_dump() for name, task in tasks.items()} == {
            name: task["decoding"] for name, task in t5["tasks"].items()
        }


@pytest.mark.parametrize(
    ("name", "lr", "prompted"),
    [
        ("vl_adapter/full", 1e-4, False),
        ("vl_adapter/single_adapter", 1e-3, True),
        ("vl_adapter/multiple_adapters", 3e-4, False),
        ("vl_adapter/single_lora", 1e-3, True),
        ("vl_adapter/multiple_lora", 1e-3, False),
        ("vl_adapter/t5_full", 1e-4, False),
        ("vl_adapter/t5_single_adapter", 1e-3, True),
        ("vl_adapter/t5_single_lora", 1e-3, True),
        ("routing/single_lora_mm2", 1e-3, True),
        ("routing/single_adapter_add", 1e-3, True),
        ("routing/multiple_adapters_mul", 3e-4, False),
        ("routing/multiple_adapters_comb1", 1e-3, False),
        ("routing/multiple_adapters_comb2", 3e-4, False),
        ("routing/multiple_adapters_comb3", 1e-3, False),
        ("routing/multiple_adapters_comb4", 3e-4, False),
    ],
)
def test_published_lr_and_prompts(name, lr, prompted):
    config = load_config(CONFIGS / "experiments" / f"{name}.yaml")
    assert config.training.lr == lr
    assert {bool(task.prompt) for task in config.tasks.values()} == {prompted}


def test_published_routing_combinations():
    table = {
        "comb1": "mul mul mm1 mm2",
        "comb2": "add add mm1 mm2",
        "comb3": "mul mul mul mm2",
        "comb4": "add add mul mm2",
    }
    for name, functions in table.items():
        config = load_config(CONFIGS / "experiments" / "routing" / f"multiple_adapters_{name}.yaml")
        assert config.routing.function == dict(zip(FOUR, functions.split(), strict=True))


def test_routed_lora_has_published_rank():
    config = load_config(CONFIGS / "experiments" / "routing" / "single_lora_mul.yaml")
    assert (config.method[0].rank, config.method[0].alpha, config.method[0].biases) == (96, 96.0, "all")


def test_shuffled_quickstart_differs_in_features_only():
    quickstart, shuffled = (
        flatten(load_config(CONFIGS / "examples" / f"{name}.yaml").model_dump())
        for name in ("quickstart", "quickstart_shuffled")
    )
    differ = [keys for keys, value in quickstart.items() if shuffled[keys] != value]
    assert sorted(differ) == [("features", "shuffle_images"), ("run_dir",)]


@pytest.mark.shared
def test_real_photos_config_names_existing_files(shared):
    config = load_config(CONFIGS / "examples" / "real_photos.yaml")
    values = [value for value in flatten(config.model_dump(mode="json")).values() if isinstance(value, str | list)]
    texts = [str(text) for value in values for text in (value if isinstance(value, list) else [value])]
    paths = [text for text in texts if "../shared/" in text]
    assert len(paths) >= 6
    assert [path for path in paths if not (shared.parent / path.removeprefix("../")).exists()] == []
