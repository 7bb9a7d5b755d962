"""A grid of runs: what it consists of, what trials choose, what is skipped, stopped and told; a real one at the end."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from multitask_vl.config import load_config
from multitask_vl.errors import InputError
from multitask_vl.sweep.execute import Sweep
from multitask_vl.sweep.grid import read_grid
from multitask_vl.sweep.selection import choose
from multitask_vl.sweep.slurm import write_arrays
from tests import tiny_run

STUDIES = sorted((tiny_run.ROOT / "configs" / "studies").glob("*.yaml"))
QUICKSTART = str(tiny_run.ROOT / "configs" / "quickstart.yaml")
FAKE = """
import json, pathlib, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
folder = pathlib.Path(words["run_dir"])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "started").open("a") as file:
    file.write("x")
time.sleep(float(SLEEP))
rate = float(words.get("training.lr", 0))
if words.get("routing.function") == FAILS:
    print("error: no such thing")
    sys.exit(2)
score = {"average": 50 - abs(rate - 3e-4)}
(folder / "scores.json").write_text(json.dumps({"splits": {"tune": score}}))
"""


def grid_file(folder, **changes):
    """A grid of 2 x 2 runs over the quickstart, changed."""
    values = {
        "base": QUICKSTART,
        "out": str(folder / "out"),
        "always": {"training.steps": 7},
        "axes": {"routing": {"none": {"routing.function": "none"}, "mul": {"routing.function": "mul"}}, "seed": [1, 2]},
        **changes,
    }
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}, sort_keys=False))
    return path


def fake(folder, sleep=0.0, fails=None):
    """A program that stands for training: scores best at a rate of 3e-4."""
    path = folder / "fake.py"
    path.write_text(f"SLEEP, FAILS = {sleep}, {fails!r}\n{FAKE}")
    return [sys.executable, str(path)]


def names(grid):
    return [run.name for run in grid.runs]


def test_a_grid_is_the_product_of_its_axes(tmp_path):
    grid = read_grid(grid_file(tmp_path))
    assert names(grid) == ["none-seed1", "none-seed2", "mul-seed1", "mul-seed2"]
    for run in grid.runs:
        config = load_config(grid.base, grid.words(run))
        assert (config.training.steps, config.routing.function) == (7, run.options["routing"])
        assert config.run_dir == tmp_path / "out" / "runs" / run.name
        assert config.seed == int(run.options["seed"].removeprefix("seed"))


def test_points_are_left_out_and_added(tmp_path):
    (tmp_path / "lora.yaml").write_text("method: {name: lora, rank: 8}\nrouting: {function: add}\n")
    path = grid_file(
        tmp_path,
        exclude=[{"routing": "mul", "seed": 2}],
        include=[
            {"name": "noise", "at": {"routing": ["mul"], "seed": 1}, "set": {"routing.control": "noise"}},
            {"name": "lora", "at": {"routing": "none"}, "set": {"compose": "lora.yaml", "method.alpha": 8}},
        ],
    )
    grid = read_grid(path)
    assert names(grid) == [
        "none-seed1", "none-seed2", "mul-seed1", "mul-noise-seed1", "none-lora-seed1", "none-lora-seed2",
    ]  # fmt: skip
    noise = load_config(grid.base, grid.words(grid.runs[3]))
    assert (noise.routing.function, noise.routing.control) == ("mul", "noise")
    lora = load_config(grid.base, grid.words(grid.runs[4]))
    assert (lora.method[0].name, lora.method[0].rank, lora.method[0].alpha) == ("lora", 8, 8)
    assert lora.routing.function == "add"
    assert names(read_grid(path)) == names(grid), "the same whenever it is read"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axis": {}}, "axis"),
        ({"axes": {"seed": 3}}, "axes.seed: expected a list"),
        ({"axes": {"routing": {"none": 3}}}, "axes.routing.none: expected a mapping"),
        ({"exclude": [{"sed": 1}]}, "exclude.0.sed: there is no such axis; did you mean 'seed'?"),
        ({"include": [{"name": "x", "at": {"seed": 9}}]}, "there is no option 'seed9'"),
        ({"select": {"values": [1e-3], "over": "sead"}}, "did you mean 'seed'?"),
        ({"always": {"training.stepps": 7}}, "did you mean 'steps'"),
        ({"always": {"training.lr": "fast"}}, "training.lr"),
        ({"include": [{"name": "", "at": {}}]}, "several runs are called none-seed1"),
        ({"exclude": [{"seed": [1, 2]}]}, "everything is excluded"),
        ({"base": "absent.yaml"}, "absent.yaml: no such file"),
    ],
)
def test_what_is_wrong_with_a_grid_is_told(tmp_path, changes, said):
    with pytest.raises(InputError) as caught:
        read_grid(grid_file(tmp_path, **changes))
    assert any(said in problem for problem in caught.value.problems), caught.value.problems


def test_quick_is_laid_over(tmp_path):
    path = grid_file(tmp_path, quick={"always": {"training.steps": 2}, "axes": {"seed": [1]}})
    grid = read_grid(path, quick=True)
    assert names(grid) == ["none-seed1", "mul-seed1"]
    assert load_config(grid.base, grid.words(grid.runs[0])).training.steps == 2
    assert grid.out == tmp_path / "out" / "quick"
    with pytest.raises(InputError, match="no section 'quick'"):
        read_grid(grid_file(tmp_path), quick=True)


def test_runs_are_made_once_and_failures_told(tmp_path, capsys):
    grid = read_grid(grid_file(tmp_path))
    sweep = Sweep(grid, at_once=2, threads=1, launcher=fake(tmp_path, fails="mul"))
    sweep.run_all()
    assert sorted(failure.split(":")[0] for failure in sweep.failures) == ["mul-seed1", "mul-seed2"]
    assert "exit code 2: error: no such thing; see" in sweep.failures[0]
    again = Sweep(grid, threads=1, launcher=fake(tmp_path))
    with again.jobs.claimed("mul-seed1") as claim:
        assert claim is not None
        Sweep(grid, threads=1, launcher=fake(tmp_path)).run_all()  # as from another terminal
    again.run_all()
    assert again.failures == []
    started = {run.name: (grid.out / "runs" / run.name / "started").read_text() for run in grid.runs}
    assert started == {"none-seed1": "x", "none-seed2": "x", "mul-seed1": "xx", "mul-seed2": "xx"}
    assert json.loads((grid.out / "costs" / "mul-seed1.json").read_text())["exit"] == 0
    capsys.readouterr()
    again.run_all()
    assert capsys.readouterr().out == "", "nothing was begun"


def test_a_claim_outlives_a_sweep_that_was_killed(tmp_path):
    """The run's own program holds it: who starts the sweep again leaves alone what still runs."""
    path = grid_file(tmp_path, exclude=[{"routing": "mul"}, {"seed": 2}])
    script = f"""
from pathlib import Path
from multitask_vl.sweep.execute import Sweep
from multitask_vl.sweep.grid import read_grid
Sweep(read_grid(Path({str(path)!r})), threads=1, launcher={fake(tmp_path, sleep=10)!r}).run_all()
"""
    sweep = subprocess.Popen([sys.executable, "-c", script], cwd=tiny_run.ROOT, env=tiny_run.environment())
    grid = read_grid(path)
    started = grid.out / "runs" / "none-seed1" / "started"
    deadline = time.monotonic() + 200
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    sweep.kill()
    sweep.wait()
    jobs = Sweep(grid, threads=1).jobs
    with jobs.claimed("none-seed1") as claim:
        assert claim is None
    while not jobs.finished("none-seed1") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert jobs.finished("none-seed1")
    assert started.read_text() == "x"


