"""A driver whose worker is a pretence: what `calibration` measures it with, and what that plays."""

from __future__ import annotations

import asyncio
import pickle
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from areal_core._distributed.far_desk import FarDesk, FarLink
from areal_core._distributed.leases import Ended, LeaseRules, Order
from areal_core._distributed.wire import Orders, Shipment, encode, ship, unship
from areal_core._executor.desk import Desk
from areal_core._executor.freshness import Ages
from areal_core._executor.playing import Player
from areal_core._executor.rollout import Verdict
from areal_core._runner.life import Life
from areal_core.config import InferenceEngineConfig
from areal_core.types import RolloutWorkflow
from areal_core.workflow_executor import WorkflowExecutor

TOKENS = 64
"""Of a trajectory."""

_FIGURES = (1, 0, 0.1, 0.0, 0.0)


class Versions:
    """An engine that only knows the version."""

    def __init__(self) -> None:
        self.version = 0

    def get_version(self) -> int:
        """Return it."""
        return self.version

    def set_version(self, version: int) -> None:
        """Take another."""
        self.version = version

    async def agenerate(self, request: Any) -> Any:
        """Refuse: nobody asks."""
        raise NotImplementedError


class Instant(RolloutWorkflow):
    """Yields a trajectory at once."""

    async def arun_episode(self, engine: Any, data: Any) -> dict[str, Any]:
        """Play one episode."""
        return trajectory(engine.get_version())


class Pausing(Instant):
    """Computes for *compute_s* seconds, pauses for a time between *pauses_s*, and yields a trajectory."""

    def __init__(self, compute_s: float, pauses_s: tuple[float, float]) -> None:
        self._compute_s = compute_s
        self._pauses_s = pauses_s

    async def arun_episode(self, engine: Any, data: Any) -> dict[str, Any]:
        """Play one episode."""
        compute(self._compute_s)
        await asyncio.sleep(random.uniform(*self._pauses_s))
        return await super().arun_episode(engine, data)


def compute(seconds: float) -> None:
    """Use the processor in this thread for so long."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def trajectory(version: int) -> dict[str, Any]:
    """Return what an episode yields."""
    return {
        "input_ids": np.arange(TOKENS).reshape(1, TOKENS),
        "attention_mask": np.ones((1, TOKENS), np.int64),
        "loss_mask": np.ones((1, TOKENS), np.int64),
        "logprobs": np.full((1, TOKENS), -0.5, np.float32),
        "versions": np.full((1, TOKENS), version),
        "rewards": np.array([1.0], np.float32),
    }


def pickled(thing: Any) -> bytes:
    """Return *thing* as bytes."""
    return pickle.dumps(thing, protocol=5)


def picklers() -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    """Return what workflows and items are pickled with: Ray's, where it is installed."""
    try:
        from ray import cloudpickle
    except ImportError:
        return pickled, pickle.loads
    return cloudpickle.dumps, cloudpickle.loads


class Nowhere(FarLink):
    """Sends nothing."""

    def give(self, worker: int, orders: Sequence[Order]) -> None:
        pass

    def cancel(self, worker: int, episodes: Sequence[tuple[int, int]]) -> None:
        pass

    def forget(self, worker: int, parcels: Sequence[int]) -> None:
        pass

    def take_back(self, worker: int) -> None:
        pass

    def retire(self, worker: int) -> None:
        pass

    def kill(self, worker: int, why: str) -> None:
        pass


class _Loopback(Nowhere):
    """Pretends to be a worker that brings everything at once, in exchanges of the size of its slots."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self.desk: FarDesk | None = None
        self._orders: list[Order] = []
        self._version = 0
        self._dumps, self._loads = picklers()
        self.exchanges = 0
        self.pretended_s = 0.0
        """What pretending took."""

    def tell(self, version: int, is_paused: bool) -> None:
        self._version = version

    def give(self, worker: int, orders: Sequence[Order]) -> None:
        self._orders += orders

    def flush(self) -> None:
        given, self._orders = self._orders, []
        if not given:
            return
        orders = Orders(self.exchanges, self._version, False, False)
        orders.give = [(one.parcel.number, self._head(one), [0]) for one in given]
        encode(orders)
        self._life.thread.call_soon(self._pretend, given)

    def _head(self, order: Order) -> bytes:
        rollout = order.parcel.rollout
        return self._dumps((1, rollout.task_id, rollout.data_id, rollout.start_version, rollout.data))

    def _pretend(self, given: Sequence[Order]) -> None:
        began = time.thread_time()
        ages = Ages(self._version, self._version, TOKENS)
        ended = [
            Ended(
                one.parcel.number,
                0,
                Verdict(trajectory(self._version), ages=ages),
                None,
                False,
                0.1,
                _FIGURES,
            )
            for one in given
        ]
        data = pickled(ship(ended, [], [], 0.0, self._dumps))
        self._life.thread.call_soon(self._come, data)
        self.exchanges += 1
        self.pretended_s += time.thread_time() - began

    def _come(self, data: bytes) -> None:
        assert self.desk is not None
        shipment: Shipment = pickle.loads(data)
        self.desk.reported(1, unship(shipment, self._loads))


class LoopedExecutor(WorkflowExecutor):
    """An executor whose episodes come back at once, as if from a worker with so many slots."""

    def __init__(self, config: InferenceEngineConfig, engine: Versions, slots: int) -> None:
        super().__init__(config, engine)
        self._slots = slots
        self.link: _Loopback | None = None

    def _make_desk(self, life: Life, player: Player, episode_timeout_s: float | None) -> Desk:
        self.link = link = _Loopback(life)
        link.desk = desk = FarDesk(life, LeaseRules(slots=self._slots, most_ahead=0), link)
        return desk

    def join(self) -> None:
        """Have that worker join."""
        assert self.link is not None and self.link.desk is not None
        self.link.desk.joined(1)
