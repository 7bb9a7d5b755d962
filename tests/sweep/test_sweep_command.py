"""The command `multitask-vl sweep`."""

import csv
import os
import shlex
import subprocess

import pytest

from multitask_vl.cli.main import main
from multitask_vl.config import load_config
from multitask_vl.sweep.read_grid import read_grid
from multitask_vl.sweep.slurm import write_arrays
from tests import tiny_run
from tests.sweep.grid_files import SWEEPS, fake_launcher, write_grid


def test_dry_run_lists_commands(capsys):
    (path,) = (path for path in SWEEPS if path.stem == "routing")
    assert main(["sweep", str(path), "--smoke", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("36 runs, ")  # how many are finished depends on this folder
    assert lines[0].startswith("single_adapter-none-seed42: ")
    words = shlex.split(lines[1])
    at = words.index("--config")
    assert words[1:at] == ["-m", "multitask_vl", "train"]
    assert load_config(words[at + 1], words[at + 2 :]).training.max_steps == 150


def test_filter_and_run_choose_runs(tmp_path, capsys):
    path = str(write_grid(tmp_path, select={"values": [1e-4]}))
    assert main(["sweep", path, "--dry-run", "--filter", "*mul*seed1"]) == 0
    out = capsys.readouterr().out
    assert "mul-lr0.0001-seed1: pending" in out
    assert "none" not in out.split("\n")[0]
    assert main(["sweep", path, "--filter", "add*"]) == 2
    assert main(["sweep", path, "--run", "mul-seed2"]) == 2
    assert main(["sweep", path, "--max-parallel", "2", "--devices", "0"]) == 2
    errors = capsys.readouterr().err
    assert "--filter: no run of" in errors
    assert "--run mul-seed2: its trials are not finished" in errors
    assert "--max-parallel: got 2; must be" in errors


def test_failed_run_is_exit_code_1(tmp_path, capsys):
    path, launcher = str(write_grid(tmp_path)), shlex.join(fake_launcher(tmp_path, fails="mul"))
    assert main(["sweep", path, "--launcher", launcher, "--run", "mul-seed1"]) == 1
    assert "failed: mul-seed1: exit code 2: error: some error; see" in capsys.readouterr().err
    assert main(["sweep", path, "--launcher", launcher, "--run", "none-seed1"]) == 0
    assert main(["sweep", path, "--launcher", launcher, "--time-limit", "0", "--run", "none-seed2"]) == 0
    assert {run.name for run in (tmp_path / "out" / "runs").iterdir()} == {"mul-seed1", "none-seed1"}


def test_array_script_runs_line_of_its_task(tmp_path):
    path = write_grid(tmp_path, select={"values": [1e-4, 1e-3]})
    grid = read_grid(path)
    echo = tmp_path / "python"
    echo.write_text('#!/bin/sh\necho "$@"\n')
    echo.chmod(0o755)
    options = ["--smoke", "--launcher=torchrun --nproc_per_node 2"]
    (trials, runs), submit = write_arrays(grid, options, max_parallel=3, python=str(echo))
    assert submit == f"sbatch --dependency=afterany:$(sbatch --parsable {trials}) {runs}"
    assert "#SBATCH --array=1-4%3" in trials.read_text()
    for script, number, name in ((trials, 2, "none-lr0.001-seed1"), (runs, 3, "mul-seed1")):
        env = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number)}
        out = subprocess.run([str(script)], env=env, capture_output=True, text=True, check=True).stdout
        assert out == f"-m multitask_vl sweep {path} --smoke --launcher=torchrun --nproc_per_node 2 --run {name}\n"
    (only,), _ = write_arrays(grid, [], max_parallel=3, python=str(echo), only={"mul-seed1", "mul-seed2"})
    assert "#SBATCH --array=1-2%3" in only.read_text()


def test_array_takes_options_of_its_runs(tmp_path, capsys):
    path = str(write_grid(tmp_path))
    options = ["--array", "--threads", "2", "--launcher", "accelerate launch", "--filter", "*mul*"]
    assert main(["sweep", path, *options]) == 0
    assert (tmp_path / "out/array/runs.txt").read_text() == "mul-seed1\nmul-seed2\n"
    assert "'--launcher=accelerate launch' --threads=2 --run" in (tmp_path / "out/array/runs.sh").read_text()
    assert main(["sweep", path, "--array", "--time-limit", "5"]) == 2
    assert "error: --array: SLURM sets devices and time" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_sweep_ends_in_table_over_seeds(tmp_path, capsys, monkeypatch):
    """With training as a program, from a working directory that is not the checkout."""
    monkeypatch.chdir(tmp_path)
    tiny_run.write_dataset(tmp_path)
    tiny = tiny_run.write_config(tmp_path)
    path = write_grid(tmp_path, base=str(tiny), common={"training.max_steps": 2}, exclude=[{"routing": "mul"}])
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n<!-- sweep grid: begin -->\n<!-- sweep grid: end -->\n")
    assert main(["sweep", str(path), "--max-parallel", "2", "--threads", "1", "--update-page", str(page)]) == 0
    captured = capsys.readouterr()
    assert "2 of 2 runs are finished, 0 failed" in captured.out
    with (tmp_path / "out" / "table.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["run"], row["seeds"]) == ("none", "2")
    assert row["average"]
    assert row["average std"]
    assert "| none | adapter per_task | none |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "table.md").read_text() in page.read_text()
    started = [line for line in captured.err.splitlines() if line.endswith(("none-seed1", "none-seed2"))]
    assert len(started) == 2
    assert main(["sweep", str(path)]) == 0
    assert "seed" not in capsys.readouterr().err, "nothing was started"
