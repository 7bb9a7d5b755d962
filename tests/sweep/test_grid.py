"""Reading sweep files: runs, exclusions, inclusions and messages."""

import re

import pytest

from multitask_vl.config import load_config
from multitask_vl.errors import InputError
from multitask_vl.sweep.read_grid import read_grid
from tests.sweep.grid_files import QUICKSTART, SWEEPS, write_grid


def names(grid):
    return [run.name for run in grid.runs]


def test_grid_is_product_of_axes(tmp_path):
    grid = read_grid(write_grid(tmp_path))
    assert names(grid) == ["none-seed1", "none-seed2", "mul-seed1", "mul-seed2"]
    run = grid.runs[3]
    config = load_config(grid.base, grid.cli_args(run))
    assert (config.training.max_steps, config.routing.function, config.seed) == (7, "mul", 2)
    assert run.options == {"routing": "mul", "seed": "seed2"}
    assert config.run_dir == tmp_path / "out" / "runs" / "mul-seed2"


def test_grid_excludes_and_includes_points(tmp_path):
    (tmp_path / "lora.yaml").write_text("method: {name: lora, rank: 8}\nrouting: {function: add}\n")
    path = write_grid(
        tmp_path,
        exclude=[{"routing": "mul", "seed": 2}],
        include=[
            {
                "name": "noise",
                "where": {"routing": ["mul"], "seed": 1},
                "overrides": {"routing.control": "noise"},
            },
            {
                "name": "lora",
                "where": {"routing": "none"},
                "overrides": {"compose": "lora.yaml", "method.alpha": 8},
            },
        ],
    )
    grid = read_grid(path)
    assert names(grid) == [
        "none-seed1", "none-seed2", "mul-seed1", "mul-noise-seed1", "none-lora-seed1", "none-lora-seed2",
    ]  # fmt: skip
    noise = load_config(grid.base, grid.cli_args(grid.runs[3]))
    assert (noise.routing.function, noise.routing.control) == ("mul", "noise")
    lora = load_config(grid.base, grid.cli_args(grid.runs[4]))
    assert (lora.method[0].name, lora.method[0].rank, lora.method[0].alpha) == ("lora", 8, 8)
    assert lora.routing.function == "add"
    assert names(read_grid(path)) == names(grid), "the same at every reading"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": {}}, "axis"),
        ({"grid": {"seed": 3}}, "grid.seed: expected a list"),
        ({"grid": {"routing": {"none": 3}}}, "grid.routing.none: expected a mapping"),
        ({"exclude": [{"sed": 1}]}, "exclude.0.sed: unknown axis; did you mean 'seed'?"),
        ({"include": [{"name": "x", "where": {"seed": 9}}]}, "unknown option 'seed9'"),
        ({"select": {"values": [1e-3], "repeat_over": "sead"}}, "did you mean 'seed'?"),
        ({"select": {"values": []}}, "select.values: is empty"),
        ({"common": {"training.max_stepps": 7}}, "did you mean 'max_steps'"),
        ({"common": {"training.lr": "fast"}}, "training.lr"),
        ({"include": [{"name": "", "where": {}}]}, "several runs are called none-seed1"),
        ({"exclude": [{"seed": [1, 2]}]}, "everything is excluded"),
        ({"base": "absent.yaml"}, "absent.yaml: file not found"),
        (
            {"grid": {"tasks.vqa.prompt": ["vqa: ", "vqa "], "seed": [1]}},
            "grid.tasks.vqa.prompt: 'vqa: ' and 'vqa ' would both be called",
        ),
        ({"grid": {"a": {"b c": {}, "b_c": {}}, "seed": [1]}}, "grid.a: 'b c' and 'b_c' would both be called"),
        (
            {"select": {"values": [1e-4, 1.0000001e-4]}},
            "select.values: 0.0001 and 0.00010000001 would both be called",
        ),
        (
            {
                "select": {"values": [1e-4, 1e-3], "split": "test"},
                "common": {"evaluation.final_splits": ["val"], "evaluation.eval_splits": []},
            },
            "select.split: trials do not score 'test'; add it to evaluation.final_splits",
        ),
    ],
)
def test_grid_problems_are_reported(tmp_path, changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read_grid(write_grid(tmp_path, **changes))


def test_smoke_section_is_merged(tmp_path):
    path = write_grid(tmp_path, smoke={"common": {"training.max_steps": 2}, "grid": {"seed": [1]}})
    grid = read_grid(path, smoke=True)
    assert names(grid) == ["none-seed1", "mul-seed1"]
    assert load_config(grid.base, grid.cli_args(grid.runs[0])).training.max_steps == 2
    assert grid.out == tmp_path / "out" / "smoke"
    with pytest.raises(InputError, match="no section 'smoke'"):
        read_grid(write_grid(tmp_path), smoke=True)


@pytest.fixture(scope="module")
def sweeps():
    """The sweeps of configs/, by name."""
    return {path.stem: read_grid(path) for path in SWEEPS}


def test_shipped_sweeps_are_valid(sweeps):
    for path in SWEEPS:
        assert f"multitask-vl sweep configs/sweeps/{path.name}" in path.read_text().split("base:")[0]
        assert sweeps[path.stem].base == QUICKSTART


def test_routing_sweep_covers_study(sweeps):
    grid = sweeps["routing"]
    groups = {run.group for run in grid.runs}
    methods = ("single_adapter", "single_lora", "adapter_per_task")
    functions = ("none", "mul", "add", "mm1", "mm2")
    combined = {f"adapter_per_task-comb{number}" for number in (1, 2, 3, 4)}
    assert {f"{method}-{function}" for method in methods for function in functions} | combined <= groups
    controls = {group.split("-", 2)[2] for group in groups if group.count("-") > 1}
    assert controls == {"visual", "noise", "ones", "shuffled"}
    assert len(grid.runs) == 3 * len(groups)
    assert f"{len(groups) * 3} trials and {len(grid.runs)} runs in {len(groups)} rows" in grid.path.read_text()
    assert [run.value for run in grid.trials("single_lora-mm1")] == [1e-4, 3e-4, 1e-3]
    wanted = ("single_lora-mm1", "adapter_per_task-comb2", "single_adapter-mul-noise", "single_adapter-mm1-shuffled")
    first = {run.group: run for run in reversed(grid.runs)}
    lora, comb, noise, shuffled = (load_config(grid.base, grid.cli_args(first[group])) for group in wanted)
    assert (lora.method[0].name, lora.method[0].sharing, lora.routing.function) == ("lora", "single", "mm1")
    assert comb.routing.function == {"vqa": "add", "gqa": "add", "nlvr2": "mm1", "coco_caption": "mm2"}
    assert noise.routing.control == "noise"
    assert shuffled.features.shuffle_images
    assert shuffled.training.max_steps == 400
