"""Study of the synthetic world: configurations of its runs and controls."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from multitask_vl.config import load, load_config, locate
from multitask_vl.registry import METHODS as METHOD_REGISTRY
from studies.synthetic_world.runs import BOUNDS, LORA, SEEDS, all_runs
from studies.synthetic_world.tables import MAIN_RATES

ROOT = Path(__file__).resolve().parents[2]
CONTROLS = sorted((ROOT / "configs" / "controls").glob("*.yaml"))


@pytest.fixture(autouse=True)
def restore_method_registry(monkeypatch):
    """Unregister methods of a run's plugin after each test, since other tests use all registered methods."""
    METHOD_REGISTRY.names()
    monkeypatch.setattr(METHOD_REGISTRY, "_entries", dict(METHOD_REGISTRY._entries))
    monkeypatch.delitem(sys.modules, "studies.synthetic_world.full_plus_adapter", raising=False)


def test_all_runs_cover_every_comparison():
    runs = all_runs()
    assert len({run.name for run in runs}) == len(runs)
    count = Counter((run.group, run.row) for run in runs)
    assert (count["main", "quickstart"], count["main", "shuffled_images"]) == (3, 3)
    for function in ("mm1", "mm2"):
        routed = [run for run in runs if run.group == "routed" and run.row.endswith(f", {function}")]
        assert Counter(run.row.split(", ")[0] for run in routed) == {
            "single adapter": 3,
            "adapter per task": 3,
            "LoRA": 3,
        }
        assert {run.seed for run in routed} == set(SEEDS)
    assert [run.row for run in all_runs(steps_divisor=5) if run.group == "steps"] == ["30", "80", "240"]


def test_run_arguments_are_valid_configurations(tmp_path):
    runs = all_runs(steps_divisor=25)
    for run in {(run.group, LORA in run.overrides): run for run in runs}.values():
        script, _, path, *overrides = run.cli_args(tmp_path / "world", tmp_path)
        assert (ROOT / script).is_file()
        config = load_config(ROOT / path, overrides)
        assert (config.seed, config.run_dir) == (run.seed, tmp_path / "runs" / run.name)
        lengths = {"main": 24, "bounds": 24, "routed": 8, "rates": 4, "data": 24, "rank": 16, "methods": 8}
        assert config.training.max_steps == (int(run.row) if run.group == "steps" else lengths[run.group])
        if run.group == "rank":
            adapter = config.method[0]
            rank = int(run.row.partition(",")[0])
            assert (adapter.rank, adapter.sharing, adapter.train_layer_norms) == (rank, "single", "none")
        if run.group in ("methods", "bounds"):
            assert config.method[-1].name == {"methods": "full", "bounds": "full_plus_adapter"}[run.group]
        if LORA in run.overrides:
            assert (config.method[0].name, config.method[0].sharing) == ("lora", "single")
        if run.train_divisor > 1:
            gqa = config.tasks["gqa"].splits
            assert [str(file) for file in gqa["train"].questions] == [f"{tmp_path}/subsets/1_of_4/gqa_questions.json"]
            assert [str(file) for file in gqa["test"].questions] == ["gqa/test_balanced_questions.json"]


@pytest.mark.parametrize("path", CONTROLS, ids=lambda path: path.stem)
def test_control_differs_only_in_controlled_settings(path):
    loaded, quickstart = load(path), load(ROOT / "configs" / "examples" / "quickstart.yaml").config.model_dump()
    config = loaded.config.model_dump()
    assert config["run_dir"] == Path("runs/controls") / path.stem
    differs = {
        f"{section}.{key}" if isinstance(config[section], dict) else section
        for section in config
        for key in (config[section] if isinstance(config[section], dict) else [""])
        if config[section] != quickstart[section] and (not key or config[section][key] != quickstart[section].get(key))
    }
    vision = {"vision.pretrained", "features.store"}
    bart = {"backbone.pretrained", "backbone.tokenizer", "backbone.config"}
    allowed = {
        "random_clip": vision,
        "random_bart": bart,
        "random_backbones": vision | bart,
        "full": {"method", "routing.function", "training.backbone_lr"},
        "symbolic": vision | {"vision.model", "visual.feature_dim"},
    }
    assert differs == allowed[path.stem] | {"run_dir"}


def test_random_bart_has_sizes_of_pretrained_bart():
    sizes = load_config(ROOT / "configs" / "controls" / "random_bart.yaml").backbone.config
    shipped = json.loads((Path(locate("bundled:bart")) / "config.json").read_text())
    assert sizes == {key: shipped[key] for key in sizes}


def test_table_learning_rates_equal_those_of_runs(tmp_path):
    for run in all_runs():
        if run.seed == SEEDS[0] and (run.group == "bounds" or (run.group == "main" and run.row in MAIN_RATES)):
            config = load_config(ROOT / run.config, run.cli_args(tmp_path, tmp_path)[3:])
            _, times, backbone, new, _ = BOUNDS.get(run.row) or (None, 1, *MAIN_RATES[run.row], ())
            trains_backbone = any("full" in one.name for one in config.method)
            assert (backbone != "frozen") == trains_backbone
            assert not trains_backbone or float(backbone) == (config.training.backbone_lr or config.training.lr)
            assert (float(new), 600 * times) == (config.training.lr, config.training.max_steps)
