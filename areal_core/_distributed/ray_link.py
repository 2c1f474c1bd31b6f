"""What is sent to workers on Ray, and fetched from them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import ray.cloudpickle

from areal_core._distributed.crew import Actor, Crew, loads
from areal_core._distributed.far_desk import FarDesk, FarLink
from areal_core._distributed.leases import Order, Report
from areal_core._distributed.letters import Clerk
from areal_core._distributed.pickles import Pickles
from areal_core._distributed.ray_calls import ask, in_words, kill
from areal_core._distributed.wire import Orders, Shipment, encode, unship
from areal_core._distributed.worker import TAKES, Setup
from areal_core._runner.life import Life


class RayLink(FarLink):
    """Between a desk and its workers. All but the first part happens on the loop thread.

    *options* are those of `ray.remote` for each actor. *log* is called with an event and its fields.
    """

    def __init__(self, setup: Setup, options: dict[str, Any], life: Life, log: Callable[..., None]) -> None:
        self._life = life
        self._log = log
        self.crew = Crew(setup, options, life, self._started, log)
        """The workers themselves: how many there are to be, and calls at each."""
        self._actors = self.crew.actors
        self._clerk = Clerk(Pickles(ray.cloudpickle.Pickler))
        self._desk: FarDesk | None = None
        self._to_flush: dict[int, Actor] = {}
        self._to_retire: list[Actor] = []
        self._to_kill: list[Actor] = []
        self._order = 0
        self._version, self._is_paused, self._holds = 0, False, False

    # -- from callers' threads ---------------------------------------------------------------------

    def begin(self, desk: FarDesk, count: int, timeout_s: float) -> None:
        """Start *count* workers for *desk* and wait for them. Raises like `Crew.begin`."""
        self._desk = desk
        desk.call(self._welcome, *self.crew.begin(count, timeout_s))

    def close(self, timeout_s: float) -> None:
        """End all workers, in *timeout_s* seconds, or kill them."""
        try:
            self.crew.close(timeout_s)
        finally:
            for actor in [*self._to_retire, *self._to_kill]:
                kill(actor.handle)

    @property
    def is_over(self) -> bool:
        """Whether the loop that it worked on has ended."""
        return self._life.ending is not None

    # -- workers' lives ----------------------------------------------------------------------------

    def let_go(self, worker: int) -> None:
        """Let nobody take the place of one that is about to go."""
        self._actors[worker].is_leaving = True

    def gone(self, worker: int, why: str | None) -> None:
        """Replace one that died, unless it was to go."""
        actor = self._actors.get(worker)
        if why is not None and not self.crew.is_closed:
            self._log("warning", "worker_died", worker=worker, why=why)
            if actor is not None:
                self._to_kill.append(actor)  # it may only be out of reach, and play what others play now
        self.crew.gone(worker, has_died=why is not None)

    def _started(self, actor: Actor) -> None:
        if self._desk is not None:
            self._desk.post(self._welcome, actor)

    def _welcome(self, *actors: Actor) -> None:
        """Begin to lend to *actors*; as one piece of the desk's work, so that nobody sees half of it."""
        for actor in actors:
            if self.crew.is_closed or self._desk is None or actor.number not in self._actors:
                continue
            actor.joined_at = time.monotonic()
            self._to_flush[actor.number] = actor  # it learns version and pause
            self._desk.let_in(actor.number)
            for _ in range(TAKES):
                self._fetch(actor)

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
            letter = actor.letter
            letter.give = [*letter.give, *orders] if letter.give else list(orders)

    def cancel(self, worker: int, episodes: Sequence[tuple[int, int]]) -> None:
        """Cancel episodes."""
        actor = self._for(worker)
        if actor is not None:
            actor.letter.cancel = [*actor.letter.cancel, *episodes]

    def forget(self, worker: int, parcels: Sequence[int]) -> None:
        """Have parcels forgotten."""
        actor = self._for(worker)
        if actor is not None:
            actor.letter.forget = [*actor.letter.forget, *parcels]

    def take_back(self, worker: int) -> None:
        """Have it hand back what it has not begun."""
        actor = self._for(worker)
        if actor is not None:
            actor.letter.takes_back = True

    def retire(self, worker: int) -> None:
        """End one that has nothing any more."""
        actor = self._actors.get(worker)
        if actor is not None:
            actor.is_ending = True
            self._to_retire.append(actor)

    def kill(self, worker: int, why: str) -> None:
        """End one at once."""
        actor = self._actors.get(worker)
        if actor is not None:
            self._to_kill.append(actor)

    def _for(self, worker: int) -> Actor | None:
        actor = self._actors.get(worker)
        if actor is not None:
            self._to_flush[worker] = actor
        return actor

    def flush(self) -> None:
        """Send what was said since the last time."""
        if self.crew.is_closed:
            return
        if self._to_flush:
            actors, self._to_flush = self._to_flush, {}
            self._order += 1
            for actor in actors.values():
                if actor.joined_at is not None:
                    self._send(actor)
        while self._to_retire:
            self.crew.retire(self._to_retire.pop())
        while self._to_kill:
            kill(self._to_kill.pop().handle)

    def _send(self, actor: Actor) -> None:
        orders = Orders(self._order, self._version, self._is_paused, self._holds)
        unsendable = self._clerk.fill_in(orders, actor.letter)
        try:
            ref = ask(actor.handle.give, "give", encode(orders))
        except Exception as error:  # of Ray: it goes down, or its store is full
            self._lose(actor, in_words(error, "nothing could be sent to it"))
            return
        ref.future().add_done_callback(functools.partial(self.crew.post, self._given, actor))
        if unsendable and self._desk is not None:
            self._desk.not_sent(actor.number, unsendable)

    # -- what is fetched ---------------------------------------------------------------------------

    def _fetch(self, actor: Actor) -> None:
        assert self._desk is not None
        linger_s, beat_s = self._desk.dispatcher.pace
        patience_s = actor.beats.patience_s(time.monotonic(), beat_s)
        try:
            future: Future[Shipment] = ask(actor.handle.take, "take", patience_s, linger_s).future()
        except Exception as error:  # of Ray, which goes down
            self._fail(actor, in_words(error, "nothing could be fetched from it"))
            return
        actor.takes += 1
        future.add_done_callback(functools.partial(self.crew.post, self._fetched, actor))

    def _fetched(self, actor: Actor, future: Future[Shipment]) -> None:
        if self.crew.is_closed or self._desk is None:
            return
        actor.takes -= 1
        error = future.exception()
        try:
            report = None if error is not None else unship(future.result(), loads)
            if report is not None and not (actor.is_ending or actor.failed):
                self._fetch(actor)
        except Exception as odd:
            report, error = None, odd
        if report is not None:
            self._read(actor, actor.reports.take(report))
        if not actor.is_ending and (error is not None or actor.failed):
            self._fail(actor, in_words(error) if error is not None else "")

    def _read(self, actor: Actor, reports: Iterable[Report]) -> None:
        assert self._desk is not None
        for report in reports:
            actor.has_brought = actor.has_brought or bool(report.ended)
            self._desk.reported(actor.number, report)

    def _fail(self, actor: Actor, why: str) -> None:
        """Take a worker for lost when what another call of it still brings has been read."""
        actor.failed = actor.failed or why
        if not actor.takes:
            self._read(actor, actor.reports.rest())
            self._lose(actor, actor.failed)

    def _given(self, actor: Actor, future: Future[None]) -> None:
        error = future.exception()
        if error is not None and not actor.is_ending and not self.crew.is_closed:
            self._lose(actor, in_words(error, "it could not take its orders"))

    def _lose(self, actor: Actor, why: str) -> None:
        if self._desk is not None:
            self._desk.died(actor.number, why)
