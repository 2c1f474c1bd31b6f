"""Run a stopped loop until a coroutine ends, whatever the tasks on it do meanwhile.

``loop.run_until_complete`` gives up when any task of the loop raises SystemExit or KeyboardInterrupt,
when one calls ``loop.stop()``, and when another loop runs in this thread. Ending a loop in order must
not depend on how its tasks behave, so `drive` starts it again until its own coroutine is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import types
from collections.abc import Callable, Coroutine, Iterator
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
    *on_contained* (None: dropped) and the loop is run again; so it is after ``loop.stop()`` in a task. The
    coroutine bounds its own time. No task can cancel or await it: ``asyncio.all_tasks()`` does not
    show it. Another loop may be running in this thread; it stands still meanwhile.

    Raises what the coroutine raises, what the loop itself does, and RuntimeError when *loop* is running or
    closed. However it ends, the coroutine is closed.
    """
    try:
        if loop.is_running() or loop.is_closed():
            raise RuntimeError(f"{loop!r} cannot be driven; pass one that is stopped and open")
        with _outer_loop_set_aside():
            # Not loop.create_task: a task factory may do anything.
            task = asyncio.Task(coroutine, loop=loop)
            asyncio.tasks._unregister_task(task)
            task.add_done_callback(_stop_loop)
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # only if the loop itself fails
            while not task.done():
                try:
                    loop.run_forever()
                except (KeyboardInterrupt, SystemExit) as exc:
                    if on_contained is not None:
                        on_contained(exc)
            return task.result()
    finally:
        coroutine.close()  # where it did not end, or it would complain that it was never awaited


def _stop_loop(task: asyncio.Task[Any]) -> None:
    task.get_loop().stop()
    if not task.cancelled():
        task.exception()  # nobody else asks for it where the loop failed, and was run again


@contextlib.contextmanager
def ctrl_c_held(on_held: Callable[[BaseException], object]) -> Iterator[None]:
    """Hand the first Ctrl-C to *on_held* instead of raising it anywhere; the next ones raise at once.

    A KeyboardInterrupt raised inside the loop's own code can lose the very wake-up it is about to
    make, and `drive` would wait for ever. This is what ``asyncio.Runner`` does while it runs, under the
    same conditions: in the main thread, and when nobody else has set a handler.
    """
    default = signal.default_int_handler
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not default:
        yield
        return

    def hold(_signum: int, _frame: types.FrameType | None) -> None:
        signal.signal(signal.SIGINT, default)
        on_held(KeyboardInterrupt())

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, default)


@contextlib.contextmanager
def _outer_loop_set_aside() -> Iterator[None]:
    """Let another loop run although one does in this thread, which every loop refuses otherwise.

    A helper thread would do as well, but what lives on a loop may be bound to this thread (sqlite3), and
    when the interpreter ends no thread can be started. The price: a signal that comes while the inner loop
    is a uvloop in the main thread does not reach the outer loop's ``add_signal_handler``.
    """
    outer = asyncio._get_running_loop()
    if outer is None:
        yield
        return
    task = asyncio.current_task()
    if task is not None:
        asyncio.tasks._leave_task(outer, task)
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(outer)
        if task is not None:
            asyncio.tasks._enter_task(outer, task)
