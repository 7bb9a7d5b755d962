"""Do the SLURM scripts do their work where srun and scontrol are stood in for: array jobs on one store, two nodes?"""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests import tiny_run

SCRIPTS = sorted((tiny_run.ROOT / "launch" / "slurm").glob("*.sh"))
SRUN = """#!/usr/bin/env bash
# as srun does: the command once on every node
for node in $(seq 1 "${SLURM_NNODES:-1}"); do
  env SLURM_PROCID=$((node - 1)) SLURM_LOCALID=0 SLURM_NODEID=$((node - 1)) \\
    SLURM_STEP_NUM_TASKS="${SLURM_NNODES:-1}" SLURM_STEP_NUM_NODES="${SLURM_NNODES:-1}" "$@" &
  started+=($!)
done
for one in "${started[@]}"; do wait "$one" || code=$?; done
exit "${code:-0}"
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1 $2" = "show hostnames" ] && for node in $(seq 1 "${SLURM_NNODES:-1}"); do echo localhost; done
"""


@pytest.fixture
def slurm(tmp_path):
    """Environment of a batch script on a machine whose srun and scontrol are `SRUN` and `SCONTROL`."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    own = {key: value for key, value in tiny_run.environment().items() if not key.startswith("SLURM")}
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(os.sys.executable).parent), own["PATH"]])
    return {**own, "PATH": path, "SLURM_SUBMIT_DIR": str(tiny_run.ROOT), "SLURM_JOB_ID": str(free_port() - 20000)}


def free_port() -> int:
    """One from 20000 to 29999, as the script takes it from the job's number."""
    for port in range(20000 + os.getpid() % 5000, 30000):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")


def start(script, words, environment) -> subprocess.Popen:
    """A batch script, as SLURM starts it: from a copy elsewhere."""
    command = ["bash", str(tiny_run.ROOT / "launch" / "slurm" / script), *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_bash_and_says_how_to_submit_it(script):
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
def test_a_run_on_two_nodes_is_one_run(tmp_path, slurm):
    tiny_run.write_files(tmp_path)
    config = tiny_run.write_config(tmp_path, training={"steps": 4}, evaluation={"final": []})
    job = start("train.sh", ["--config", config], {**slurm, "SLURM_JOB_NODELIST": "here[1-2]", "SLURM_NNODES": "2"})
    said, _ = job.communicate(timeout=280)
    assert job.returncode == 0, said
    assert "on 2 x cpu" in said
    assert (tmp_path / "run" / "scores.json").exists()
