"""The process of a worker: what the driver calls, each in a thread apart from the loop."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from areal_core._distributed.floor import Floor
from areal_core._distributed.outbox import Outbox
from areal_core._distributed.wire import Orders, Shipment, decode, ship
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
        """Follow orders; *data* is `Orders`."""
        orders = decode(data)
        try:
            self._take_news(orders)
        except Exception as error:  # of the user's engine: what is to be played is played all the same
            get_logger().error("engine_took_no_news", exc_info=error)
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
        return ship(ended, returned, self._floor.stages(), self._floor.stalled_s(), self._dumps)

    def run(self, call: bytes) -> tuple[bool, Any]:
        """Run a coroutine function on the loop; return whether it went well, and its value or its error."""
        async_fn, args = self._loads(call)
        try:
            return True, self._runner.run(async_fn, *args)
        except BaseException as error:
            error.add_note(f"At its worker:\n{''.join(traceback.format_tb(error.__traceback__)).rstrip()}")
            return False, self._dumps(error)

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
            set_version = getattr(self._engine, "set_version", None)
            if callable(set_version) and self._engine.get_version() != orders.version:
                set_version(orders.version)
            hold = getattr(self._engine, "hold_generation", None)
            if callable(hold):
                hold(orders.holds_generation)
