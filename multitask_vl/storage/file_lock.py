"""Advisory file locks that a crash never leaves behind."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from multitask_vl.errors import InputError

_held: set[int] = set()


class LockHeld(InputError):
    """Another process holds the lock."""


def _close_in_child() -> None:
    # A forked worker that outlives its killed parent would keep the parent's lock through the inherited descriptor.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


class FileLock:
    """Exclusive lock on a path as a context manager: an advisory lock (flock) on ``PATH.lock``.

    The kernel releases the lock when the process ends for any reason; a leftover lock file has no effect.

    Args:
        path: the file to be written; it need not exist, its folder does.
        wait: wait for another holder instead of raising `LockHeld`.
        hint: completes the message of `LockHeld`, "wait for it to end, or ...".

    Raises:
        LockHeld: another process, or another lock of this process, holds it.
        InputError: the file system does not support locks.
        OSError: the lock file cannot be created.
    """

    def __init__(self, path: Path, wait: bool = False, hint: str = "write to another file (features.store=OTHER.h5)"):
        self.path, self.hint = path, hint
        self.lock = path.with_name(f"{path.name}.lock")
        self.wait = wait
        self._descriptor = -1

    def __enter__(self) -> FileLock:
        while True:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if self.wait else fcntl.LOCK_NB))
            except OSError as error:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise self._error(error, holder) from error
            if self._is_current(descriptor):
                break
            os.close(descriptor)  # the previous holder removed the file between our open and our lock
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        self._descriptor = descriptor
        _held.add(descriptor)
        return self

    def __exit__(self, *_) -> None:
        if self._descriptor in _held:
            self.lock.unlink(missing_ok=True)  # while still held, so that nobody can be locking this very file
            _held.discard(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = -1

    def fileno(self) -> int:
        """The descriptor that holds the lock: a program that inherits it (``pass_fds``) holds the lock as well."""
        return self._descriptor

    def _is_current(self, descriptor: int) -> bool:
        """Whether an open lock file is still the one that the path names."""
        try:
            current = self.lock.stat()
        except FileNotFoundError:
            return False
        opened = os.fstat(descriptor)
        return (opened.st_dev, opened.st_ino) == (current.st_dev, current.st_ino)

    def _error(self, error: OSError, holder: str) -> InputError:
        if isinstance(error, BlockingIOError):
            return LockHeld(
                f"{self.path}: is being written by {holder or 'another process'}; wait for it to end, or {self.hint}"
            )
        return InputError(
            f"{self.lock}: this file system does not support locks ({error.strerror}), so two writers could overwrite "
            "each other; write to a local disk and copy the file afterwards"
        )
