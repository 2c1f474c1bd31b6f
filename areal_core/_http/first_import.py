"""Import a module without stopping the event loop for as long as that takes."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from importlib import import_module

_imported: set[str] = set()
_under_way: dict[str, Future[None]] = {}

# Held while importing, and while the process forks: a child forked in the middle would inherit the
# import system's lock on the module, taken by a thread it does not have, and wait for it for ever.
_importing = threading.RLock()


async def import_off_loop(name: str) -> None:
    """Import the module *name*, the first time in a thread of its own; everybody waits for the same import.

    A cancelled caller leaves the import going on. Raises what the import raises; the next call tries again.
    """
    if name in _imported:
        return
    mine = Future[None]()
    under_way = _under_way.setdefault(name, mine)
    if under_way is mine:
        _start_thread(name, mine)
    await _end_of(under_way)
    import_module(name)  # nothing to do but to raise what went wrong
    _imported.add(name)


def _start_thread(name: str, finished: Future[None]) -> None:
    # Not the default executor, which may be shut down or busy, and a thread that the interpreter waits
    # for: it must not be finalized under the feet of an extension module that is being initialized.
    thread = threading.Thread(target=_import, args=(name, finished), name=f"import {name}", daemon=False)
    try:
        thread.start()
    except RuntimeError:  # no thread to be had, or the interpreter is about to end: better late than never
        _import(name, finished)


def _import(name: str, finished: Future[None]) -> None:
    try:
        with _importing:
            import_module(name)
    except BaseException:
        pass  # raised again by the import in each of those who wait
    finally:
        del _under_way[name]
        finished.set_result(None)


async def _end_of(under_way: Future[None]) -> None:
    loop = asyncio.get_running_loop()
    reached = loop.create_future()

    def reach() -> None:
        if not reached.done():  # else the caller was cancelled meanwhile
            reached.set_result(None)

    def wake(_: Future[None]) -> None:
        try:
            loop.call_soon_threadsafe(reach)
        except RuntimeError:  # that loop was closed meanwhile
            pass

    under_way.add_done_callback(wake)
    await reached


def _arrive_in_child() -> None:
    _importing.release()
    _under_way.clear()  # their threads stayed behind


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_importing.acquire, after_in_parent=_importing.release, after_in_child=_arrive_in_child
    )
