"""Checkpoint writes that are killed or meet a full disk: the checkpoint before stays valid."""

import os
import resource
import signal

import pytest
import torch
from safetensors.torch import load_file

from multitask_vl.errors import InputError
from multitask_vl.training import checkpoint
from tests.fork_server import disk_full, kill, on_disk_change
from tests.training.test_checkpoint import save, trained

MAX_CHANGES = 200
"""Upper bound of the disk changes of one save; each is tried, until a save ends before it."""


def in_a_fork(act) -> int:
    """Return the exit code of ``act`` in a forked process: 0 if it returns; a signal's is negative."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        except InputError as error:
            code = 2 if "cannot write checkpoint" in str(error) and "resume=auto" in str(error) else 3
        except OSError:
            code = 4
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def states():
    """Parameters and optimizer after 5 and after 10 steps."""
    return {5: trained(steps=5), 10: trained(steps=10)}


def valid_steps(folder, states):
    """Return the steps of the checkpoints in a folder; asserts that each is valid and has the weights of its step."""
    for path in checkpoint.steps(folder):
        assert checkpoint.corruption(path) is None, path
        weights = load_file(path / "adapter" / "adapter_model.safetensors")
        named, _ = states[checkpoint.step_of(path)]
        assert all(torch.equal(weights[name], named[name]) for name in named)
    return [checkpoint.step_of(path) for path in checkpoint.steps(folder)]


@pytest.mark.parametrize("keep", [1, 2])
def test_save_survives_kill_before_each_disk_change(tmp_path, states, keep):
    """Every instant with new content on the disk, including the deletion of old checkpoints."""
    for number in range(1, MAX_CHANGES):
        folder = tmp_path / str(number)
        save(folder, 5, *states[5])

        def save_and_die(folder=folder, number=number):
            on_disk_change(str(folder), number, kill)
            save(folder, 10, *states[10], keep=keep)

        code = in_a_fork(save_and_die)
        found, warnings = checkpoint.latest_valid(folder)
        assert warnings == []
        assert valid_steps(folder, states) in ([5], [5, 10], [10])
        checkpoint.remove_after(folder, checkpoint.step_of(found))
        save(folder, 10, *states[10], keep=keep)
        assert valid_steps(folder, states) == ([10] if keep == 1 else [5, 10])
        assert not list(folder.glob(".*")), "temporary folders are left"
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert 10 < number < MAX_CHANGES - 1


def test_save_survives_full_disk_at_each_change(tmp_path, states):
    for number in range(1, MAX_CHANGES):
        folder = tmp_path / str(number)
        save(folder, 5, *states[5])

        def save_and_fail(folder=folder, number=number):
            on_disk_change(str(folder), number, disk_full)
            save(folder, 10, *states[10])

        code = in_a_fork(save_and_fail)
        assert 5 in valid_steps(folder, states)
        if code == 0:
            break
        assert code == 2
        assert not list(folder.glob(".writing*"))
    assert 10 < number < MAX_CHANGES - 1


def test_save_survives_file_size_limit(tmp_path, states):
    """A real error of the system, which refuses to write more than so many bytes into any file."""
    save(tmp_path, 5, *states[5])
    sizes = [path.stat().st_size for path in (tmp_path / "step-00000005").rglob("*") if path.is_file()]
    for limit in [0, 10, *(size - 1 for size in sizes)]:

        def write(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            save(tmp_path, 10, *states[10])

        assert in_a_fork(write) == 2, limit
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
        assert valid_steps(tmp_path, states) == [5]