def test_a_rate_is_chosen_by_trials_before_the_seeds_run(tmp_path):
    select = {"key": "training.lr", "values": [1e-4, 3e-4, 1e-3], "over": "seed", "split": "tune"}
    grid = read_grid(grid_file(tmp_path, select=select))
    sweep = Sweep(grid, at_once=2, threads=1, launcher=fake(tmp_path))
    states = {run.name: state for run, state in sweep.listed()}
    assert states["none-lr0.0001-seed1"] == "to do"
    assert states["none-seed2"] == "after its trials of training.lr"
    sweep.run_all()
    made = {path.parent.name for path in grid.out.glob("runs/*/scores.json")}
    assert made == {
        f"{routing}-lr{rate}-seed{seed}"
        for routing in ("none", "mul")
        for rate, seed in (("0.0001", 1), ("0.0003", 1), ("0.001", 1), ("0.0003", 2))
    }, "the best trial is the first seed's run"
    kept = json.loads((grid.out / "selected" / "mul.json").read_text())
    assert (kept["key"], kept["split"], kept["chosen"]) == ("training.lr", "tune", 3e-4)
    assert [one["value"] for one in kept["averages"]] == [1e-4, 3e-4, 1e-3]
    assert choose(grid, "mul") == kept
    assert {state for _, state in sweep.listed()} == {"finished"}
    rows = json.loads(sweep.write_list().read_text())
    assert [row["name"] for row in rows if row["reported"]] == [
        f"{routing}-lr0.0003-seed{seed}" for routing in ("none", "mul") for seed in (1, 2)
    ]


