"""Gradients of two processes equal those of one, for every method and setting."""

import json
import subprocess
import sys

from tests import tiny_run
from tests.method_cases import ALL_METHODS, BART_SETTINGS, CASES


def test_two_processes_have_the_gradients_of_one():
    """With DDP and with FSDP. One pair of gloo processes runs all cases, since starting it is expensive."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.ddp_gradients"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tiny_run.ROOT, env=tiny_run.environment(),
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["world_size"] == 2
    assert set(found["differences"]) == {case.label for case in BART_SETTINGS}
    assert {(case.family, case.method) for case in ALL_METHODS} == {(case.family, case.method) for case in CASES}
    # rounding errors reach 2e-4 where noise passes the cubic mm1; a wrong share of the batch would be a half
    ddp = {label: values["ddp"] for label, values in found["differences"].items()}
    assert not {label: value for label, value in ddp.items() if not value < 1e-3}
    fsdp = {case: found["differences"][case.label]["fsdp"] for case in ALL_METHODS}
    assert {case.method for case in ALL_METHODS if fsdp[case] is None} == {"full"}
    assert not {case.label: value for case, value in fsdp.items() if value is not None and not value < 1e-3}
