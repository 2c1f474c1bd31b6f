"""The parts of the simulation do what they stand for: clock, threads, servers, workers and their links."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from areal_core._distributed.leases import Ended, Report
from areal_core._distributed.pace import LEAST_BEAT_S, LEAST_LINGER_S
from areal_core._engine.server import Pin
from areal_core._executor.freshness import Ages
from areal_core._simulation.clock import VirtualClock, VirtualThread
from areal_core._simulation.driver import VirtualLink
from areal_core._simulation.items import Part
from areal_core._simulation.outbox import VirtualOutbox
from areal_core._simulation.routing import Asked, BoundlessEngine, VirtualEngine
from areal_core._simulation.server import InferenceServer, Request
from areal_core._simulation.worker import Given, Message, VirtualWorker
from simulated_runs import FREE

pytestmark = pytest.mark.any_loop

ENOUGH = 256


def test_calls_come_in_the_order_of_their_times_and_then_of_their_asking() -> None:
    clock, called = VirtualClock(), list[str]()
    clock.at(2.0, called.append, "c")
    clock.at(1.0, called.append, "a")
    clock.at(1.0, called.append, "b")
    clock.call_later(1.5, lambda: called.append("never")).cancel()
    clock.run_until(1.0)
    assert (called, clock.time(), clock.next_at()) == (["a", "b"], 1.0, 1.5)
    clock.run_until(5.0)
    assert (called, clock.time(), clock.next_at()) == (["a", "b", "c"], 5.0, math.inf)
    assert not clock.step()


def test_a_thread_does_one_thing_after_the_other() -> None:
    clock, done = VirtualClock(), list[float]()
    thread = VirtualThread(clock)
    for seconds in (1.0, 2.0, 0.0):
        thread.put(seconds, lambda: done.append(clock.time()))
    clock.run_until(10.0)
    assert done == [1.0, 3.0, 3.0]
    assert thread.busy_s == 3.0


def test_what_a_call_spends_is_waited_for_by_what_comes_next() -> None:
    clock, done = VirtualClock(), list[float]()
    thread = VirtualThread(clock)
    thread.put(0.0, lambda: done.append(thread.spend(1.0) + thread.spend(1.5)))
    thread.put(0.0, lambda: done.append(clock.time()))
    clock.run_until(10.0)
    assert done == [1.0 + 2.5, 2.5]
    assert thread.busy_s == 2.5


class Desired:
    """Requests at a server, and when each ended."""

    def __init__(self, **options: Any) -> None:
        self.clock = VirtualClock()
        self.server = InferenceServer(self.clock, 0.1, **options)
        self.ended: dict[str, float] = {}

    def ask(self, name: str, tokens: int) -> Request:
        request = Request(tokens, 0.1, lambda: self.ended.update({name: self.clock.time()}))
        self.server.begin(request)
        return request


def test_a_server_with_one_slot_works_on_one_after_the_other() -> None:
    desired = Desired(slots=1)
    desired.ask("first", 10)
    gone = desired.ask("gone", 10)
    desired.ask("last", 5)
    desired.server.cancel(gone)
    desired.clock.run_until(10.0)
    assert desired.ended == {"first": pytest.approx(1.0), "last": pytest.approx(1.5)}
    assert desired.server.tokens == 15


def test_a_request_that_is_cancelled_makes_others_faster_and_frees_its_slot() -> None:
    desired = Desired(tokens_per_s=10.0)
    other = desired.ask("other", 10)
    desired.ask("mine", 10)
    desired.clock.run_until(1.0)  # at half the speed
    desired.server.cancel(other)
    desired.clock.run_until(10.0)
    assert desired.ended == {"mine": pytest.approx(1.0 + 0.5)}


def test_a_server_that_is_paused_makes_nothing_and_goes_on_with_new_weights() -> None:
    desired = Desired(request_s=0.0)
    request = desired.ask("it", 10)
    desired.clock.run_until(0.35)
    desired.server.pause()
    desired.clock.run_until(2.35)
    desired.server.go_on(1)
    desired.clock.run_until(10.0)
    assert desired.ended == {"it": pytest.approx(3.0)}
    assert request.spans == [(0, 3), (1, 7)]


def test_without_an_interruption_a_reply_keeps_the_version_at_which_it_was_asked_for() -> None:
    desired = Desired(interrupts=False, slots=1)
    running, waiting = desired.ask("running", 10), desired.ask("waiting", 10)
    desired.clock.run_until(0.35)
    desired.server.go_on(1)
    late = desired.ask("late", 10)
    desired.clock.run_until(10.0)
    assert (running.spans, waiting.spans, late.spans) == ([(0, 10)], [(0, 10)], [(1, 10)])


def test_a_server_that_dies_says_what_had_come_and_what_is_left() -> None:
    desired = Desired(slots=1)
    running, waiting = desired.ask("running", 10), desired.ask("waiting", 7)
    desired.clock.run_until(0.45)
    assert desired.server.die() == [running, waiting]
    assert (running.spans, running.tokens, waiting.tokens) == ([(0, 4)], 6, 7)
    desired.clock.run_until(10.0)
    assert desired.ended == {}
    desired.server.come_back()
    desired.ask("new", 10)
    desired.clock.run_until(20.0)
    assert desired.ended == {"new": pytest.approx(11.0)}


def an_engine(
    servers: int, slots: int | None = None
) -> tuple[VirtualClock, VirtualEngine, list[InferenceServer], Callable[..., Asked], list[Asked]]:
    """Return a clock, an engine with so many servers, these, what asks it, and what has ended, in order."""
    clock, ended = VirtualClock(), list[Asked]()
    made = [InferenceServer(clock, 0.1) for _ in range(servers)]
    engine = VirtualEngine(clock, made, slots, 0.1)

    def ask(tokens: int = 10, pin: Pin | None = None) -> Asked:
        return engine.ask(tokens, 1.0, pin or Pin(), ended.append)

    return clock, engine, made, ask, ended


def test_a_workers_requests_go_to_the_server_where_it_has_the_fewest() -> None:
    clock, _, servers, ask, ended = an_engine(3)
    for _ in range(6):
        ask()
    clock.run_until(0.5)
    for server in servers:
        server.look()
    assert [server.request_seconds for server in servers] == [pytest.approx(1.0)] * 3
    clock.run_until(2.0)
    assert len(ended) == 6


def test_a_conversation_stays_with_its_server_and_waits_for_a_slot_there() -> None:
    clock, _, _, ask, ended = an_engine(2, slots=1)
    pin = Pin()
    first, again, other = ask(10, pin), ask(10, pin), ask(4)
    assert first.server is not None and other.server is not None and again.server is None
    clock.run_until(0.9)
    assert ended == [other]
    clock.run_until(2.5)
    assert ended == [other, first, again]


def test_a_slot_is_not_lost_with_a_request_that_is_cancelled_as_it_gets_it() -> None:
    clock, engine, _, ask, ended = an_engine(1, slots=1)
    engine.ask(10, 1.0, Pin(), lambda _: engine.cancel(late))
    late = ask()
    clock.run_until(1.5)
    last = ask()
    clock.run_until(3.0)
    assert ended == [last]


def test_a_request_whose_server_dies_goes_on_elsewhere_from_the_tokens_it_has() -> None:
    clock, engine, servers, ask, ended = an_engine(2)
    moved, _ = ask(), ask()
    clock.run_until(0.55)
    assert engine.died(servers[0], set(servers[0].die())) == [moved]
    clock.run_until(5.0)
    assert len(ended) == 2
    assert moved.request.spans == [(0, 10)]
    assert sum(server.tokens for server in servers) == 20


def test_requests_wait_while_no_server_is_there() -> None:
    clock, engine, servers, ask, ended = an_engine(1)
    ask()
    engine.died(servers[0], set(servers[0].die()))
    late, gone = ask(), ask()
    engine.cancel(gone)
    clock.run_until(5.0)
    assert ended == []
    servers[0].come_back()
    engine.came_back(servers[0])
    clock.run_until(6.5)
    assert late in ended and gone not in ended and len(ended) == 2


class Hearing:
    """A worker with two slots, and what it reports when."""

    def __init__(self, **costs: float) -> None:
        self.clock = VirtualClock()
        self.server = InferenceServer(self.clock, 0.1)
        self.reports: list[tuple[float, Report]] = []
        engine = BoundlessEngine(self.server, 0.1)
        self.worker = VirtualWorker(1, 2, self.clock, replace(FREE, **costs), 0.0, engine, self._hear)
        self.worker.fetch(0.01, 1.0)

    def _hear(self, worker: VirtualWorker, report: Report) -> None:
        self.reports.append((self.clock.time(), report))
        worker.fetch(0.01, 1.0)

    def give(
        self, parcel: int, *tokens: int, places: Sequence[int] | None = None, is_first: bool = True
    ) -> None:
        item = tuple(Part(count, (1.0,), 0.0, 0) for count in tokens)
        given = Given(parcel, is_first, item, len(item), range(len(item)) if places is None else places)
        self.worker.receive(Message(0, False, [given]))

    def until(self, when: float) -> list[tuple[float, int]]:
        """Let time pass; return when which parcels ended."""
        self.clock.run_until(when)
        return [(round(at, 3), one.parcel) for at, report in self.reports for one in report.ended]


def test_a_worker_plays_as_many_as_it_has_slots_and_tells_of_the_last_at_once() -> None:
    hearing = Hearing()
    for parcel in (1, 2, 3):
        hearing.give(parcel, 10)
    # What ends while something goes on waits for company; the last does not.
    assert hearing.until(5.0) == [(1.01, 1), (1.01, 2), (2.0, 3)]


def test_a_worker_tells_what_its_episodes_ask_for_before_they_end() -> None:
    hearing = Hearing()
    hearing.give(1, 30)
    hearing.clock.run_until(1.5)
    hearing.worker.continued(4)
    hearing.clock.run_until(2.5)
    stages = [report.stages for _, report in hearing.reports]
    assert [[(stage[0], *stage[2][3:]) for stage in one] for one in stages] == [[(1, 1, 0)], [(1, 2, 4)]]


def test_a_group_is_judged_by_what_its_members_brought() -> None:
    hearing = Hearing()
    hearing.give(7, 10, 20)
    assert hearing.until(3.0) == [(1.01, 7), (2.0, 7)]
    hearing.give(7, 10, 20, places=[-1], is_first=False)
    hearing.until(4.0)
    judged = hearing.reports[-2][1].ended[0]
    assert judged.sample_idx == -1 and judged.verdict is not None
    assert judged.verdict.ages == Ages(0, 0, 30)


def test_an_episode_that_is_cancelled_ends_as_such_wherever_it_is() -> None:
    hearing = Hearing()
    for parcel in (1, 2, 3):
        hearing.give(parcel, 10)
    hearing.clock.run_until(0.5)
    hearing.worker.receive(Message(0, False, cancel=[(1, 0), (3, 0), (9, 0)]))
    assert hearing.until(5.0) == [(0.51, 1), (0.51, 3), (1.0, 2)]
    errors = [one.error for _, report in hearing.reports for one in report.ended]
    assert [isinstance(error, asyncio.CancelledError) for error in errors] == [True, True, False]
    assert hearing.server.tokens == 5 + 10


def test_a_worker_hands_back_what_it_has_not_begun() -> None:
    hearing = Hearing()
    for parcel in (1, 2, 3, 4):
        hearing.give(parcel, 10)
    hearing.clock.run_until(0.5)
    hearing.worker.receive(Message(0, False, takes_back=True))
    assert hearing.until(5.0) == [(1.0, 1), (1.0, 2)]
    assert [back for _, report in hearing.reports for back in report.returned] == [(3, 0), (4, 0)]


def test_a_worker_that_is_dead_does_nothing_and_its_requests_end() -> None:
    hearing = Hearing()
    hearing.give(1, 10)
    hearing.give(2, 3)
    hearing.clock.run_until(0.305)
    assert hearing.worker.die() == pytest.approx(0.305 + 0.3)  # of what runs, and what nobody has fetched
    hearing.give(3, 10)
    assert hearing.until(5.0) == []
    hearing.server.look()
    assert hearing.server.tokens == 3 + 3
    assert hearing.server.request_seconds == pytest.approx(0.305 + 0.3)


def a_link() -> tuple[VirtualClock, VirtualThread, VirtualLink, list[str]]:
    """Return a clock, a driver's thread, its link with costs, and what the link has done."""
    clock, happened = VirtualClock(), list[str]()
    thread = VirtualThread(clock)
    costs = replace(FREE, ray_driver_s=0.2, transport_s=1.0)
    link = VirtualLink(
        clock,
        thread,
        costs,
        lambda: happened.append("started"),
        lambda worker: happened.append(f"killed {worker.number}"),
    )
    for number in (1, 2):
        worker = cast(Any, SimpleNamespace(number=number, is_alive=True, receive=None))
        worker.receive = lambda message, number=number: happened.append(f"{number} at {clock.time():.1f}")
        link.workers[number] = worker
    return clock, thread, link, happened


