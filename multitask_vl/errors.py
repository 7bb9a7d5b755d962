"""How does a user learn what is wrong with their input: one screen, no traceback, exit code 2."""

from __future__ import annotations

import errno
import functools
import re
import sys
from collections.abc import Callable, Iterable

EXIT_BAD_INPUT = 2
_CODES = "ENOSPC EDQUOT EROFS EACCES EPERM ENOTDIR EISDIR EEXIST ENOENT ENAMETOOLONG"
UNWRITABLE = {getattr(errno, code) for code in _CODES.split(" ")}
"""What the system says of a path that cannot be used: the user's disk or path is to be mended, not the code."""

EXIT_PEER_ENDED = 1
PEER_ENDED = re.compile(r"Connection (closed|reset) by peer")
"""What gloo says in a process that waits for one that has ended."""


class InputError(Exception):
    """Bad input, told so that a user can mend it.

    Args:
        problems: one message or several of one kind, collected before raising. A good message says what is wrong, where
            (``file:line`` or a dotted path), how much of it, one concrete instance, and the command that mends it.
    """

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        if not self.problems:
            raise ValueError("an InputError needs at least one problem")
        super().__init__("\n".join(self.problems))


def exits_cleanly(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a command's ``main``: what a user can mend is told on stderr, without a traceback.

    Bad input, or a path the system refuses, becomes exit code 2; the end of another process of the same run becomes 1.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except InputError as error:
            for problem in error.problems:
                print(f"error: {problem}", file=sys.stderr)
            return EXIT_BAD_INPUT
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            print(
                f"error: {error.filename or 'writing'}: {error.strerror}. Make room, or name another place "
                f"(run_dir=PATH, data_dir=PATH, --out PATH); nothing written before is lost",
                file=sys.stderr,
            )
            return EXIT_BAD_INPUT
        except RuntimeError as error:
            if not PEER_ENDED.search(str(error)):
                raise
            print(
                "error: another process of this run has ended, and this one cannot go on without it; what that one "
                "says last is the reason. What was saved is whole: training goes on with --resume auto",
                file=sys.stderr,
            )
            return EXIT_PEER_ENDED

    return wrapped
