"""What can wait: until when, in which order, and in which context it is done."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from areal_core._executor import bundle
from areal_core._executor.bundle import Bundle
from children import RunScript
from scripted import Play
from threaded_loops import turns_until


class Taken(Bundle[int]):
    """A bundle that keeps what it hands on."""

    def __init__(self) -> None:
        self.all: list[int] = []
        super().__init__(self.all.append)

    def give(self, *numbers: int, hurries: bool = False) -> list[int]:
        """Put *numbers* in, hand on, and return all that was handed on so far."""
        for number in numbers:
            self.put(number, hurries)
        self.hand_on()
        return list(self.all)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have things wait until there are three, for ever."""
    monkeypatch.setattr(bundle, "MOST", 3)
    monkeypatch.setattr(bundle, "WAIT_S", 3600.0)


def test_what_can_wait_is_done_when_there_is_much_of_it(play: Play) -> None:
    async def act() -> None:
        taken = Taken()
        assert taken.give(1, 2) == []
        assert taken.give() == []
        assert taken.give(3) == [1, 2, 3]
        assert taken.give(4) == [1, 2, 3]

    play(act)


def test_what_hurries_takes_what_waits_along_and_is_over_with_it(play: Play) -> None:
    async def act() -> None:
        taken = Taken()
        assert taken.give(1) == []
        assert taken.give(2, hurries=True) == [1, 2]
        assert taken.give(3) == [1, 2]

    play(act)


def test_what_was_put_after_what_hurries_does_not_slow_it(play: Play) -> None:
    async def act() -> None:
        taken = Taken()
        taken.put(1, hurries=True)
        assert taken.give(2) == [1, 2]

    play(act)


def test_nothing_waits_from_the_end_on_until_it_begins_anew(play: Play) -> None:
    async def act() -> None:
        taken = Taken()
        taken.end()
        assert taken.give(1) == [1]
        taken.begin()
        assert taken.give(2) == [1]
        taken.end()
        assert taken.give() == [1, 2]

    play(act)


@pytest.mark.any_loop
def test_nothing_waits_where_no_loop_runs() -> None:
    bound: ContextVar[str] = ContextVar("bound", default="")
    seen: list[str] = []
    one: Bundle[int] = Bundle(lambda _: seen.append(bound.get()))
    bound.set("to an episode")
    one.put(1)
    one.hand_on()
    assert seen == [""]


def test_it_waits_for_so_long_at_each_time(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "WAIT_S", 0.02)

    async def act() -> None:
        loop, taken = asyncio.get_running_loop(), Taken()
        for round_ in (1, 2):
            began = loop.time()
            taken.give(round_)
            await turns_until(lambda: len(taken.all) == round_)  # noqa: B023
            assert loop.time() - began >= 0.019  # the clock of a loop has milliseconds

    play(act)


def test_one_timer_is_enough_and_one_of_a_loop_before_counts_for_nothing(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, timers = Taken(), list[float]()

    async def act(*numbers: int) -> None:
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def noted(delay: float, *rest: Any, **more: Any) -> asyncio.TimerHandle:
            timers.append(delay)
            return call_later(delay, *rest, **more)

        monkeypatch.setattr(loop, "call_later", noted)
        for number in numbers:
            taken.give(number)

    for count, numbers in enumerate(((1, 2), (3, 4)), 1):
        taken.begin()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(act(*numbers))
        assert timers == [3600.0] * count


def test_what_is_done_sees_nothing_of_the_context_it_was_handed_on_in(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be an episode's, while the line is another's."""
    bound: ContextVar[str] = ContextVar("bound", default="")
    seen: list[str] = []

    async def act() -> None:
        bound.set("to an episode")
        one: Bundle[int] = Bundle(lambda _: seen.append(bound.get()))
        one.put(1, hurries=True)
        one.hand_on()
        monkeypatch.setattr(bundle, "WAIT_S", 0.0)
        one.put(2)
        one.hand_on()
        await turns_until(lambda: len(seen) == 2)
        monkeypatch.setattr(bundle, "MOST", 1)
        one.put(3)
        one.hand_on()

    play(act)
    assert seen == ["", "", ""]


@pytest.mark.any_loop
def test_several_threads_may_flush_and_each_thing_is_done_once() -> None:
    both, seen = threading.Barrier(2, timeout=10), list[int]()

    def take(number: int) -> None:
        seen.append(number)
        if len(seen) <= 2:
            both.wait()  # each of the two has taken one, and the other has not gone on

    one: Bundle[int] = Bundle(take)
    for number in range(10):
        one.put(number)
    threads = [threading.Thread(target=one.flush) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(10))


def test_what_is_slow_lets_the_loop_turn_and_keeps_its_order(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "_AT_A_TIME_S", 0.0)

    async def act() -> None:
        taken = Taken()
        assert taken.give(1, 2, 3, 4, 5) == [1, 2, 3]  # of the others there are fewer than may wait
        sizes = list[int]()

        def are_all_taken() -> bool:
            sizes.append(len(taken.all))
            return sizes[-1] == 5

        await turns_until(are_all_taken)
        assert 4 in sizes
        assert taken.all == [1, 2, 3, 4, 5]

    play(act)


@pytest.mark.any_loop
def test_a_forked_child_does_nothing_of_what_its_parent_is_to_do(run_script: RunScript) -> None:
    done = run_script(
        """
        import os
        from areal_core._executor.bundle import Bundle

        bundle = Bundle(lambda word: print(word, flush=True))
        bundle.put("once")
        child = os.fork()
        bundle.flush()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        """
    )
    assert done.stdout == "once\n"
