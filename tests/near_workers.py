"""An executor with one worker, which is in this process: the library's desk, dispatcher and floor, no Ray.

Nothing is pickled unless a test says how: what is sent stands for an object that is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from areal_core._distributed.far_desk import FarDesk
from areal_core._distributed.floor import Floor
from areal_core._distributed.leases import LeaseRules, Order, Report
from areal_core._distributed.outbox import Outbox
from areal_core._distributed.wire import Orders
from areal_core._executor.desk import Desk
from areal_core._executor.playing import Player
from areal_core._runner.life import Life
from areal_core._runner.lifecycle import life_of
from areal_core._simulation.loopback import Nowhere
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.config import InferenceEngineConfig
from areal_core.workflow_executor import WorkflowExecutor
from executor_tools import WAIT_S

NUMBER = 1
"""Of the worker."""

_TAKE_S = 0.02
_SLOTS = 64


class NearWorker:
    """A floor on a runner of its own, and the thread that brings what it has to tell."""

    def __init__(self, player: Player, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.runner = AsyncTaskRunner[Any](100, cancel_grace=0.5, loop_factory=loop_factory)
        self.runner.initialize()
        self.out = Outbox(1)
        self._sent: list[Any] = []
        self.floor = Floor(life_of(self.runner), player, _SLOTS, None, self.out, self._loads)
        self._is_over = False
        self._thread: threading.Thread | None = None

    def send(self, thing: Any) -> bytes:
        """Return what stands for *thing*."""
        self._sent.append(thing)
        return str(len(self._sent) - 1).encode()

    def _loads(self, data: bytes) -> Any:
        return self._sent[int(data)]

    def report_to(self, take: Callable[[Report], None]) -> None:
        """Bring what it has to tell to *take*, from now on."""
        self._thread = threading.Thread(target=self._report, args=(take,), name="near worker")
        self._thread.start()

    def _report(self, take: Callable[[Report], None]) -> None:
        while not self._is_over:
            ended, stages = self.out.take(_TAKE_S, 0.0), self.floor.stages()
            if ended or stages:
                take(Report(ended, [], stages))

    def stop(self) -> None:
        self._is_over = True
        if self._thread is not None:
            self._thread.join(WAIT_S)
        self.runner.destroy(10.0)


class NearLink(Nowhere):
    """Takes what the desk says to the worker. *on_send* is called on the desk's loop with each item."""

    def __init__(self, worker: NearWorker, on_send: Callable[[Any], object]) -> None:
        self._worker = worker
        self._on_send = on_send
        self._numbers = itertools.count(1)
        self._is_paused = False
        self._orders: dict[str, list[Any]] = {}

    def tell(self, version: int, is_paused: bool) -> None:
        self._is_paused = is_paused
        self._orders.setdefault("give", [])

    def give(self, worker: int, orders: Sequence[Order]) -> None:
        self._orders.setdefault("give", []).extend(orders)

    def cancel(self, worker: int, episodes: Sequence[tuple[int, int]]) -> None:
        self._orders.setdefault("cancel", []).extend(episodes)

    def forget(self, worker: int, parcels: Sequence[int]) -> None:
        self._orders.setdefault("forget", []).extend(parcels)

    def flush(self) -> None:
        said, self._orders = self._orders, {}
        if not said:
            return
        orders = Orders(next(self._numbers), 0, self._is_paused, False)
        orders.cancel, orders.forget = said.get("cancel", []), said.get("forget", [])
        orders.plans, orders.give = {}, []
        for one in said.get("give", []):
            places = [episode.sample_idx for episode in one.episodes]
            head = self._head(one, orders) if one.is_first else None
            orders.give.append((one.parcel.number, head, places))
        self._worker.floor.give(orders)

    def _head(self, order: Order, orders: Orders) -> bytes:
        number, rollout = order.parcel.number, order.parcel.rollout
        self._on_send(rollout.data)
        orders.plans[number] = self._worker.send(rollout.plan)
        return self._worker.send(
            (number, rollout.task_id, rollout.data_id, rollout.start_version, rollout.data)
        )


class NearExecutor(WorkflowExecutor):
    """An executor whose episodes are played by that worker."""

    def __init__(
        self,
        config: InferenceEngineConfig,
        engine: Any,
        loop_factory: Callable[[], asyncio.AbstractEventLoop],
        on_send: Callable[[Any], object] = bool,
    ) -> None:
        super().__init__(config, engine, loop_factory=loop_factory)
        self._factory = loop_factory
        self._on_send = on_send
        self.worker: NearWorker

    def _make_desk(self, life: Life, player: Player, episode_timeout_s: float | None) -> Desk:
        self.worker = NearWorker(player, self._factory)
        link = NearLink(self.worker, self._on_send)
        return FarDesk(life, LeaseRules(slots=_SLOTS, most_ahead=0, lease_s=1e6), link)

    def join(self) -> None:
        """Have the worker join."""
        assert self._shift is not None
        desk, life = self._shift.desk, life_of(self.runner)
        assert isinstance(desk, FarDesk)
        desk.joined(NUMBER)

        def take(report: Report) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed a moment ago
                life.thread.post(desk.reported, NUMBER, report)

        self.worker.report_to(take)

    def destroy(self, timeout: float | None = 30.0) -> None:
        super().destroy(timeout)
        if hasattr(self, "worker"):
            self.worker.stop()
