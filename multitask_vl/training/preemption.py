"""SIGTERM and SIGUSR1 end a run between two steps, with its state saved and exit code 75."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Schedulers send SIGTERM when time is up or a node is reclaimed, and SIGUSR1 where a warning ahead is asked for."""
PEER_SIGNAL = "a signal to another process"
RESUME_HINT = "resume with the same command and --resume auto"
REDELIVERY_S = 0.01
"""Seconds until a signal is sent again whose exception Python could not raise."""


class Interrupted(BaseException):
    """A signal ended the run early. The message names what was saved; it is empty where another process reports it.

    Like KeyboardInterrupt this is not an Exception, so that handlers around a scorer or a plugin do not swallow it.
    """


class Interruption:
    """Signal that asks this process to stop, and when the process reacts to it.

    Attributes:
        signal_name: name of the received signal; None if there was none.
        deferred: whether the loop checks ``signal_name`` between steps. Where it does not, before and after training, a
            signal raises Interrupted immediately.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.deferred = False

    def receive(self, number: int, _: object = None) -> None:
        """Handle a signal."""
        self.signal_name = signal.Signals(number).name
        if not self.deferred:
            raise Interrupted(f"stopped by {self.signal_name}")

    def redeliver_dropped(self, unraisable: sys.UnraisableHookArgs) -> bool:
        """Send the signal again if Python dropped its exception.

        A signal is handled between any two bytecodes, also in a finalizer or a weakref callback, from which Python
        raises nothing: it reports the exception to ``sys.unraisablehook`` and continues.

        Returns:
            whether the dropped exception was that of a signal.
        """
        if not isinstance(unraisable.exc_value, Interrupted) or self.signal_name is None:
            return False
        number = signal.Signals[self.signal_name]

        def send() -> None:
            if signal.getsignal(number) == self.receive:  # not once the program has ended its work
                os.kill(os.getpid(), number)

        timer = threading.Timer(REDELIVERY_S, send)
        timer.daemon = True
        timer.start()
        return True

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """React to a signal immediately; for work that is repeated after resuming anyway, such as an evaluation."""
        before, self.deferred = self.deferred, False
        try:
            if self.signal_name:
                raise Interrupted(f"stopped by {self.signal_name}")
            yield
        finally:
            self.deferred = before


@contextmanager
def handle_signals() -> Iterator[Interruption]:
    """Have an `Interruption` handle the signals inside the context; for programs, in their main thread."""
    interruption = Interruption()
    before = {number: signal.signal(number, interruption.receive) for number in SIGNALS}
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: interruption.redeliver_dropped(unraisable) or hook(unraisable)
    try:
        yield interruption
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Ignore signals to the whole job in a data-loading worker, which the training process ends itself."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