def test_shorter_trials_are_runs_of_their_own_and_a_tie_goes_to_the_first(tmp_path):
    select = {"values": [2e-4, 4e-4], "set": {"training.steps": 3}}
    grid = read_grid(grid_file(tmp_path, select=select, exclude=[{"routing": "mul"}]))
    assert [run.name for run in grid.trials("none")] == ["none-lr0.0002-seed1-trial", "none-lr0.0004-seed1-trial"]
    assert "training.steps=3" in grid.words(grid.trials("none")[0])
    sweep = Sweep(grid, threads=1, launcher=fake(tmp_path))
    sweep.run_all()
    assert choose(grid, "none")["chosen"] == 2e-4
    assert (grid.out / "runs" / "none-lr0.0002-seed2" / "scores.json").is_file()
    assert len(list((grid.out / "runs").iterdir())) == 4


def test_runs_wait_for_trials_that_failed(tmp_path):
    grid = read_grid(grid_file(tmp_path, select={"values": [1e-4, 1e-3]}))
    sweep = Sweep(grid, threads=1, launcher=fake(tmp_path, fails="mul"))
    sweep.run_all()
    assert len(sweep.failures) == 2
    assert {path.name for path in (grid.out / "runs").glob("mul-*")} == {"mul-lr0.0001-seed1", "mul-lr0.001-seed1"}
    assert (grid.out / "runs" / "none-lr0.0001-seed2" / "scores.json").is_file()


def test_devices_are_dealt_out(tmp_path):
    grid = read_grid(grid_file(tmp_path))
    path = tmp_path / "device.py"
    path.write_text(
        "import os, sys\nfrom pathlib import Path\n"
        "folder = Path(next(word for word in sys.argv if word.startswith('run_dir='))[8:])\n"
        "folder.mkdir(parents=True)\n(folder / 'device').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    )
    sweep = Sweep(grid, at_once=2, launcher=[sys.executable, str(path)], devices=["0", "3"])
    sweep.run_all()
    assert sweep.failures == []
    assert {path.read_text() for path in grid.out.glob("runs/*/device")} <= {"0", "3"}


def test_an_array_script_runs_the_line_of_its_task(tmp_path):
    path = grid_file(tmp_path, select={"values": [1e-4, 1e-3]})
    grid = read_grid(path)
    shows = tmp_path / "python"
    shows.write_text('#!/bin/sh\necho "$@"\n')
    shows.chmod(0o755)
    options = ["--quick", "--launcher=torchrun --nproc_per_node 2"]
    (trials, runs), submit = write_arrays(grid, options, at_once=3, python=str(shows))
    assert submit == f"sbatch --dependency=afterany:$(sbatch --parsable {trials}) {runs}"
    assert "#SBATCH --array=1-4%3" in trials.read_text()
    for script, number, name in ((trials, 2, "none-lr0.001-seed1"), (runs, 3, "mul-seed1")):
        env = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number)}
        said = subprocess.run([str(script)], env=env, capture_output=True, text=True, check=True).stdout
        program = str(tiny_run.ROOT / "launch" / "sweep.py")
        assert said == f"{program} {path} --quick --launcher=torchrun --nproc_per_node 2 --run {name}\n"
    (only,), _ = write_arrays(grid, [], at_once=3, python=str(shows), only={"mul-seed1", "mul-seed2"})
    assert "#SBATCH --array=1-2%3" in only.read_text()


