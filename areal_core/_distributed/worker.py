"""The process of a worker: what the driver calls, each in a thread apart from the loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct

from areal_core._distributed.floor import Floor
from areal_core._distributed.outbox import Outbox
from areal_core._distributed.wire import Orders, Shipment, decode, dump_error, ship
from areal_core._executor.playing import Player
from areal_core._log import get_logger
from areal_core._runner.lifecycle import life_of
from areal_core._runner.loop_thread import LoopFactory
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.workflow_context import ensure_descriptors

LINGER_S = 0.01
"""How long what has ended waits for more to go with it."""

ENOUGH = 256
"""How many ends go at once."""

_OWN_TASKS = 1 << 20
_LATE_S = (
    1.0  # how much later than its caller's patience a call is cancelled: the caller is the first to know
)


class Setup(Struct):
    """What makes a worker."""

    make_engine: Callable[[], Any]
    slots: int
    checks_format: bool
    masks: bool
    episode_timeout_s: float | None
    cancel_grace_s: float
    loop_factory: LoopFactory | None


class Worker:
    """Plays episodes for an executor in another process, once `begin` was called."""

    engine: Any = None
    """That of the worker of this process; None: this process is none."""

    def __init__(self, setup: bytes, loads: Callable[[bytes], Any], dumps: Callable[[Any], bytes]) -> None:
        self._setup, self._loads, self._dumps = setup, loads, dumps
        self._out = Outbox(LINGER_S, ENOUGH)
        self._order = -1
        self._telling = threading.Lock()
        self._told_since: float | None = None  # when the call of the engine began that runs now
        self._returns = threading.Event()

    def begin(self) -> None:
        """Make the engine and the loop. Raises whatever making the engine raises."""
        made: Setup = self._loads(self._setup)
        ensure_descriptors(made.slots)
        self._engine = Worker.engine = made.make_engine()
        self._runner: AsyncTaskRunner[Any] = AsyncTaskRunner(
            _OWN_TASKS, cancel_grace=made.cancel_grace_s, loop_factory=made.loop_factory
        )
        self._runner.initialize()
        player = Player(self._engine, made.checks_format, made.masks)
        self._floor = Floor(
            life_of(self._runner), player, made.slots, made.episode_timeout_s, self._out, self._loads
        )

    def give(self, data: bytes) -> None:
        """Follow orders; *data* is `Orders`. Does nothing once the loop ends.

        An engine that does not return from what it is told holds up what is to be played, and no other call.
        """
        orders = decode(data)
        self._take_news(orders)
        self._floor.give(orders)
        if orders.takes_back:
            self._returns.set()
            self._out.put((), is_last=True)

    def take(self, patience_s: float) -> Shipment:
        """Return what has ended, as soon as there is something, and how things are."""
        if self._floor.is_over:
            raise RuntimeError("the loop of this worker has ended")
        ended = self._out.take(patience_s)
        returned = []
        if self._returns.is_set():
            self._returns.clear()
            returned = self._floor.returned()
        stalled_s = max(self._floor.stalled_s(), self._telling_s())
        return ship(ended, returned, self._floor.stages(), stalled_s, self._dumps)

    def run(self, call: bytes, timeout_s: float | None = None) -> tuple[bool, Any]:
        """Run a coroutine function on the loop; return whether it went well, and its value or error, dumped.

        A caller who waits *timeout_s* seconds has it cancelled soon after.
        """
        try:
            async_fn, args = self._loads(call)
            limit_s = None if timeout_s is None else timeout_s + _LATE_S
            return True, self._dumps(self._runner.run(_limited, async_fn, args, limit_s))
        except BaseException as error:
            return False, dump_error(error, self._dumps)

    def stop(self, timeout_s: float) -> None:
        """End what runs, close what the loop has, and let the engine go."""
        self._out.close()
        self._runner.destroy(timeout_s)
        destroy = getattr(self._engine, "destroy", None)
        if callable(destroy):
            destroy()

    def _take_news(self, orders: Orders) -> None:
        with self._telling:
            if orders.number <= self._order:
                return
            self._order = orders.number
            self._told_since = time.monotonic()
            self._tell("set_version", self._set_version, orders.version)
            self._tell("hold_generation", self._hold_generation, orders.holds_generation)
            self._told_since = None

    def _tell(self, what: str, tell: Callable[[Any], None], news: Any) -> None:
        """Let the engine know. If it raises, what is to be played is played all the same."""
        try:
            tell(news)
        except BaseException as error:  # of the user's code, which may do anything
            get_logger().error("engine_took_no_news", method=what, exc_info=error)

    def _set_version(self, version: int) -> None:
        set_version = getattr(self._engine, "set_version", None)
        if callable(set_version) and self._engine.get_version() != version:
            set_version(version)

    def _hold_generation(self, holds: bool) -> None:
        hold = getattr(self._engine, "hold_generation", None)
        if callable(hold):
            hold(holds)

    def _telling_s(self) -> float:
        since = self._told_since
        return 0.0 if since is None else time.monotonic() - since


async def _limited(
    async_fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...], limit_s: float | None
) -> Any:
    async with asyncio.timeout(limit_s):
        return await async_fn(*args)
