"""Event loops in threads of their own, for what is used from several at once."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
MakeLoop = Callable[[], asyncio.AbstractEventLoop]


class ThreadedLoop:
    """A loop that runs in a thread until the end of the block."""

    def __init__(self, make_loop: MakeLoop) -> None:
        self.loop = make_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def begin(self, coro: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start *coro* as a task; the future cancels it."""
        return asyncio.run_coroutine_threadsafe(coro, self.loop)

    def run(self, coro: Coroutine[Any, Any, T], timeout: float = 20.0) -> T:
        """Run *coro* to its end."""
        return self.begin(coro).result(timeout)

    def settle(self) -> None:
        """Return when the loop has done all that it could without waiting."""
        self.run(_turns())

    def close(self) -> None:
        """Cancel what runs, and close the loop as runners do; nothing happens the second time."""
        if not self.loop.is_closed():
            self.run(_cancel_others())
            self.run(self.loop.shutdown_asyncgens())
            self.run(self.loop.shutdown_default_executor())
            self.break_off()

    def break_off(self) -> None:
        """Stop and close the loop with its tasks as they are."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextmanager
def threaded_loops(make_loop: MakeLoop, count: int) -> Iterator[list[ThreadedLoop]]:
    """Run *count* loops for the block."""
    with ExitStack() as stack:
        loops = []
        for _ in range(count):
            loops.append(ThreadedLoop(make_loop))
            stack.callback(loops[-1].close)
        yield loops


async def turns_until(condition: Callable[[], bool]) -> None:
    """Let the running loop turn until *condition* holds, which something on it brings about."""
    async with asyncio.timeout(20.0):
        while not condition():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)


async def gathered(*awaitables: Awaitable[T]) -> list[T | BaseException]:
    """Return what became of *awaitables*."""
    return list(await asyncio.gather(*awaitables, return_exceptions=True))


async def _turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