def test_messages_leave_one_after_the_other() -> None:
    clock, thread, link, happened = a_link()
    link.tell(1, False)
    thread.put(0.0, link.flush)
    clock.run_until(5.0)
    assert happened == ["1 at 1.1", "2 at 1.2"]
    assert thread.busy_s == pytest.approx(0.2)


def test_a_worker_that_goes_is_ended_and_another_started() -> None:
    _, _, link, happened = a_link()
    link.gone(1, None)
    link.flush()
    assert happened == ["killed 1", "started"]
    assert list(link.workers) == [2]


def an_outbox() -> tuple[VirtualClock, VirtualOutbox, list[tuple[float, int]]]:
    clock, given = VirtualClock(), list[tuple[float, int]]()
    return (
        clock,
        VirtualOutbox(clock, ENOUGH, lambda things: given.append((clock.time(), len(things)))),
        given,
    )


def some(count: int) -> list[Ended]:
    """Return so many ends."""
    return [Ended(number, 0, None, None, False, 0.0, (0, None, 0.0, 0.0, 0.0)) for number in range(count)]


def test_what_has_ended_waits_a_moment_for_company() -> None:
    clock, outbox, given = an_outbox()
    outbox.fetch()
    clock.run_until(0.5)
    outbox.put(some(1), is_last=False)
    clock.run_until(0.52)
    outbox.put(some(2), is_last=False)
    clock.run_until(0.6)
    [(at_s, count)] = given
    assert at_s == pytest.approx(0.5 + LEAST_LINGER_S) and count == 3