def test_a_sweep_that_is_stopped_stops_its_runs(tmp_path):
    path = grid_file(tmp_path)
    words = ["launch/sweep.py", str(path), "--at-once", "2", "--launcher", shlex.join(fake(tmp_path, sleep=60))]
    sweep = subprocess.Popen(
        [sys.executable, *words], cwd=tiny_run.ROOT, env=tiny_run.environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while len(list(tmp_path.glob("out/runs/*/started"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    sweep.send_signal(signal.SIGTERM)
    said = sweep.communicate(timeout=60)[1]
    assert sweep.returncode == 75
    assert "give the same command again" in said
    assert "failed" not in said
    assert len(list(tmp_path.glob("out/runs/*"))) == 2, "no other run was begun"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_studies_are_grids(path):
    text = path.read_text()
    assert f"python launch/sweep.py configs/sweeps/{path.name}" in text.split("base:")[0]
    grid = read_grid(path)
    assert grid.base == Path(QUICKSTART)
    assert len({run.name for run in grid.every()}) >= len(grid.runs)


def test_the_routing_study_has_what_it_compares(capsys):
    path = tiny_run.ROOT / "configs" / "studies" / "routing.yaml"
    grid = read_grid(path)
    groups = {run.group for run in grid.runs}
    methods = ("single_adapter", "single_lora", "adapter_per_task")
    functions = ("none", "mul", "add", "mm1", "mm2")
    combined = {f"adapter_per_task-comb{number}" for number in (1, 2, 3, 4)}
    assert {f"{method}-{function}" for method in methods for function in functions} | combined <= groups
    controls = {group.split("-", 2)[2] for group in groups if group.count("-") > 1}
    assert controls == {"visual_pooled", "noise", "ones", "blind"}
    assert len(grid.runs) == 3 * len(groups)
    assert f"{len(groups) * 3} trials and {len(grid.runs)} runs of {len(groups)} rows" in path.read_text()
    assert [run.value for run in grid.trials("single_lora-mm1")] == [1e-4, 3e-4, 1e-3]
    configs = {
        run.group: load_config(grid.base, grid.words(run)) for run in grid.runs if run.options["seed"] == "seed42"
    }
    lora, comb = configs["single_lora-mm1"], configs["adapter_per_task-comb2"]
    assert (lora.method[0].name, lora.method[0].sharing, lora.routing.function) == ("lora", "single", "mm1")
    assert comb.routing.function == {"vqa": "add", "gqa": "add", "nlvr2": "mm1", "coco_caption": "mm2"}
    assert configs["single_adapter-mul-noise"].routing.control == "noise"
    assert configs["single_adapter-mm1-blind"].features.control == "shuffled"
    assert {config.training.steps for config in configs.values()} == {400}

    assert tiny_run.launch("sweep", str(path), "--quick", "--dry-run") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("36 runs, ")  # how many are finished is this folder's own story
    assert said[0].startswith("single_adapter-none-seed42: ")
    words = shlex.split(said[1])
    assert load_config(words[words.index("--config") + 1], words[4:]).training.steps == 150


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_sweep_ends_in_a_table_over_seeds(tmp_path, capsys):
    tiny_run.write_files(tmp_path)
    tiny = tiny_run.write_config(tmp_path)
    path = grid_file(tmp_path, base=str(tiny), always={"training.steps": 2})
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n<!-- sweep grid: begin -->\n<!-- sweep grid: end -->\n")
    assert tiny_run.launch("sweep", str(path), "--at-once", "2", "--threads", "1", "--page", str(page)) == 0
    said = capsys.readouterr().out
    assert "4 of 4 runs are finished, 0 failed" in said
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["seeds"]) for row in rows] == [("none", "2"), ("mul", "2")]
    assert all(row["average"] and row["average std"] for row in rows)
    assert "| none | adapter per_task | none |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "table.md").read_text() in page.read_text()
    begun = [line for line in said.splitlines() if "-seed" in line and ":" in line]
    assert len(begun) == 4
    assert tiny_run.launch("sweep", str(path)) == 0
    assert not [line for line in capsys.readouterr().out.splitlines() if line[:1].isdigit() and line.endswith("-seed1")]
