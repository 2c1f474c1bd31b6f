"""The workers as actors of Ray: how they start, what is sent to them and fetched, how they end."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import ray
import ray.cloudpickle
from msgspec import Struct

from areal_core._distributed.far_desk import FarDesk, FarLink
from areal_core._distributed.leases import Ended, Order, Parcel, Report
from areal_core._distributed.wire import MOST_PLANS, Orders, Shipment, encode, unship
from areal_core._distributed.worker import Setup, Worker
from areal_core._executor.rollout import Work
from areal_core._executor.work import Plan
from areal_core._runner.life import Life
from areal_core.errors import WorkerLostError

_BEAT_S = 1.0  # a worker that has nothing to say gives a sign of life so often
_GROUPS = {"give": 1, "take": 1, "run": 8, "stop": 1}
_MOST_DOUBLINGS = 10
_RETRY_S = (1.0, 30.0)  # from the first to the longest wait before a worker that did not start is tried again

dumps: Callable[[Any], bytes] = ray.cloudpickle.dumps
loads: Callable[[bytes], Any] = ray.cloudpickle.loads


class _Actor(Struct, eq=False):
    """A worker, as it is known here."""

    number: int
    handle: Any
    has_joined: bool = False
    is_ending: bool = False
    plans: set[int] = set()
    give: list[Order] = []
    cancel: list[tuple[int, int]] = []
    forget: list[int] = []
    takes_back: bool = False


class RayLink(FarLink):
    """Keeps as many workers as are wanted. All but the first part happens on the loop thread.

    *options* are those of `ray.remote` for each actor. *log* is called with an event and its fields.
    """

    def __init__(self, setup: Setup, options: dict[str, Any], life: Life, log: Callable[..., None]) -> None:
        self._setup = dumps(setup)
        self._life = life
        self._log = log
        self._remote = ray.remote(max_restarts=0, concurrency_groups=_GROUPS, **options)(Worker)
        self._desk: FarDesk | None = None
        self._actors: dict[int, _Actor] = {}
        self._lock = threading.Lock()
        self._numbers = 0
        self._wanted = 0
        self._is_closed = False
        self._to_flush: dict[int, _Actor] = {}
        self._to_kill: list[_Actor] = []
        self._to_start = 0
        self._failed_starts = 0
        self._order = 0
        self._version, self._is_paused, self._holds = 0, False, False
        self._plans: OrderedDict[tuple[Any, ...], tuple[int, Plan]] = OrderedDict()
        self._plans_so_far = 0

    # -- from callers' threads ---------------------------------------------------------------------

    def begin(self, desk: FarDesk, count: int, timeout_s: float) -> None:
        """Start *count* workers for *desk* and wait for them. Raises what kept one from starting."""
        self._desk = desk
        self._wanted = count
        actors = [self._new_actor() for _ in range(count)]
        try:
            ray.get([actor.handle.begin.remote() for actor in actors], timeout=timeout_s)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        desk.call(self._welcome, *actors)

    def add(self, count: int) -> None:
        """Have *count* workers more."""
        self._life.thread.post(self._want_more, count)

    def want_less(self, count: int) -> None:
        """Replace *count* fewer of those that go; on the loop thread."""
        self._wanted = max(0, self._wanted - count)

    def call_all(self, async_fn: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
        """Run a coroutine function on each worker's loop, and return the values. Raises what one raises."""
        call = dumps((async_fn, args))
        actors = [actor for actor in list(self._actors.values()) if actor.has_joined]
        asked = [actor.handle.run.options(concurrency_group="run").remote(call) for actor in actors]
        try:
            answers = ray.get(asked)
        except ray.exceptions.RayActorError as error:
            raise WorkerLostError(f"a worker died while it ran {async_fn!r}: {error}") from None
        for went_well, value in answers:
            if not went_well:
                raise loads(value)
        return [value for _, value in answers]

    def close(self, timeout_s: float) -> None:
        """End all workers, in *timeout_s* seconds, or kill them."""
        self._is_closed = True
        actors = list(self._actors.values())
        self._actors.clear()
        try:
            stops = [
                actor.handle.stop.options(concurrency_group="stop").remote(timeout_s) for actor in actors
            ]
            if stops:
                ray.wait(stops, num_returns=len(stops), timeout=timeout_s)
        finally:
            for actor in [*actors, *self._to_kill]:
                _kill(actor)

    # -- workers' lives ----------------------------------------------------------------------------

    def _new_actor(self) -> _Actor:
        with self._lock:
            self._numbers += 1
            number = self._numbers
        actor = _Actor(number, self._remote.remote(self._setup, loads, dumps))
        self._actors[number] = actor
        return actor

    def _start_one(self) -> None:
        if self._is_closed or len(self._actors) >= self._wanted:
            return
        try:
            actor = self._new_actor()
            future: Future[None] = actor.handle.begin.remote().future()
        except Exception as error:  # of Ray, which goes down
            self._try_again(error)
            return
        future.add_done_callback(functools.partial(self._post, self._started, actor))

    def _started(self, actor: _Actor, future: Future[None]) -> None:
        error = future.exception()
        if error is None:
            self._failed_starts = 0
            self._welcome(actor)
            return
        self._actors.pop(actor.number, None)
        _kill(actor)
        self._try_again(error)

    def _try_again(self, error: BaseException) -> None:
        least, most = _RETRY_S
        wait_s = min(most, least * 2 ** min(self._failed_starts, _MOST_DOUBLINGS))
        self._failed_starts += 1
        self._log("error", "worker_did_not_start", retry_in_s=wait_s, exc_info=error)
        self._life.thread.call_later(wait_s, self._start_one)

    def _welcome(self, *actors: _Actor) -> None:
        if self._is_closed or self._desk is None:
            return
        for actor in actors:
            actor.has_joined = True
            self._to_flush[actor.number] = actor  # it learns version and pause
            self._desk.joined(actor.number)
            self._fetch(actor)

    def _want_more(self, count: int) -> None:
        self._wanted += count
        for _ in range(count):
            self._start_one()

    def gone(self, worker: int, why: str | None) -> None:
        """Replace one that died, unless fewer are wanted now."""
        actor = self._actors.pop(worker, None)
        if why is not None and not self._is_closed:
            self._log("warning", "worker_died", worker=worker, why=why)
        if actor is not None and not self._is_closed:
            self._to_start += 1
            if why is not None:
                self._to_kill.append(actor)  # it may only be out of reach, and play what others play now

    # -- what is sent ------------------------------------------------------------------------------

    def tell(self, version: int, is_paused: bool) -> None:
        """Tell all workers."""
        self._version, self._is_paused = version, is_paused
        self._to_flush.update(self._actors)

    def hold_generation(self, holds: bool) -> None:
        """Tell all workers whether requests for tokens may be sent."""
        self._holds = holds
        self._to_flush.update(self._actors)

    def give(self, worker: int, orders: Sequence[Order]) -> None:
        """Have episodes played."""
        actor = self._for(worker)
        if actor is not None:
            actor.give = [*actor.give, *orders] if actor.give else list(orders)

    def cancel(self, worker: int, episodes: Sequence[tuple[int, int]]) -> None:
        """Cancel episodes."""
        actor = self._for(worker)
        if actor is not None:
            actor.cancel = [*actor.cancel, *episodes]

    def forget(self, worker: int, parcels: Sequence[int]) -> None:
        """Have parcels forgotten."""
        actor = self._for(worker)
        if actor is not None:
            actor.forget = [*actor.forget, *parcels]

    def take_back(self, worker: int) -> None:
        """Have it hand back what it has not begun."""
        actor = self._for(worker)
        if actor is not None:
            actor.takes_back = True

    def retire(self, worker: int) -> None:
        """End one that has nothing any more."""
        actor = self._actors.get(worker)
        if actor is not None:
            actor.is_ending = True
            self._to_kill.append(actor)

    def kill(self, worker: int, why: str) -> None:
        """End one at once."""
        actor = self._actors.get(worker)
        if actor is not None:
            self._to_kill.append(actor)

    def _for(self, worker: int) -> _Actor | None:
        actor = self._actors.get(worker)
        if actor is not None:
            self._to_flush[worker] = actor
        return actor

    def flush(self) -> None:
        """Send what was said since the last time."""
        if self._is_closed:
            return
        if self._to_flush:
            actors, self._to_flush = self._to_flush, {}
            self._order += 1
            for actor in actors.values():
                if actor.has_joined:
                    self._send(actor)
        while self._to_kill:
            actor = self._to_kill.pop()
            if actor.is_ending:  # it has nothing any more, and ends well
                with contextlib.suppress(Exception):
                    actor.handle.stop.options(concurrency_group="stop").remote(_BEAT_S)
                self._life.thread.call_later(2 * _BEAT_S, _kill, actor)
            else:
                _kill(actor)
        starts, self._to_start = self._to_start, 0
        for _ in range(starts):
            self._start_one()

    def _send(self, actor: _Actor) -> None:
        give, actor.give = actor.give, []
        cancel, actor.cancel = actor.cancel, []
        forget, actor.forget = actor.forget, []
        takes_back, actor.takes_back = actor.takes_back, False
        orders = Orders(self._order, self._version, self._is_paused, self._holds, takes_back)
        orders.plans, orders.give, orders.cancel, orders.forget = {}, [], cancel, forget
        unsendable: list[Ended] = []
        for order in give:
            places = [episode.sample_idx for episode in order.episodes]
            try:
                head = self._head(order, actor, orders) if order.is_first else None
                orders.give.append((order.parcel.number, head, places))
            except Exception as error:
                unsendable += [_unsendable(order.parcel, place, error) for place in places]
        try:
            ref = actor.handle.give.options(concurrency_group="give").remote(encode(orders))
        except Exception as error:  # of Ray: it goes down, or its store is full
            self._lose(actor, f"nothing could be sent to it: {_in_words(error)}")
            return
        ref.future().add_done_callback(functools.partial(self._post, self._given, actor))
        if unsendable and self._desk is not None:
            self._life.thread.call_soon(self._desk.reported, actor.number, Report(unsendable))

    def _head(self, order: Order, actor: _Actor, orders: Orders) -> bytes:
        rollout = order.parcel.rollout
        work = rollout.work
        number, plan = self._plan_of(work)
        if number not in actor.plans:
            orders.plans[number] = dumps(plan)
            actor.plans = {one for one in actor.plans if one > number - MOST_PLANS} | {number}
        return dumps((number, rollout.task_id, work.data_id, rollout.start_version, work.data))

    def _plan_of(self, work: Work) -> tuple[int, Plan]:
        key = (id(work.workflow), id(work.accept), work.group_size, work.keep_rest, work.is_eval)
        known = self._plans.get(key)
        if known is not None:
            return known
        self._plans_so_far += 1
        plan = Plan(work.workflow, work.accept, work.group_size, work.keep_rest, work.is_eval)
        self._plans[key] = made = (self._plans_so_far, plan)
        while len(self._plans) > MOST_PLANS:
            self._plans.popitem(last=False)
        return made

    # -- what is fetched ---------------------------------------------------------------------------

    def _fetch(self, actor: _Actor) -> None:
        ref = actor.handle.take.options(concurrency_group="take").remote(_BEAT_S)
        future: Future[Shipment] = ref.future()
        future.add_done_callback(functools.partial(self._post, self._fetched, actor))

    def _fetched(self, actor: _Actor, future: Future[Shipment]) -> None:
        if self._is_closed or self._desk is None:
            return
        error = future.exception()
        try:
            report = None if error is not None else unship(future.result(), loads)
            if report is not None and not actor.is_ending:
                self._fetch(actor)
        except Exception as odd:
            report, error = None, odd
        if report is not None:
            self._desk.reported(actor.number, report)
        elif error is not None and not actor.is_ending:
            self._lose(actor, _in_words(error))

    def _given(self, actor: _Actor, future: Future[None]) -> None:
        error = future.exception()
        if error is not None and not actor.is_ending and not self._is_closed:
            self._lose(actor, f"it could not take its orders: {_in_words(error)}")

    def _lose(self, actor: _Actor, why: str) -> None:
        if self._desk is not None:
            self._desk.died(actor.number, why)

    def _post(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            self._life.thread.post(callback, *args)
        except RuntimeError:  # the loop was closed a moment ago
            pass


def _kill(actor: _Actor) -> None:
    with contextlib.suppress(Exception):  # Ray may be gone, or going
        ray.kill(actor.handle)


def _unsendable(parcel: Parcel, place: int, error: Exception) -> Ended:
    work = parcel.rollout.work
    told = TypeError(
        f"rollout {parcel.rollout.task_id} cannot be sent to a worker: its data, or "
        f"{type(work.workflow).__qualname__} with its filter, cannot be pickled ({error}); keep what belongs "
        "to this process out of them, and make it where the workflow runs"
    )
    return Ended(parcel.number, place, None, told, False, 0.0, (0, None, 0.0, 0.0, 0.0))


def _in_words(error: BaseException) -> str:
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process ended"
    return f"{type(error).__name__}: {error}"
