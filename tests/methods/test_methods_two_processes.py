"""Are two processes one, for every method, sharing, routing function and backbone?"""

import json
import subprocess
import sys

from tests import tiny_run
from tests.ddp_gradients import IN_SHARDS
from tests.method_cases import CASES


def test_two_processes_have_the_gradients_of_one():
    """Also with frozen weights in shards. One pair of gloo processes for all cases: what takes time is starting it."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.ddp_gradients"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tiny_run.ROOT, env=tiny_run.environment(),
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["world"] == 2
    assert set(found["differences"]) == {case.label for case in CASES}
    # rounding reaches 2e-4 where noise goes through the cubic mm1; a wrong share of the batch would be a half
    wrong = {label: values for label, values in found["differences"].items() if not values["data"] < 1e-3}
    assert not wrong
    shards = {case.label: found["differences"][case.label]["shards"] for case in IN_SHARDS}
    assert {case.method for case in IN_SHARDS} == {case.method for case in CASES}
    assert {case.method for case in IN_SHARDS if shards[case.label] is None} == {"full"}
    assert not {label: value for label, value in shards.items() if value is not None and not value < 1e-3}