def test_a_call_says_how_long_what_has_ended_waits_and_when_it_wants_a_sign_of_life() -> None:
    clock, outbox, given = an_outbox()
    outbox.fetch(linger_s=2.0, beat_s=5.0)
    clock.run_until(4.0)
    outbox.put(some(1), is_last=False)
    clock.run_until(5.0)
    outbox.fetch(linger_s=2.0, beat_s=5.0)
    clock.run_until(20.0)
    assert given == [(6.0, 1), (11.0, 0)]


def test_what_came_while_no_call_waited_waits_no_longer_for_that() -> None:
    clock, outbox, given = an_outbox()
    outbox.put(some(1), is_last=False)
    clock.run_until(1.5)
    outbox.fetch(linger_s=2.0, beat_s=5.0)
    clock.run_until(2.5)
    outbox.put(some(1), is_last=False)
    clock.run_until(5.0)
    outbox.fetch(linger_s=2.0, beat_s=5.0)
    assert given == [(2.0, 1), (5.0, 1)]


@pytest.mark.parametrize(("count", "is_last"), [(1, True), (ENOUGH, False)])
def test_what_is_enough_or_the_last_goes_at_once(count: int, is_last: bool) -> None:
    _, outbox, given = an_outbox()
    outbox.put(some(count), is_last=is_last)
    outbox.fetch()
    assert given == [(0.0, count)]
    outbox.fetch()
    outbox.put(some(count), is_last=is_last)
    assert given == [(0.0, count)] * 2


def test_a_worker_gives_a_sign_of_life_when_nothing_has_ended() -> None:
    clock, outbox, given = an_outbox()
    outbox.fetch()
    clock.run_until(5.0)
    assert given == [(LEAST_BEAT_S, 0)]


def test_what_is_more_than_enough_goes_in_parts_to_all_who_ask() -> None:
    clock, outbox, given = an_outbox()
    outbox.fetch()
    outbox.fetch()
    outbox.put(some(2 * ENOUGH + 88), is_last=False)
    assert given == [(0.0, ENOUGH), (0.0, ENOUGH)]
    outbox.fetch()
    outbox.fetch()
    assert given[2:] == [(0.0, 88)]
    clock.run_until(5.0)
    assert given[3:] == [(LEAST_BEAT_S, 0)]
