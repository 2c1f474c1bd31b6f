"""Run a stopped loop until a coroutine ends, whatever the tasks on it do meanwhile.

``loop.run_until_complete`` gives up when any task of the loop raises SystemExit or KeyboardInterrupt,
when one calls ``loop.stop()``, and when another loop runs in this thread. Ending a loop in order must
not depend on how well its tasks behave, so `drive` starts the loop again until its own coroutine is
done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def drive(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, T],
    *,
    on_contained: Callable[[BaseException], object] | None = None,
) -> T:
    """Run the stopped, open *loop* in this thread until *coroutine* ends, and return its value.

    A KeyboardInterrupt or SystemExit that leaves the loop, from a task or from a signal, is handed to
    *on_contained* (None: dropped) and the loop is run again; ``loop.stop()`` in a task is undone. The
    coroutine bounds its own time. No task can cancel or await it: ``asyncio.all_tasks()`` does not
    show it. Another loop may be running in this thread; it stands still meanwhile.

    Raises what the coroutine raises, and RuntimeError when *loop* is running or closed.
    """
    if loop.is_running() or loop.is_closed():
        coroutine.close()  # or it would complain that it was never awaited
        state = "running" if loop.is_running() else "closed"
        raise RuntimeError(f"{loop!r} is {state}; only a stopped, open loop can be driven")
    # A loop refuses to run inside another. A helper thread would satisfy it, but what runs on the loop
    # may be bound to this thread (a sqlite3 connection), and at exit no thread can be started.
    outer = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        return _run_to_its_end(loop, coroutine, on_contained)
    finally:
        asyncio._set_running_loop(outer)


def _run_to_its_end(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, T],
    on_contained: Callable[[BaseException], object] | None,
) -> T:
    # Not loop.create_task: the loop may have a task factory with ideas of its own.
    task = asyncio.Task(coroutine, loop=loop)
    asyncio.tasks._unregister_task(task)
    task.add_done_callback(lambda _: loop.stop())
    while not task.done():
        try:
            loop.run_forever()
        except (KeyboardInterrupt, SystemExit) as exc:
            if on_contained is not None:
                on_contained(exc)
    return task.result()
