"""Does the runner understand compacters, low-rank adapters, hyperformers and prompts of every kind?

The files are recorded here, by a second implementation that must itself agree with a recorded one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.golden.__main__ import run
from tests.golden.fixture import NotUnderstood, read
from tests.golden.models import run_model
from tests.golden.names import methods_of
from tests.golden.sources import hyperformer, prompt
from tests.golden.test_golden import GOLDEN, SMALL, inputs_of, trained_of, weights_of
from tests.published import TASKS, record
from tests.published_methods import PublishedMethods, factor_tensors, hyperformer_tensors, prompt_tensors


def test_the_formulas_written_down_here_are_the_recorded_ones():
    fixture = read(GOLDEN / "single_compacter.safetensors")
    model = PublishedMethods(fixture.weights, fixture.aliases, fixture.meta["config"])
    outputs = model.outputs(fixture.under("input"), "vqa")
    for key, value in fixture.under("output/vqa").items():
        torch.testing.assert_close(outputs[key], value, atol=5e-5, rtol=1e-4)


COMPACTERS = {
    "compacter": ("", 2, None, "own"),
    "compacter_n3_factorized": ("", 3, 2, "own"),
    "compacter_per_task": ("down up", 2, None, "own"),
    "compacter_shared_up": ("down", 2, None, "own"),
    "compacter_shared_down": ("up", 2, 1, "own"),
    "compacter_shared_rule": ("", 2, None, "shared"),
    "compacter_shared_rule_per_task": ("down up", 3, 1, "shared"),
    "compacter_rule_over_tasks": ("down up", 2, None, "shared_over_tasks"),
    "compacter_rule_over_tasks_shared_up": ("down", 2, None, "shared_over_tasks"),
    "low_rank_adapter": ("", None, 1, "own"),
    "low_rank_adapter_per_task": ("down up", None, 2, "own"),
}
MADE = {name: lambda kind=kind: factor_tensors(SMALL, *kind) for name, kind in COMPACTERS.items()} | {
    "hyperformer": lambda: hyperformer_tensors(SMALL, efficient=False, norms=False),
    "hyperformer_norms": lambda: hyperformer_tensors(SMALL, efficient=False, norms=True),
    "hyperformer_efficient": lambda: hyperformer_tensors(SMALL, efficient=True, norms=False),
    "hyperformer_efficient_norms": lambda: hyperformer_tensors(SMALL, efficient=True, norms=True),
    "prompt": lambda: prompt_tensors(SMALL, own=False),
    "prompt_per_task": lambda: prompt_tensors(SMALL, own=True),
}


def recorded(name: str, folder: Path, **weights: torch.Tensor) -> Path:
    """A file of one kind; ``weights`` replace tensors."""
    made = MADE[name]()
    backbone, aliases = weights_of(SMALL, "none", "")
    # prompts leave every norm of the backbone alone
    norms = "frozen" if name.startswith("prompt") else "adapter+norms"
    trainable = [*trained_of(backbone, norms), *made.weights]
    model = PublishedMethods(backbone | made.weights | weights, aliases | made.aliases, SMALL)
    path = folder / f"{name}.safetensors"
    record(path, model, inputs_of(SMALL), trainable, TASKS[:2], method_args={"tasks": ",".join(TASKS)})
    return path


@pytest.mark.parametrize("name", MADE)
def test_files_of_kinds_that_are_not_here_are_understood(name, tmp_path):
    path = recorded(name, tmp_path)
    (config,) = methods_of(read(path))
    assert name.startswith(config.name)
    report = run(path)
    assert report.failures == []
    assert report.worst < 5e-5


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("compacter_n3_factorized", {"n": 3, "rank": 6, "factorized": True, "factor_rank": 2}),
        ("compacter_shared_down", {"sharing": "shared_down", "factorized": True, "factor_rank": 1}),
        ("compacter_shared_rule_per_task", {"sharing": "per_task", "rule": "shared"}),
        ("compacter_rule_over_tasks_shared_up", {"sharing": "shared_up", "rule": "shared_over_tasks"}),
        ("low_rank_adapter_per_task", {"sharing": "per_task", "factor_rank": 2, "rank": 6}),
        ("hyperformer_efficient", {"generator": "efficient", "task_dim": 10, "hidden_dim": 7, "projected_dim": 4}),
        ("hyperformer_norms", {"generator": "unique", "pre_norm": True, "post_norm": True, "rank": 6}),
        ("prompt_per_task", {"sharing": "per_task", "length": 5, "mid": 9}),
    ],
)
def test_settings_are_read_off_the_tensors(name, settings, tmp_path):
    (config,) = methods_of(read(recorded(name, tmp_path)))
    assert config.model_dump().items() >= settings.items()


def test_a_tensor_held_for_unused_must_have_no_gradient(tmp_path):
    path = recorded("hyperformer_norms", tmp_path)
    fixture = read(path)
    idle = next(name for name in fixture.meta["trainable"] if "encoder.adapter" in name and "cross_attention" in name)
    fixture.tensors["grad_norm/vqa"][fixture.meta["trainable"].index(idle)] = 0.5
    with pytest.raises(NotUnderstood, match="held for unused"):
        run_model(fixture)


def test_compacters_on_t5_are_understood(tmp_path):
    """One Kronecker product with the number 1 is an adapter, so a recorded adapter file says what must come out."""
    fixture = read(GOLDEN / "t5_single_adapter.safetensors")
    names = {name: _as_compacter(name) for name in (*fixture.weights, *fixture.aliases)}
    tensors = {name: value for name, value in fixture.tensors.items() if not name.startswith("grad")}
    for name, value in fixture.weights.items():
        if names[name].endswith(".W"):
            del tensors[f"weight/{name}"]
            rule = f"weight/{names[name].removesuffix('W')}phm_rule"
            tensors |= {f"weight/{names[name]}": value.T[None].contiguous(), rule: torch.ones(1, 1, 1)}
        elif names[name] != name:
            tensors[f"weight/{names[name]}"] = tensors.pop(f"weight/{name}")
    meta = fixture.meta | {"aliases": {names[one]: names[stored] for one, stored in fixture.aliases.items()}}
    rules = [name.removeprefix("weight/") for name in tensors if name.endswith("phm_rule")]
    meta["trainable"] = [*(names[name] for name in fixture.meta["trainable"]), *rules]
    path = tmp_path / "t5_single_compacter.safetensors"
    save_file(tensors, path, {"json": json.dumps(meta)})
    assert methods_of(read(path))[0].name == "compacter"
    report = run(path)
    assert report.failures == []
    assert report.compared > 15


def _as_compacter(name: str) -> str:
    return re.sub(r"_sampler\.(weight|bias)$", lambda found: f"_sampler.{'W' if found[1] == 'weight' else 'b'}", name)


@pytest.mark.parametrize("kind", ["hyperformer_norms", "hyperformer_efficient_norms", "prompt_per_task"])
def test_names_on_t5_lack_the_wrapping_model(kind):
    source = prompt if kind.startswith("prompt") else hyperformer
    for name in MADE[kind]().weights:
        candidates = list(source.names(name))
        assert candidates
        assert list(source.names(name.removeprefix("model."))) == candidates
