"""Where a worker's episodes are played: how many at once, in which order, and what becomes of each."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from areal_core import workflow_context
from areal_core._distributed.leases import Ended
from areal_core._distributed.wire import HELD, MOST_PLANS
from areal_core._record import PLAYING, current
from areal_core._runner.ending import Ending
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.errors import RemoteError
from conftest import MakeRunner
from doors import LONG_S, Blockade, Door, turn_loop
from executor_tools import trajectory_of, value_of
from floors import Playground, trajectory_in, where_of


@pytest.fixture
def runner(make_runner: MakeRunner) -> AsyncTaskRunner[Any]:
    return make_runner(cancel_grace=0.05)


@pytest.fixture
def floor(runner: AsyncTaskRunner[Any]) -> Playground:
    return Playground(runner)


@pytest.fixture
def blockade() -> Iterator[Blockade]:
    """Give what blocks the loop, and is lifted at the end of the test at the latest."""
    blockade = Blockade()
    yield blockade
    blockade.lift()


class Played:
    """Episodes that wait at doors of their own."""

    def __init__(self, count: int) -> None:
        self.begun: list[int] = []
        self.doors = [Door() for _ in range(count)]
        self.calls = [self._call(number) for number in range(count)]

    def open(self, number: int) -> None:
        self.doors[number].open()

    def _call(self, number: int) -> Callable[[Any], Any]:
        async def play(place: Any) -> Any:
            self.begun.append(number)
            return await self.doors[number].walk_through(trajectory_of(number))

        return play


async def number_of_place(place: Any) -> Any:
    return trajectory_of(place)


async def nothing(place: Any) -> Any:
    return None


async def seven(place: Any) -> Any:
    return trajectory_of(7)


# -- slots and order -------------------------------------------------------------------------------


def test_no_more_play_at_once_than_there_are_slots_in_the_order_they_came(floor: Playground) -> None:
    played = Played(5)
    parcels = floor.give(*played.calls)
    for number in (0, 1):
        played.doors[number].wait_for()
    turn_loop(floor.runner)
    assert played.begun == [0, 1]
    played.open(1)
    assert where_of(floor.take()) == [(parcels[1], 0)]
    played.doors[2].wait_for()
    turn_loop(floor.runner)
    assert played.begun == [0, 1, 2]
    for number in (0, 2, 3, 4):
        played.open(number)
    assert [value_of(trajectory_in(one)) for one in floor.take(4)] == [0, 2, 3, 4]
    assert played.begun == [0, 1, 2, 3, 4] and floor.has_nothing()


def test_each_end_says_how_it_came_about(floor: Playground) -> None:
    error = ValueError("no")

    async def record(place: Any) -> Any:
        assert place is None
        context, episode = workflow_context.get(), current.get()
        assert context.task_id == 101 and episode is not None and episode.data_id == "item 1"
        episode.segment_sent(7)
        return trajectory_of(1)

    async def fail(place: Any) -> Any:
        raise error

    async def refuse(trajectory: Any) -> bool:
        return False

    floor.give(record)
    (accepted,) = floor.take()
    floor.give(nothing)
    (rejected,) = floor.take()
    floor.give(fail)
    (failed,) = floor.take()
    floor.give(seven, accept=refuse)
    (refused,) = floor.take()
    assert value_of(trajectory_in(accepted)) == 1 and accepted.figures[:2] == (1, 7)
    assert accepted.seconds > 0 and accepted.error is None
    assert rejected.verdict is not None and rejected.verdict.reason == "the workflow returned None"
    assert (failed.verdict, failed.error, failed.timed_out) == (None, error, False)
    assert refused.verdict is not None and refused.verdict.reason == "should_accept_fn said no"


def test_one_that_takes_too_long_says_what_it_was_doing(runner: AsyncTaskRunner[Any]) -> None:
    floor, door = Playground(runner, timeout_s=0.05), Door()
    floor.give(door.walk_through)
    (late,) = floor.take()
    assert late.timed_out and isinstance(late.error, TimeoutError)
    assert "rollout 101 exceeded its deadline of 0.05 s (playing its workflow for " in str(late.error)
    assert floor.has_nothing()


def test_what_has_ended_is_sent_before_what_takes_its_slot_begins(
    runner: AsyncTaskRunner[Any], blockade: Blockade
) -> None:
    floor = Playground(runner, slots=1)
    first, _ = floor.give(seven, blockade.block)
    blockade.wait_until_entered()
    assert where_of(floor.take()) == [(first, 0)]
    blockade.lift()
    floor.take()


def test_the_last_that_is_under_way_does_not_wait_for_company(runner: AsyncTaskRunner[Any]) -> None:
    floor, played = Playground(runner, linger_s=LONG_S, enough=100), Played(2)
    floor.give(*played.calls)
    began = time.monotonic()
    played.open(0)
    played.open(1)
    assert len(floor.take(2)) == 2 and time.monotonic() - began < LONG_S / 2


# -- pause -----------------------------------------------------------------------------------------


def test_a_pause_holds_what_has_not_begun_and_nothing_else(floor: Playground) -> None:
    played = Played(3)
    floor.give(played.calls[0])
    played.doors[0].wait_for()
    floor.pause()
    floor.give(played.calls[1])
    played.open(0)
    floor.take()
    turn_loop(floor.runner)
    assert played.begun == [0]
    floor.pause(False)
    played.doors[1].wait_for()
    assert played.begun == [0, 1]
    played.open(1)
    floor.take()


def test_what_was_sent_with_news_waits_until_they_are_known_and_what_was_sent_before_does_not(
    floor: Playground,
) -> None:
    played = Played(3)
    before, *_ = floor.give(played.calls[0])
    floor.news = 5
    first, second = floor.give(*played.calls[1:])
    played.doors[0].wait_for()
    turn_loop(floor.runner)
    assert played.begun == [0]
    floor.cancel(second)
    assert where_of(floor.take()) == [(second, 0)]
    floor.floor.knows(4)
    turn_loop(floor.runner)
    assert played.begun == [0]
    floor.floor.knows(5)
    played.doors[1].wait_for()
    for number in (0, 1):
        played.open(number)
    assert sorted(where_of(floor.take(2))) == [(before, 0), (first, 0)]


def test_what_waits_for_news_can_be_given_back(floor: Playground) -> None:
    floor.news = 1
    (parcel,) = floor.give(seven)
    assert floor.floor.returned() == [(parcel, 0)]


def test_what_is_paused_can_be_cancelled_and_given_back(floor: Playground) -> None:
    played = Played(3)
    floor.pause()
    first, second, third = floor.give(*played.calls)
    floor.cancel(second)
    assert where_of(floor.take()) == [(second, 0)]
    assert floor.floor.returned() == [(first, 0), (third, 0)]
    floor.forget(first, third)
    floor.pause(False)
    turn_loop(floor.runner)
    assert played.begun == [] and floor.has_nothing()


# -- cancelling ------------------------------------------------------------------------------------


def test_one_that_is_cancelled_before_its_start_never_begins(floor: Playground) -> None:
    played = Played(4)
    parcels = floor.give(*played.calls)
    floor.cancel(parcels[2])
    (never,) = floor.take()
    assert where_of([never]) == [(parcels[2], 0)]
    assert isinstance(never.error, asyncio.CancelledError) and never.seconds == 0
    assert str(never.error) == "rollout 103 was cancelled"
    for door in played.doors:
        door.open()
    floor.take(3)
    assert played.begun == [0, 1, 3] and floor.has_nothing()


def test_one_that_is_cancelled_while_it_plays_cleans_up_and_ends_as_cancelled(floor: Playground) -> None:
    door, cleaned = Door(), threading.Event()

    async def play(place: Any) -> Any:
        try:
            await door.walk_through()
        finally:
            cleaned.set()

    (parcel,) = floor.give(play)
    door.wait_for()
    floor.cancel(parcel)
    (ended,) = floor.take()
    assert isinstance(ended.error, asyncio.CancelledError) and not ended.timed_out
    assert cleaned.is_set() and floor.has_nothing()


def test_one_that_ignores_it_ends_when_its_grace_is_over_and_its_slot_is_free(floor: Playground) -> None:
    door, played = Door(), Played(1)
    (parcel,) = floor.give(door.insist)
    door.wait_for()
    floor.cancel(parcel)
    (ended,) = floor.take()
    assert isinstance(ended.error, asyncio.CancelledError) and floor.has_nothing()
    floor.give(played.calls[0])
    played.open(0)
    floor.take()
    door.open()
    turn_loop(floor.runner)


def test_to_cancel_what_has_ended_or_never_was_changes_nothing(floor: Playground) -> None:
    (parcel,) = floor.give(seven)
    (ended,) = floor.take()
    floor.cancel(parcel)
    floor.cancel(99)
    group = floor.give_group(number_of_place, group_size=2)
    floor.take(2)
    floor.cancel(group, 0)
    floor.cancel(group, 5)
    turn_loop(floor.runner)
    assert value_of(trajectory_in(ended)) == 7 and floor.out.take(0.0, 0.0) == []


# -- groups ----------------------------------------------------------------------------------------


def test_what_members_bring_stays_for_their_judge_until_it_is_to_be_forgotten(floor: Playground) -> None:
    group = floor.give_group(number_of_place, group_size=3, places=(0, 1))
    members = floor.take(2)
    assert all(one.verdict is not None and one.verdict.trajectory is HELD for one in members)
    floor.give_more(group, 2)
    floor.take()
    floor.give_more(group, -1)
    (judge,) = floor.take()
    assert where_of([judge]) == [(group, -1)]
    assert trajectory_in(judge)["input_ids"].tolist() == [[0], [1], [2]]
    assert not floor.has_nothing()
    floor.forget(group)
    turn_loop(floor.runner)
    assert floor.has_nothing()


def test_a_judge_joins_what_the_members_brought_that_did_not_fail(floor: Playground) -> None:
    async def play(place: Any) -> Any:
        if place == 1:
            raise ValueError("no")
        return None if place == 2 else trajectory_of(place)

    group = floor.give_group(play, group_size=4, keep_rest=True)
    by_place = {one.sample_idx: one for one in floor.take(4)}
    assert isinstance(by_place[1].error, ValueError)
    assert by_place[2].verdict is not None and by_place[2].verdict.trajectory is None
    floor.give_more(group, -1)
    assert trajectory_in(floor.take()[0])["input_ids"].tolist() == [[0], [3]]


def test_a_member_that_was_given_back_comes_again_in_its_place(floor: Playground) -> None:
    played = Played(2)
    floor.give(played.calls[0])
    group = floor.give_group(lambda place: played.doors[1].walk_through(trajectory_of(place)), group_size=2)
    played.doors[1].wait_for()
    assert floor.floor.returned() == [(group, 1)]
    floor.give_more(group, 2)  # which was sent before the other was known to come back
    floor.give_more(group, 1)
    for door in played.doors:
        door.open()
    assert sorted(where_of(floor.take(4)))[1:] == [(group, place) for place in range(3)]
    assert len(floor.floor._rollouts[group].episodes) == 3
    floor.give_more(group, -1)
    assert trajectory_in(floor.take()[0])["input_ids"].tolist() == [[0], [1], [2]]


def test_members_are_joined_in_their_places_in_whichever_order_they_came(floor: Playground) -> None:
    group = floor.give_group(number_of_place, group_size=3, places=(1, 0))
    floor.give_more(group, 2)
    floor.take(3)
    floor.give_more(group, -1)
    assert trajectory_in(floor.take()[0])["input_ids"].tolist() == [[0], [1], [2]]


def test_members_of_a_group_are_cancelled_one_by_one(floor: Playground) -> None:
    doors = {place: Door() for place in range(3)}
    group = floor.give_group(lambda place: doors[place].walk_through(), group_size=3)
    for place in (0, 1):
        doors[place].wait_for()
    floor.cancel(group, 1)
    assert where_of(floor.take()) == [(group, 1)]
    doors[2].wait_for()
    for place in (0, 2):
        floor.cancel(group, place)
    assert sorted(where_of(floor.take(2))) == [(group, 0), (group, 2)]
    floor.forget(group)
    turn_loop(floor.runner)
    assert floor.has_nothing()


# -- giving back -----------------------------------------------------------------------------------


def test_only_what_has_not_begun_is_given_back(floor: Playground) -> None:
    played = Played(4)
    parcels = floor.give(*played.calls)
    for number in (0, 1):
        played.doors[number].wait_for()
    assert floor.floor.returned() == [(parcels[2], 0), (parcels[3], 0)]
    assert floor.floor.returned() == []
    floor.forget(parcels[2], parcels[3])
    for door in played.doors:
        door.open()
    floor.take(2)
    turn_loop(floor.runner)
    assert played.begun == [0, 1] and floor.has_nothing()


def test_what_a_blocked_loop_has_not_come_to_is_given_back_too(floor: Playground, blockade: Blockade) -> None:
    played = Played(2)
    (blocking,) = floor.give(blockade.block)
    blockade.wait_until_entered()
    first, second = floor.give(*played.calls)
    group = floor.give_group(number_of_place, group_size=2)
    floor.cancel(second)
    assert floor.floor.returned() == [(first, 0), (second, 0), (group, 0), (group, 1)]
    floor.forget(first, second, group)
    blockade.lift()
    assert where_of(floor.take()) == [(blocking, 0)]
    turn_loop(floor.runner)
    assert played.begun == [] and floor.has_nothing() and floor.out.take(0.0, 0.0) == []


def test_whatever_is_given_back_has_not_begun_and_all_else_ends(runner: AsyncTaskRunner[Any]) -> None:
    floor, count = Playground(runner, slots=3), 400
    begun: list[Any] = []
    ended: list[Ended] = []
    back: list[tuple[int, int]] = []
    cancelled: list[int] = []
    all_given = threading.Event()

    async def play(place: Any) -> Any:
        begun.append(current.get())
        for _ in range(len(begun) % 4):
            await asyncio.sleep(0)
        return trajectory_of(1)

    def give_back() -> None:
        while not all_given.is_set():
            back.extend(floor.floor.returned())
            ended.extend(floor.out.take(0.0, 0.0))
            floor.floor.stages()

    thread = threading.Thread(target=give_back)
    thread.start()
    parcels: list[int] = []
    for number in range(count):
        parcels += floor.give(play)
        if number % 5 == 0:
            floor.cancel(parcels[number // 2])
            cancelled.append(parcels[number // 2])
    all_given.set()
    thread.join(LONG_S)
    ended += floor.take(count - len(back) - len(ended))
    floor.forget(*[parcel for parcel, _ in back])
    turn_loop(runner)
    assert sorted(where_of(ended) + back) == [(parcel, 0) for parcel in parcels], "each, and each once"
    never = [one for one in ended if isinstance(one.error, asyncio.CancelledError) and not one.seconds]
    assert len(begun) == len(ended) - len(never) and {one.parcel for one in never} <= set(cancelled)
    assert floor.has_nothing() and floor.out.take(0.0, 0.0) == []


# -- what is seen ----------------------------------------------------------------------------------


def test_a_stage_is_told_once_and_again_when_it_is_another(floor: Playground) -> None:
    doors = [Door(), Door()]

    async def play(place: Any) -> Any:
        await doors[0].walk_through()
        record = current.get()
        assert record is not None
        record.enter("waiting", "a server")
        record.segment_sent(7)
        return await doors[1].walk_through()

    assert floor.floor.stages() == []
    (parcel,) = floor.give(play)
    doors[0].wait_for()
    ((number, place, (stage, server, age_s, segments, newest)),) = floor.floor.stages()
    assert (number, place, stage, server, segments, newest) == (parcel, 0, PLAYING, None, 0, None)
    assert 0 <= age_s < LONG_S
    assert floor.floor.stages() == []
    doors[0].open()
    doors[1].wait_for()
    ((*_, (stage, server, _, segments, newest)),) = floor.floor.stages()
    assert (stage, server, segments, newest) == ("waiting", "a server", 1, 7)
    doors[1].open()
    floor.take()
    assert floor.floor.stages() == [] and floor.has_nothing()


def test_a_loop_that_turns_does_not_stall_and_one_that_is_blocked_does(
    floor: Playground, blockade: Blockade
) -> None:
    for _ in range(3):
        assert floor.floor.stalled_s() == 0.0
        turn_loop(floor.runner)
    floor.give(blockade.block)
    blockade.wait_until_entered()
    seen = [floor.floor.stalled_s()]
    deadline = time.monotonic() + LONG_S
    while seen[-1] < 0.05:
        seen.append(floor.floor.stalled_s())
        assert time.monotonic() < deadline
    assert seen == sorted(seen)
    blockade.lift()
    floor.take()
    turn_loop(floor.runner)
    assert floor.floor.stalled_s() == 0.0


def test_a_loop_that_is_closed_is_asked_for_nothing(floor: Playground) -> None:
    floor.runner.destroy()
    assert floor.floor.stalled_s() == 0.0
    floor.floor.knows(1)
    floor.order()
    assert isinstance(floor.floor.ending, Ending)


# -- what cannot be read ---------------------------------------------------------------------------


class MuteError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("no module"), "ImportError: no module"),
        (SystemExit("leaving"), "SystemExit: leaving"),
        (MuteError(), "MuteError: <exception str() failed>"),
    ],
    ids=["module", "exit", "mute"],
)
def test_what_cannot_be_read_fails_alone(floor: Playground, error: BaseException, said: str) -> None:
    order = {"plans": {50: floor._send(error)}, "give": [(50, floor._send((50, 1, None, 0, None)), [0])]}
    floor.order(**order)
    (no_plan,) = floor.take()
    floor.order(give=[(51, floor._send(error), [0, 1])])
    no_head = floor.take(2)
    floor.give_more(51, 2)
    (later,) = floor.take()
    assert where_of([no_plan, *no_head, later]) == [(50, 0), (51, 0), (51, 1), (51, 2)]
    for one in (no_plan, *no_head):
        assert type(one.error) is RemoteError
        assert str(one.error).endswith(said)
    assert type(later.error) is RemoteError and "cannot read" in str(later.error)
    floor.give(seven)
    assert value_of(trajectory_in(floor.take()[0])) == 7 and floor.has_nothing()


# -- memory ----------------------------------------------------------------------------------------


class Thing:
    """Something that is noticed when it is gone."""


def test_nothing_is_kept_of_what_has_ended(floor: Playground) -> None:
    things: list[weakref.ref[Thing]] = []

    def call() -> Callable[[Any], Any]:
        thing = Thing()
        things.append(weakref.ref(thing))

        async def play(place: Any) -> Any:
            return {**trajectory_of(place or 0), "of": [thing]}

        return play

    floor.give(call(), call())
    floor.take(2)
    group = floor.give_group(call(), group_size=2)
    floor.take(2)
    floor.forget(group)
    turn_loop(floor.runner)
    gc.collect()
    assert [thing() for thing in things] == [None, None, None] and floor.has_nothing()


def test_plans_that_are_not_needed_any_more_are_forgotten(floor: Playground) -> None:
    parcels = floor.give(*[seven] * (MOST_PLANS + 50))
    floor.take(len(parcels))
    assert list(floor.floor._plans) == parcels[50:]


# -- the end ---------------------------------------------------------------------------------------


def test_nothing_begins_any_more_when_the_runner_ends(floor: Playground) -> None:
    played = Played(5)

    async def late(place: Any) -> Any:
        try:
            return await played.calls[0](place)
        finally:
            floor.pause(False)  # orders that come in the middle of it
            floor.give(played.calls[4])
            await asyncio.sleep(0)

    floor.give(late, *played.calls[1:4])
    for number in (0, 1):
        played.doors[number].wait_for()
    floor.runner.destroy()
    assert played.begun == [0, 1]
    began = time.monotonic()
    while floor.out.take(LONG_S, 0.0):
        pass
    assert time.monotonic() - began < LONG_S / 2, "nobody waits"


def test_a_runner_that_ends_while_its_loop_is_blocked_lets_nobody_wait(
    make_runner: MakeRunner, blockade: Blockade
) -> None:
    floor, played = Playground(make_runner(leave=True)), Played(1)
    floor.give(blockade.block, *played.calls)
    blockade.wait_until_entered()
    floor.runner.destroy(timeout=0.1)
    began = time.monotonic()
    floor.out.take(LONG_S, 0.0)
    assert time.monotonic() - began < LONG_S / 2
    blockade.lift()
    assert played.begun == []
