"""Whether there are file descriptors for a loop, looked at before one is made.

A loop that cannot be made whole leaves things behind: libuv aborts the process when its first one finds fewer
than two, asyncio's complains when it is collected, and so does the coroutine that was for it.
"""

from __future__ import annotations

import os

_FOR_A_LOOP = 8


def require_descriptors_for_loop() -> None:
    """Raise OSError, with the numbers, unless as many descriptors can be opened as a loop needs."""
    opened: list[int] = []
    try:
        while len(opened) < _FOR_A_LOOP:
            opened.append(os.dup(opened[0]) if opened else os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        raise OSError(
            error.errno,
            f"an event loop needs {_FOR_A_LOOP} spare file descriptors and only {len(opened)} are left; "
            "close some, or raise the limit (ulimit -n)",
        ) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)
