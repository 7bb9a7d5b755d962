"""What if the machine is wanted back: SIGTERM or SIGUSR1 ends a run where nothing is lost, with exit code 75."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Schedulers send the one when time is up or a node is wanted back, and the other where they are asked for a notice."""
EXIT_RUN_AGAIN = os.EX_TEMPFAIL
"""75, "temporary failure, the user is invited to try again" of sysexits.h: nothing is wrong, and the same command goes
on. 128 + the signal's number would look like a run that was killed and saved nothing."""


class Interrupted(BaseException):
    """A run ends early because a signal asked for it; says what was saved, or nothing where another process does.

    As KeyboardInterrupt it is no Exception: who guards against whatever a scorer or a plugin raises lets it pass.
    """


class Interruption:
    """Whether a signal has asked this process to stop, and what becomes of it.

    Attributes:
        asked: name of the signal; None as long as none came.
        waits: whether the loop looks at ``asked`` between steps. Before and after, when there is no step to finish, a
            signal raises Interrupted at once.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self.waits = False

    def receive(self, number: int, _: object = None) -> None:
        """Signal handler."""
        self.asked = signal.Signals(number).name
        if not self.waits:
            raise Interrupted(f"stopped by {self.asked}")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that is repeated as a whole after a restart, such as an evaluation: a signal ends it where it stands."""
        before, self.waits = self.waits, False
        try:
            if self.asked:
                raise Interrupted(f"stopped by {self.asked}")
            yield
        finally:
            self.waits = before


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Have the signals handled by an `Interruption` while the context lasts; for programs, in their main thread."""
    interruption = Interruption()
    before = {number: signal.signal(number, interruption.receive) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def shielded() -> None:
    """Let signals to a whole job pass a process by that only prepares batches: the one it works for ends it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
