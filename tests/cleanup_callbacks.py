"""Callbacks and loops that show what loop cleanup did."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Loop = asyncio.AbstractEventLoop


def name_of(function: Callable[..., object]) -> str:
    """Return what log lines call *function*."""
    return f"{function.__module__}.{function.__qualname__}"


@contextlib.contextmanager
def nothing_interrupts() -> Iterator[None]:
    """Fail when a KeyboardInterrupt comes out. By itself it would end pytest: that takes it for a Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as exc:
        raise AssertionError("a KeyboardInterrupt came out") from exc


class Recorder:
    """Has callbacks that note that they ran. All recorders are equal."""

    def __init__(self) -> None:
        self.ran: list[object] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recorder)

    def __hash__(self) -> int:
        return 0

    def sync(self) -> None:
        """Note "sync"."""
        self.ran.append("sync")

    async def turns(self) -> None:
        """Note "async" after a few turns of the loop."""
        for _ in range(3):
            await asyncio.sleep(0)
        self.ran.append("async")

    def note(self, value: object) -> Callable[[], object]:
        """Return a callback that notes *value*."""
        return lambda: self.ran.append(value)


class Later:
    """Awaitable, and neither coroutine nor future."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __await__(self) -> Generator[Any, None, None]:
        return self._recorder.turns().__await__()


class Hooked:
    """A loop whose own close does something first; to be mixed in."""

    before_close: Callable[[], object]

    def close(self) -> None:
        if not self.is_closed():  # type: ignore[attr-defined]
            self.before_close()
        super().close()  # type: ignore[misc]
