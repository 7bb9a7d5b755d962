"""SLURM scripts with replaced srun and scontrol: array jobs on one store, two nodes, preemption."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from feature_extraction.maintenance.inspection import verify
from multitask_vl.data.store.feature_store import FeatureStore
from tests import tiny_run
from tests.drawn_images import tiny_config

SCRIPTS = sorted((tiny_run.ROOT / "launch" / "slurm").glob("*.sh"))
SRUN = """#!/usr/bin/env bash
# like srun: the command once per node
for node in $(seq 1 "${SLURM_NNODES:-1}"); do
  env SLURM_PROCID=$((node - 1)) SLURM_LOCALID=0 SLURM_NODEID=$((node - 1)) \\
    SLURM_STEP_NUM_TASKS="${SLURM_NNODES:-1}" SLURM_STEP_NUM_NODES="${SLURM_NNODES:-1}" "$@" &
  started+=($!)
done
trap 'kill -USR1 "${started[@]}"' USR1  # and forwards it
for pid in "${started[@]}"; do
  wait "$pid" || code=$?
  while kill -0 "$pid" 2>/dev/null; do code=0; wait "$pid" || code=$?; done
done
exit "${code:-0}"
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1" = requeue ] && echo "requeued $2"
[ "$1 $2" = "show hostnames" ] && for node in $(seq 1 "${SLURM_NNODES:-1}"); do echo localhost; sleep 0.1; done
"""


@pytest.fixture
def slurm(tmp_path):
    """Environment of a batch script whose srun and scontrol are `SRUN` and `SCONTROL`."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {key: value for key, value in tiny_run.environment().items() if not key.startswith("SLURM")}
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(os.sys.executable).parent), environment["PATH"]])
    job = {"SLURM_SUBMIT_DIR": str(tiny_run.ROOT), "SLURM_JOB_ID": str(free_port() - 20000)}
    return {**environment, "PATH": path, **job}


def free_port() -> int:
    """A port from 20000 to 29999, as the script derives it from the job id."""
    for port in range(20000 + os.getpid() % 5000, 30000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")


def start(script, arguments, environment) -> subprocess.Popen:
    """Start a batch script."""
    command = ["bash", str(tiny_run.ROOT / "launch" / "slurm" / script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_bash_with_submit_command(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert f"sbatch launch/slurm/{script.name} --config" in text
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "#SBATCH --requeue" in text
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    code = text.index("set -euo pipefail")
    assert all(text.index(line) < code for line in directives), "SLURM stops reading at the first command"
    for path in (word for line in text.splitlines() for word in line.split() if word.startswith("launch/")):
        assert (tiny_run.ROOT / path).exists(), path


@pytest.mark.slow
def test_array_jobs_fill_one_store(tmp_path, slurm):
    config = tiny_config(tmp_path, 24, batch_size=2)
    sections = yaml.safe_load(config.model_dump_json(include={"data_dir": True, "vision": True, "features": True}))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(sections))
    arguments = ["--config", tmp_path / "config.yaml", "features.shards=4", "features.num_workers=0"]
    tasks = [
        start("extract_array.sh", arguments, {**slurm, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2",
                                          "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_STEP": "1"})
        for task in range(2)
    ]  # fmt: skip
    for task in tasks:
        output, _ = task.communicate(timeout=240)
        assert task.returncode == 0, output
        assert "24 of 24 images" in output
    store = FeatureStore(tmp_path / "features.h5")
    assert len(store.paths) == 4
    assert len(store) == 24
    assert verify(tmp_path / "features.h5", [tmp_path / "images"]).ok


@pytest.mark.slow
def test_two_nodes_form_one_run(tmp_path, slurm):
    tiny_run.write_dataset(tmp_path)
    config = tiny_run.write_config(tmp_path, training={"max_steps": 4}, evaluation={"final_splits": []})
    job = start("train.sh", ["--config", config], {**slurm, "SLURM_JOB_NODELIST": "here[1-2]", "SLURM_NNODES": "2"})
    output, _ = job.communicate(timeout=280)
    assert job.returncode == 0, output
    assert "on 2 x cpu" in output
    assert (tmp_path / "run" / "scores.json").exists()


@pytest.mark.slow
def test_signal_saves_requeues_and_resumes(tmp_path, slurm):
    tiny_run.write_dataset(tmp_path)
    training = {"max_steps": 100, "checkpoint_steps": 1000, "log_steps": 1}
    config = tiny_run.write_config(tmp_path, training=training, evaluation={"final_splits": []})
    job = start("train.sh", ["--config", config], {**slurm, "SLURM_JOB_NODELIST": "here1"})
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, job)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=280)
    assert job.returncode != 0
    assert f"requeued {slurm['SLURM_JOB_ID']}" in output
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert 3 < step < 100
    before = metrics.read_text()
    job = start("train.sh", ["--config", config], {**slurm, "SLURM_JOB_NODELIST": "here1"})
    output, _ = job.communicate(timeout=280)
    assert job.returncode == 0, output
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 101))
    assert metrics.read_text().startswith(before), "rows before the signal are kept as they were"


def wait_until(holds, job, within_s=240):
    """Wait for a job to do something; fail with its output if it ends before."""
    limit = time.monotonic() + within_s
    while not holds():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.2)
