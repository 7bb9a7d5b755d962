"""A checkpoint that is being written when the process dies or the disk is full: the one before is whole."""

import os
import resource
import signal

import pytest
import torch
from safetensors.torch import load_file

from multitask_vl.errors import InputError
from multitask_vl.training import checkpoint
from tests.fork_server import changes, kill, no_room
from tests.training.test_checkpoint import save, trained

MOST = 200
"""Changes of the disk that one save makes at most; each is tried, until a save is through before."""


def in_a_fork(act) -> int:
    """What becomes of ``act`` in a forked process: its exit code, 0 if it returns; a signal's is negative."""
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
    """Parameters and optimiser after 5 and after 10 steps."""
    return {5: trained(steps=5), 10: trained(steps=10)}


def whole_ones(folder, states):
    """Steps of the checkpoints in a folder, each of them whole and with the weights of its step."""
    for path in checkpoint.steps(folder):
        assert checkpoint.damage(path) is None, path
        weights = load_file(path / "adapter" / "adapter_model.safetensors")
        named, _ = states[checkpoint.step_of(path)]
        assert all(torch.equal(weights[name], named[name]) for name in named)
    return [checkpoint.step_of(path) for path in checkpoint.steps(folder)]


@pytest.mark.parametrize("keep", [1, 2])
def test_death_before_each_single_change_of_the_disk(tmp_path, states, keep):
    """Every instant at which something is on the disk that was not there before, the deletion of old ones included."""
    for number in range(1, MOST):
        folder = tmp_path / str(number)
        save(folder, 5, *states[5])

        def die(folder=folder, number=number):
            changes(str(folder), number, kill)
            save(folder, 10, *states[10], keep=keep)

        code = in_a_fork(die)
        found, remarks = checkpoint.newest_whole(folder)
        assert remarks == []
        assert whole_ones(folder, states) in ([5], [5, 10], [10])
        checkpoint.drop_later(folder, checkpoint.step_of(found))
        save(folder, 10, *states[10], keep=keep)
        assert whole_ones(folder, states) == ([10] if keep == 1 else [5, 10])
        assert not list(folder.glob(".*")), "something half done stays"
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert 10 < number < MOST - 1


def test_a_full_disk_at_each_single_change(tmp_path, states):
    for number in range(1, MOST):
        folder = tmp_path / str(number)
        save(folder, 5, *states[5])

        def fill(folder=folder, number=number):
            changes(str(folder), number, no_room)
            save(folder, 10, *states[10])

        code = in_a_fork(fill)
        assert 5 in whole_ones(folder, states)
        if code == 0:
            break
        assert code == 2
        assert not list(folder.glob(".writing*"))
    assert 10 < number < MOST - 1


def test_no_room_in_the_middle_of_a_file(tmp_path, states):
    """For real: the system refuses to write more than so many bytes into one file, whichever file that meets first."""
    save(tmp_path, 5, *states[5])
    sizes = [path.stat().st_size for path in (tmp_path / "step-00000005").rglob("*") if path.is_file()]
    for limit in [0, 10, *(size - 1 for size in sizes)]:

        def write(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            save(tmp_path, 10, *states[10])

        assert in_a_fork(write) == 2, limit
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
        assert whole_ones(tmp_path, states) == [5]
