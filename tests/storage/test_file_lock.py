"""Exclusive file locks between processes and after crashes."""

import errno
import os
import signal
import time

import pytest

from multitask_vl.errors import InputError
from multitask_vl.storage.file_lock import FileLock, LockHeld


def test_lock_of_killed_process_is_released_despite_its_workers(tmp_path):
    path = tmp_path / "store.h5"
    reading, writing = os.pipe()
    holder = os.fork()
    if holder == 0:
        FileLock(path).__enter__()
        worker = os.fork()
        if worker == 0:
            time.sleep(30)
            os._exit(0)
        os.write(writing, str(worker).encode())
        time.sleep(30)
        os._exit(1)
    worker = int(os.read(reading, 20))
    try:
        with pytest.raises(LockHeld, match=f"process {holder}"):
            FileLock(path).__enter__()
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        assert path.with_name("store.h5.lock").exists(), "a leftover lock file has no effect"
        with FileLock(path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(reading)
        os.close(writing)


def test_lock_retries_when_its_file_was_removed(tmp_path, monkeypatch):
    lock, is_current = FileLock(tmp_path / "store.h5"), FileLock._is_current
    results = []

    def remove_first(self, descriptor):
        if not results:
            self.lock.unlink()
        results.append(is_current(self, descriptor))
        return results[-1]

    monkeypatch.setattr(FileLock, "_is_current", remove_first)
    with lock, pytest.raises(LockHeld):
        FileLock(tmp_path / "store.h5").__enter__()
    assert results == [False, True]


def test_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.raises(InputError, match="does not support locks"):
        FileLock(tmp_path / "store.h5").__enter__()
