"""End with the parent process, however it ends.

The child's standard input is a pipe whose other end only the parent holds, so it reaches its end when
the parent does. That alone has a gap: a process forked from the parent has a copy of the other end.
`EmbeddedServer` closes the copies it can know of; where the system has descriptors for processes
(Linux 5.3), the parent itself is watched too.

Linux's parent-death signal is not used: it comes when the *thread* that started the child ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

_STDIN = 0


@contextmanager
def watch_parent(pid: int | None, ended: Callable[[], object]) -> Iterator[None]:
    """Call *ended* on the running loop, once or more, when the parent process *pid* is gone.

    None watches nothing.
    """
    if pid is None:
        yield
        return
    with ExitStack() as stack:
        _watch(_STDIN, ended, stack)
        if sys.platform == "linux":
            try:
                parent = os.pidfd_open(pid)
            except ProcessLookupError:
                ended()
            except OSError:
                pass  # an old kernel, or a sandbox that forbids it
            else:
                stack.callback(os.close, parent)
                _watch(parent, ended, stack)
        yield


def _watch(descriptor: int, ended: Callable[[], object], stack: ExitStack) -> None:
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended)
    stack.callback(loop.remove_reader, descriptor)
