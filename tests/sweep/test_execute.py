"""Execution of sweeps with a program in place of training."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from multitask_vl.cli.main import main
from multitask_vl.config import load
from multitask_vl.errors import InputError
from multitask_vl.sweep.execute import Sweep
from multitask_vl.sweep.read_grid import read_grid
from multitask_vl.sweep.selection import select_value
from tests.sweep.grid_files import fake_launcher, write_grid


def test_sweep_runs_once_and_reports_failures(tmp_path, capsys):
    grid = read_grid(write_grid(tmp_path))
    sweep = Sweep(grid, max_parallel=2, threads=1, launcher=fake_launcher(tmp_path, fails="mul"))
    sweep.run_all()
    assert sorted(failure.split(":")[0] for failure in sweep.failures) == ["mul-seed1", "mul-seed2"]
    assert "exit code 2: error: some error; see" in sweep.failures[0]
    again = Sweep(grid, threads=1, launcher=fake_launcher(tmp_path))
    with again.jobs.try_lock("mul-seed1") as lock:
        assert lock is not None
        Sweep(grid, threads=1, launcher=fake_launcher(tmp_path)).run_all()  # as from another terminal
    again.run_all()
    assert again.failures == []
    started = {run.name: (grid.out / "runs" / run.name / "started").read_text() for run in grid.runs}
    assert started == {"none-seed1": "x", "none-seed2": "x", "mul-seed1": "xx", "mul-seed2": "xx"}
    assert json.loads((grid.out / "costs" / "mul-seed1.json").read_text())["exit"] == 0
    capsys.readouterr()
    again.run_all()
    assert capsys.readouterr().err == "", "nothing was started"


def test_sweep_selects_lr_by_trials(tmp_path):
    select = {"key": "training.lr", "values": [1e-4, 3e-4, 1e-3], "repeat_over": "seed", "split": "val"}
    grid = read_grid(write_grid(tmp_path, select=select))
    sweep = Sweep(grid, max_parallel=2, threads=1, launcher=fake_launcher(tmp_path))
    states = {run.name: state for run, state in sweep.list_runs()}
    assert states["none-lr0.0001-seed1"] == "pending"
    assert states["none-seed2"] == "waits for trials of training.lr"
    sweep.run_all()
    finished = {path.parent.name for path in grid.out.glob("runs/*/scores.json")}
    assert finished == {
        f"{routing}-lr{lr}-seed{seed}"
        for routing in ("none", "mul")
        for lr, seed in (("0.0001", 1), ("0.0003", 1), ("0.001", 1), ("0.0003", 2))
    }, "the best trial is the run of the first seed"
    record = json.loads((grid.out / "selected" / "mul.json").read_text())
    assert (record["key"], record["split"], record["chosen"]) == ("training.lr", "val", 3e-4)
    assert [row["value"] for row in record["averages"]] == [1e-4, 3e-4, 1e-3]
    assert select_value(grid, "mul") == record
    assert {state for _, state in sweep.list_runs()} == {"finished"}
    rows = [row for row in json.loads(sweep.write_run_list().read_text()) if row["reported"]]
    assert [row["name"] for row in rows] == [
        f"{routing}-lr0.0003-seed{seed}" for routing in ("none", "mul") for seed in (1, 2)
    ]
    assert rows[0]["command"].startswith("multitask-vl train --config ")


def test_shorter_trials_are_separate_runs_and_first_wins_tie(tmp_path):
    select = {"values": [2e-4, 4e-4], "overrides": {"training.max_steps": 3}}
    grid = read_grid(write_grid(tmp_path, select=select, exclude=[{"routing": "mul"}]))
    assert [run.name for run in grid.trials("none")] == ["none-lr0.0002-seed1-trial", "none-lr0.0004-seed1-trial"]
    assert "training.max_steps=3" in grid.cli_args(grid.trials("none")[0])
    Sweep(grid, threads=1, launcher=fake_launcher(tmp_path)).run_all()
    assert select_value(grid, "none")["chosen"] == 2e-4
    assert (grid.out / "runs" / "none-lr0.0002-seed2" / "scores.json").is_file()
    assert len(list((grid.out / "runs").iterdir())) == 4


def test_null_can_be_selected(tmp_path):
    select = {"key": "training.max_grad_norm", "values": [None, 5.0], "overrides": {"training.max_steps": 3}}
    grid = read_grid(write_grid(tmp_path, select=select, exclude=[{"routing": "mul"}]))
    sweep = Sweep(grid, max_parallel=2, launcher=fake_launcher(tmp_path))
    sweep.run_all()
    assert sweep.failures == []
    assert select_value(grid, "none")["chosen"] is None
    rows = [row for row in json.loads(sweep.write_run_list().read_text()) if row["reported"]]
    assert len(rows) == 2
    assert all("training.max_grad_norm=null" in row["command"] for row in rows)


def test_runs_wait_for_failed_trials(tmp_path):
    grid = read_grid(write_grid(tmp_path, select={"values": [1e-4, 1e-3]}))
    sweep = Sweep(grid, threads=1, launcher=fake_launcher(tmp_path, fails="mul"))
    sweep.run_all()
    assert len(sweep.failures) == 2
    assert {path.name for path in (grid.out / "runs").glob("mul-*")} == {"mul-lr0.0001-seed1", "mul-lr0.001-seed1"}
    assert (grid.out / "runs" / "none-lr0.0001-seed2" / "scores.json").is_file()


def test_each_run_gets_one_device(tmp_path):
    grid = read_grid(write_grid(tmp_path))
    sweep = Sweep(grid, max_parallel=2, launcher=fake_launcher(tmp_path), devices=["0", "3"])
    sweep.run_all()
    assert sweep.failures == []
    assert {path.read_text() for path in grid.out.glob("runs/*/device")} <= {"0", "3"}


def test_corrupt_cost_is_counted_from_zero(tmp_path):
    grid = read_grid(write_grid(tmp_path))
    (grid.out / "costs").mkdir(parents=True)
    (grid.out / "costs" / "none-seed1.json").write_text("")
    sweep = Sweep(grid, launcher=fake_launcher(tmp_path))
    sweep.run_all(only={"none-seed1"})
    assert sweep.failures == []
    assert json.loads((grid.out / "costs" / "none-seed1.json").read_text())["exit"] == 0


def test_finished_runs_must_match_grid(tmp_path):
    grid = read_grid(write_grid(tmp_path))
    for name in ("none-seed1", "mul-seed2"):
        folder = grid.out / "runs" / name
        folder.mkdir(parents=True)
        loaded = load(grid.base, grid.cli_args(next(run for run in grid.runs if run.name == name)))
        loaded.write_resolved(folder / "resolved.yaml")
        (folder / "scores.json").write_text("{}")
    Sweep(grid).check_finished()
    longer = read_grid(write_grid(tmp_path, common={"training.max_steps": 900}))
    with pytest.raises(
        InputError, match=r"2 runs have finished with other settings .* none-seed1: training.max_steps: was 7"
    ):
        Sweep(longer).check_finished()
    scored = read_grid(write_grid(tmp_path, common={"training.max_steps": 7, "tasks.vqa.decoding.num_beams": 3}))
    with pytest.raises(InputError, match=r"num_beams: was \d, is 3.* rm -r .*none-seed1 .*mul-seed2"):
        Sweep(scored).check_finished()
    faster = read_grid(write_grid(tmp_path, common={"training.max_steps": 7, "evaluation.batch_size": 3}))
    Sweep(faster).check_finished()


# ---- sweeps that end early, as processes forked from this one: a new interpreter would import torch again


def fork_sweep(folder, launcher, *arguments):
    """Start a sweep in a new process group; its messages go to ``folder/messages``."""

    def target():
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
        descriptor = os.open(folder / "messages", os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        with open(2, "w", closefd=False) as stderr:
            import sys

            sys.stderr = stderr
            code = main(["sweep", str(folder / "grid.yaml"), "--launcher", " ".join(launcher), *arguments])
        os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    return process


def wait_for_runs(folder, count):
    limit = time.monotonic() + 200
    while len(list(folder.glob("out/runs/*/started"))) < count:
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_sweep_asks_runs_to_save(tmp_path, number):
    """Ctrl-C reaches the whole process group of the sweep, but not its runs."""
    write_grid(tmp_path)
    sweep = fork_sweep(tmp_path, fake_launcher(tmp_path, sleep=60), "--max-parallel", "2")
    wait_for_runs(tmp_path, 2)
    os.killpg(sweep.pid, number)
    sweep.join(60)
    messages = (tmp_path / "messages").read_text()
    assert sweep.exitcode == 75, messages
    assert "stopped, 2 runs saved; run the same command again" in messages
    assert "failed" not in messages.replace("0 failed", "")
    assert len(list(tmp_path.glob("out/runs/*"))) == len(list(tmp_path.glob("out/runs/*/saved"))) == 2


def test_lock_outlives_killed_sweep(tmp_path):
    grid = read_grid(write_grid(tmp_path, exclude=[{"routing": "mul"}, {"seed": 2}]))
    sweep = fork_sweep(tmp_path, fake_launcher(tmp_path, sleep=3))
    wait_for_runs(tmp_path, 1)
    sweep.kill()
    sweep.join()
    jobs = Sweep(grid, threads=1).jobs
    with jobs.try_lock("none-seed1") as lock:
        assert lock is None, "the program of the run still holds it"
    limit = time.monotonic() + 60
    while not jobs.finished("none-seed1") and time.monotonic() < limit:
        time.sleep(0.05)
    assert (grid.out / "runs" / "none-seed1" / "started").read_text() == "x"
    assert jobs.finished("none-seed1")
