"""The floor of a worker on a real runner, given what a driver would give it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from areal_core import workflow_context
from areal_core._distributed.floor import Floor
from areal_core._distributed.leases import Ended
from areal_core._distributed.outbox import Outbox
from areal_core._distributed.wire import Orders
from areal_core._distributed.worker import Worker
from areal_core._executor.playing import Player
from areal_core._executor.rollout import Plan
from areal_core._runner.lifecycle import life_of
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.types import InferenceEngine, RolloutWorkflow
from doors import LONG_S
from executor_tools import Engine


@contextlib.contextmanager
def workers_here() -> Iterator[list[Worker]]:
    """Give a list for workers of this process; stop them, and have the engine be the one of before."""
    made, before = list[Worker](), Worker.engine
    try:
        yield made
    finally:
        for worker in made:
            worker.stop(5.0)
        Worker.engine = before


class Calling(RolloutWorkflow):
    """Does what its data says: an async function of its place in its group; None where it has none."""

    async def arun_episode(self, engine: InferenceEngine, data: Any) -> Any:
        return await data(workflow_context.get().sample_idx)


CALLING = Calling()


class Playground:
    """A floor, and what comes of it. Nothing is pickled: what is sent stands for an object that is here."""

    def __init__(
        self,
        runner: AsyncTaskRunner[Any],
        *,
        slots: int = 2,
        timeout_s: float | None = None,
        linger_s: float = 0.0,
        enough: int = 1,
    ) -> None:
        self.runner = runner
        self._linger_s = linger_s
        self.out = Outbox(enough)
        player = Player(Engine(), checks_format=False, masks=False)
        self.floor = Floor(life_of(runner), player, slots, timeout_s, self.out, self._loads)
        self._numbers = itertools.count(1)
        self._orders = itertools.count(1)
        self._sent: dict[bytes, Any] = {}
        self._is_paused = False
        self.news = 0
        """The number of what the engine has to know before what is given begins."""

    # -- what the driver says ----------------------------------------------------------------------

    def give(self, *calls: Callable[[Any], Any], **plan: Any) -> list[int]:
        """Have a rollout played for each of *calls*; return the numbers of their parcels."""
        return [self.give_group(call, places=(0,), group_size=1, **plan) for call in calls]

    def give_group(
        self, call: Any, *, group_size: int, places: Sequence[int] | None = None, **plan: Any
    ) -> int:
        """Have members of a group played; return the number of its parcel."""
        number = next(self._numbers)
        made = {"workflow": CALLING, "accept": None, "keep_rest": False, "is_eval": False, **plan}
        plans = {number: self._send(Plan(group_size=group_size, **made))}
        head = self._send((number, 100 + number, f"item {number}", 7, call))
        self.order(plans=plans, give=[(number, head, list(range(group_size) if places is None else places))])
        return number

    def give_more(self, parcel: int, *places: int) -> None:
        """Have more of a group played."""
        self.order(give=[(parcel, None, list(places))])

    def cancel(self, parcel: int, place: int = 0) -> None:
        self.order(cancel=[(parcel, place)])

    def forget(self, *parcels: int) -> None:
        self.order(forget=list(parcels))

    def pause(self, is_paused: bool = True) -> None:
        self._is_paused = is_paused
        self.order()

    def order(self, **orders: Any) -> None:
        """Have orders followed."""
        self.floor.give(Orders(next(self._orders), 0, self._is_paused, False, **orders), self.news)

    def _send(self, what: Any) -> bytes:
        data = str(len(self._sent)).encode()
        self._sent[data] = what
        return data

    def _loads(self, data: bytes) -> Any:
        what = self._sent[data]
        del self._sent[data]
        self._sent[data + b" was read"] = None
        if isinstance(what, BaseException):
            raise what
        return what

    # -- what comes of it --------------------------------------------------------------------------

    def take(self, count: int = 1) -> list[Ended]:
        """Return the next *count* ends, as soon as they are there."""
        ended: list[Ended] = []
        deadline = time.monotonic() + LONG_S
        while len(ended) < count:
            assert time.monotonic() < deadline, f"of {count} only {len(ended)} have ended"
            ended += self.out.take(LONG_S, self._linger_s)
        assert len(ended) == count
        return ended

    def has_nothing(self) -> bool:
        """Return whether it remembers nothing of what it was given, but for plans."""
        floor = self.floor
        return not (floor._rollouts or floor._pending or floor._jobs or floor._said or floor._to_cancel)


def where_of(ended: Sequence[Ended]) -> list[tuple[int, int]]:
    """Return parcel and place of each."""
    return [(one.parcel, one.sample_idx) for one in ended]


def trajectory_in(ended: Ended) -> dict[str, Any]:
    """Return what an episode brought."""
    assert ended.verdict is not None and ended.verdict.trajectory is not None, ended.error
    return ended.verdict.trajectory
