"""Who may write: one process at a time holds a file's lock, and a crash never leaves it behind."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from multitask_vl.errors import InputError

_held: set[int] = set()


class Busy(InputError):
    """Another process is writing the file."""


def _forget_in_child() -> None:
    # A forked worker that outlives its killed parent would keep the parent's lock through the inherited descriptor.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)


class WriterLock:
    """``with WriterLock(path):`` the only writer of `path`, by an advisory lock on ``PATH.lock`` beside it.

    The kernel drops the lock when the process ends, however it ends; a lock file that lies around means nothing.

    Args:
        path: the file to be written; it need not exist.
        wait: wait for another holder instead of refusing.
        elsewhere: what one can do who does not want to wait for the other writer.

    Raises:
        Busy: another process (or another lock of this one) holds it.
        InputError: the file system has no locks.
    """

    def __init__(
        self, path: Path, wait: bool = False, elsewhere: str = "write to another file (features.store=OTHER.h5)"
    ):
        self.path, self.elsewhere = path, elsewhere
        self.lock = path.with_name(f"{path.name}.lock")
        self.wait = wait
        self._descriptor = -1

    def __enter__(self) -> WriterLock:
        while True:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if self.wait else fcntl.LOCK_NB))
            except OSError as error:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                os.close(descriptor)
                kind = Busy if isinstance(error, BlockingIOError) else InputError
                raise kind(self._refused(error, holder)) from error
            if self._is_current(descriptor):
                break
            os.close(descriptor)  # the holder before us removed the file between our open and our lock
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        self._descriptor = descriptor
        _held.add(descriptor)
        return self

    def __exit__(self, *_) -> None:
        if self._descriptor in _held:
            self.lock.unlink(missing_ok=True)  # while still held, so nobody can be locking this very file
            _held.discard(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = -1

    def _is_current(self, descriptor: int) -> bool:
        try:
            there = self.lock.stat()
        except FileNotFoundError:
            return False
        mine = os.fstat(descriptor)
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

    def _refused(self, error: OSError, holder: str) -> str:
        if isinstance(error, BlockingIOError):
            return (
                f"{self.path}: is being written by {holder or 'another process'}; wait for it to end, or "
                f"{self.elsewhere}"
            )
        return (
            f"{self.lock}: this file system takes no locks ({error.strerror}), so two writers could not be told apart; "
            "write to a local disk and copy the store afterwards"
        )
