"""User-facing errors and the exit codes of the commands."""

from __future__ import annotations

import errno
import functools
import os
import re
import select
import sys
from collections.abc import Callable, Iterable

EXIT_FAILURE = 1
"""The command ran and did not succeed, or another process of the run ended."""
EXIT_BAD_INPUT = 2
"""The input has to be fixed first: a configuration, a data file, an argument, a path."""
EXIT_PREEMPTED = os.EX_TEMPFAIL
"""75, "temporary failure" of sysexits.h: a signal ended the run early and its state is saved. The same command resumes
it. 128 + signal number would look like a run that was killed and saved nothing."""

_CODES = "ENOSPC EDQUOT EROFS EACCES EPERM ENOTDIR EISDIR EEXIST ENOENT ENAMETOOLONG"
WRITE_ERRNOS = {getattr(errno, code) for code in _CODES.split(" ")}
"""Error numbers of a path that cannot be used: the disk or the path has to be fixed, not the code."""

PEER_DISCONNECTED = re.compile(r"Connection (closed|reset) by peer")
"""Message of gloo in a process that waits for one that has ended."""


class InputError(Exception):
    """Bad input, reported so that a user can fix it.

    Args:
        problems: one message or several of one kind, collected before raising. A good message states what is wrong,
            where (``file:line`` or a dotted path), how many, one instance, and the command that fixes it.

    Raises:
        ValueError: no problems.
    """

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        if not self.problems:
            raise ValueError("an InputError needs at least one problem")
        super().__init__("\n".join(self.problems))


def truncate(text: str, limit: int = 80) -> str:
    """Shorten a text to ``limit`` characters for a message; an ellipsis marks the cut."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def cli_errors(main: Callable[..., int | None]) -> Callable[..., int]:
    """Decorate a command's ``main``: errors that a user can fix are printed on stderr without a traceback.

    Returns:
        the command with exit code 2 for bad input or an unusable path, and 1 if another process of the run ended or
        the reader of stdout closed its pipe.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            code = main(*args, **kwargs) or 0
            sys.stdout.flush()
            return code
        except InputError as error:
            for problem in error.problems:
                print(f"error: {problem}", file=sys.stderr)
            return EXIT_BAD_INPUT
        except OSError as error:
            if _stdout_closed(error):
                return EXIT_FAILURE
            if error.errno not in WRITE_ERRNOS:
                raise
            print(
                f"error: {error.filename or 'writing'}: {error.strerror}. Free some space, or choose another path "
                f"(run_dir=PATH, data_dir=PATH, --out PATH); nothing written before is lost",
                file=sys.stderr,
            )
            return EXIT_BAD_INPUT
        except RuntimeError as error:
            if not PEER_DISCONNECTED.search(str(error)):
                raise
            print(
                "error: another process of this run has ended, and this one cannot continue without it; the last "
                "message of that process is the reason. Saved checkpoints are complete: resume with --resume auto",
                file=sys.stderr,
            )
            return EXIT_FAILURE

    return wrapped


def _stdout_closed(error: OSError) -> bool:
    """Whether an error is that of a stdout whose reader has closed it (``multitask-vl ls methods | head -1``)."""
    if not isinstance(error, BrokenPipeError):
        return False
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by an object without a file
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    if not poll.poll(0):  # stdout is fine, another pipe broke
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)  # the interpreter flushes stdout when it exits
    return True
