"""What does a sweep refuse or keep apart: other settings of what has finished, names that collide, Ctrl-C."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from multitask_vl.config import load
from multitask_vl.errors import InputError
from multitask_vl.sweep.execute import Sweep
from multitask_vl.sweep.grid import read_grid
from multitask_vl.sweep.selection import choose
from tests import tiny_run
from tests.sweep.test_sweep import fake, grid_file


def swept(path, *words):
    """A sweep as a program: its exit code and what it says."""
    done = subprocess.run(
        [sys.executable, "launch/sweep.py", str(path), *words], cwd=tiny_run.ROOT, env=tiny_run.environment(),
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_an_array_takes_the_options_of_its_runs_and_no_others(tmp_path):
    path = grid_file(tmp_path)
    words = ["--array", "--threads", "2", "--launcher", "accelerate launch", "--only", "*mul*"]
    assert swept(path, *words)[0] == 0
    assert (tmp_path / "out/array/runs.txt").read_text() == "mul-seed1\nmul-seed2\n"
    assert "'--launcher=accelerate launch' --threads=2 --run" in (tmp_path / "out/array/runs.sh").read_text()
    code, said = swept(path, "--array", "--minutes", "5")
    assert code == 2
    assert "error: --array: SLURM gives devices and time" in said


def test_what_finished_with_other_settings_is_not_mixed_with_the_rest(tmp_path):
    grid = read_grid(grid_file(tmp_path))
    for name in ("none-seed1", "mul-seed2"):
        folder = grid.out / "runs" / name
        folder.mkdir(parents=True)
        loaded = load(grid.base, grid.words(next(run for run in grid.runs if run.name == name)))
        loaded.write_resolved(folder / "resolved.yaml")
        (folder / "scores.json").write_text("{}")
    Sweep(grid).check()
    more = read_grid(grid_file(tmp_path, always={"training.steps": 900}))
    with pytest.raises(
        InputError, match=r"2 runs have finished with other settings .* none-seed1: training.steps: was 7"
    ):
        Sweep(more).check()
    scored = read_grid(grid_file(tmp_path, always={"training.steps": 7, "tasks.vqa.decoding.num_beams": 3}))
    with pytest.raises(InputError, match=r"num_beams: was \d, is 3.* rm -r .*none-seed1 .*mul-seed2"):
        Sweep(scored).check()
    faster = read_grid(grid_file(tmp_path, always={"training.steps": 7, "evaluation.batch_size": 3}))
    Sweep(faster).check()


def test_options_of_one_name_are_refused(tmp_path):
    for changes, said in (
        ({"axes": {"tasks.vqa.prompt": ["vqa: ", "vqa "], "seed": [1]}}, "axes.tasks.vqa.prompt: 'vqa: ' and 'vqa '"),
        ({"axes": {"a": {"b c": {}, "b_c": {}}, "seed": [1]}}, "axes.a: 'b c' and 'b_c'"),
        ({"select": {"values": [1e-4, 1.0000001e-4]}}, "select.values: 0.0001 and 0.00010000001"),
    ):
        with pytest.raises(InputError, match=re.escape(said) + " would both be called"):
            read_grid(grid_file(tmp_path, **changes))


def test_no_value_is_a_value_that_may_be_chosen(tmp_path):
    select = {"key": "training.clip_norm", "values": [None, 5.0], "set": {"training.steps": 3}}
    sweep = Sweep(read_grid(grid_file(tmp_path, select=select)), at_once=2, launcher=fake(tmp_path))
    sweep.run_all()
    assert sweep.failures == []
    assert len(list(tmp_path.glob("out/runs/*-trial/scores.json"))) == 4
    assert choose(sweep.grid, "none")["chosen"] is None
    commands = {row["name"]: row["command"] for row in json.loads(sweep.write_list().read_text()) if row["reported"]}
    assert len(commands) == 4
    assert all("training.clip_norm=null" in command for command in commands.values())


def test_trials_must_score_what_chooses(tmp_path):
    select = {"values": [1e-4, 1e-3], "split": "report"}
    path = grid_file(tmp_path, select=select, always={"evaluation.final": ["tune"], "evaluation.during": []})
    with pytest.raises(InputError, match=r"select\.split: trials do not score 'report'; put it into evaluation.final"):
        read_grid(path)


def test_a_cost_that_was_cut_short_is_counted_anew(tmp_path):
    grid = read_grid(grid_file(tmp_path))
    (grid.out / "costs").mkdir(parents=True)
    (grid.out / "costs" / "none-seed1.json").write_text("")
    sweep = Sweep(grid, launcher=fake(tmp_path))
    sweep.run_all(only={"none-seed1"})
    assert sweep.failures == []
    assert json.loads((grid.out / "costs" / "none-seed1.json").read_text())["exit"] == 0


def test_an_interrupt_from_the_keyboard_goes_to_the_sweep_alone(tmp_path):
    """Its runs are asked to save instead."""
    path = grid_file(tmp_path)
    saves = tmp_path / "saves.py"
    saves.write_text(
        "import pathlib, signal, sys, time\n"
        "folder = pathlib.Path(next(word for word in sys.argv if word.startswith('run_dir='))[8:])\n"
        "signal.signal(signal.SIGTERM, lambda *_: ((folder / 'saved').touch(), sys.exit(75)))\n"
        "folder.mkdir(parents=True)\n(folder / 'started').touch()\ntime.sleep(100)\n"
    )
    words = ["launch/sweep.py", str(path), "--launcher", shlex.join([sys.executable, str(saves)])]
    sweep = subprocess.Popen(
        [sys.executable, *words], cwd=tiny_run.ROOT, env=tiny_run.environment(), stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("out/runs/*/started")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(sweep.pid, signal.SIGINT)
    said = sweep.communicate(timeout=60)[1]
    assert sweep.returncode == 75
    assert "stopped (1 runs saved)" in said
    assert len(list(tmp_path.glob("out/runs/*/saved"))) == 1
