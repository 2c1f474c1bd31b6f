"""Which process this is, and what a forked child must leave alone.

A child inherits the parent's event loops without the threads that ran them, and shares their epoll
instance. Closing such a loop in the child, or letting the garbage collector close it, removes the
parent's sockets from that epoll: the parent then hangs. So the child pins every loop that was
shielded, for good, and whatever recorded `home()` before the fork can tell that it is abroad.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import Callable

_home = object()
_shielded: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
_pinned: list[object] = []


def home() -> object:
    """Return the token of this process; a forked child has another one, compared by identity."""
    return _home


def shield(loop: asyncio.AbstractEventLoop) -> None:
    """Have forked children pin *loop*, and with it all that is reachable from it. Keeps it not alive."""
    with contextlib.suppress(ImportError):
        # A child that is forked while another thread is at this import would wait for that in vain.
        import ctypes  # noqa: F401 - 10 ms, and seldom needed
    _shielded.add(loop)


def call_in_child(callback: Callable[[], None]) -> None:
    """Run *callback* in every forked child, where the platform can fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=callback)


def _arrive_in_child() -> None:
    global _home
    _home = object()
    inherited = list(_shielded)
    if inherited:
        pin(inherited)
    _shielded.clear()


def pin(value: object) -> None:
    """Keep *value* and all it refers to alive to the end of the process, finalization included."""
    try:
        import ctypes
    except ImportError:  # a Python that was built without libffi
        _pinned.append(value)  # which finalization drops
    else:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


call_in_child(_arrive_in_child)
