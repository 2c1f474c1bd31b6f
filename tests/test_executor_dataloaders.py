"""What `prepare_batch` does with its dataloader: pulls ahead, iterates again, bears with errors."""

from __future__ import annotations

import itertools
import threading
from collections import UserDict
from collections.abc import Iterator
from typing import Any

import pytest

from areal_core.errors import DataExhaustedError
from conftest import MakeExecutor
from doors import Door, start_blocked, turn_loop
from executor_tools import (
    Answering,
    Lists,
    Playing,
    TellingEngine,
    answering,
    obeying,
    trajectory_of,
    values_of,
)


def test_a_dataloader_is_iterated_again_at_its_end_and_another_one_when_given(
    make_executor: MakeExecutor,
) -> None:
    engine, passes = TellingEngine(), []

    class Short:
        def __iter__(self) -> Iterator[list[int]]:
            passes.append(self)
            yield [1, 2]
            yield []
            yield [3]

    executor = make_executor(engine, consumer_batch_size=3)
    short = Short()
    assert values_of(executor.prepare_batch(short, answering)) == [1, 2, 3]
    engine.set_version(1)
    assert values_of(executor.prepare_batch(short, answering)) == [1, 2, 3]
    assert len(passes) >= 2
    pending = executor.ledger.pending
    engine.set_version(2)
    given = executor.prepare_batch([[7, 8, 9]], answering)
    assert pending >= 3
    assert values_of(given) == [1, 2, 3], "what was in flight stays"
    seen: set[int | None] = set()
    for version in range(3, 6):
        engine.set_version(version)
        seen |= set(values_of(executor.prepare_batch([[7, 8, 9]], answering)))
    assert {7, 8, 9} <= seen


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("loader", "error", "text"),
    [
        ([], ValueError, "no item in a whole pass"),
        ([[], []], ValueError, "no item in a whole pass"),
        ([1, 2], TypeError, "gave a int"),
        (["ab"], TypeError, "gave a str"),
        ([{"a": 1}], TypeError, "gave a dict"),
        ([UserDict(input_ids=[1])], TypeError, "gave a UserDict"),  # as Hugging Face's batches are
        (7, TypeError, "int"),
    ],
)
def test_a_dataloader_that_gives_no_lists_of_items_is_refused(
    make_executor: MakeExecutor, loader: Any, error: type[Exception], text: str
) -> None:
    executor = make_executor()
    with pytest.raises(error, match=text):
        executor.prepare_batch(loader, answering)
    assert values_of(executor.prepare_batch([[5]], answering)) == [5]


@pytest.mark.any_loop
def test_what_the_dataloader_raises_reaches_the_caller_and_the_next_call_goes_on(
    make_executor: MakeExecutor,
) -> None:
    class Flaky:
        def __iter__(self) -> Iterator[list[int]]:
            yield [1]
            if not self.healthy:
                raise OSError("the disk is away")
            yield [2]

        healthy = False

    engine, loader = TellingEngine(), Flaky()
    executor = make_executor(engine, consumer_batch_size=2)
    with pytest.raises(OSError, match="the disk is away"):
        executor.prepare_batch(loader, answering)
    loader.healthy = True
    assert values_of(executor.prepare_batch(loader, answering)) == [1, 1]


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_a_dataloader_of_one_pass_is_used_up_to_the_last_batch_and_then_said_to_be_exhausted(
    make_executor: MakeExecutor, staleness: int
) -> None:
    engine = TellingEngine()
    executor = make_executor(engine, consumer_batch_size=2, max_head_offpolicyness=staleness)
    loader = ([2 * one, 2 * one + 1] for one in range(10))
    seen: list[int | None] = []
    for version in range(10):
        seen += values_of(executor.prepare_batch(loader, answering))
        engine.set_version(version + 1)
    assert seen == list(range(20))
    for _ in range(2):
        with pytest.raises(ValueError, match="is exhausted: it gave items before"):
            executor.prepare_batch(loader, answering)
    assert values_of(executor.prepare_batch([[7, 8]], answering)) == [7, 8]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "data",
    [[1], [1, None], [None, OSError()], [None, None, 1]],
    ids=["too few", "one rejected", "none accepted", "too few after the rejected"],
)
def test_less_than_a_batch_at_the_end_raises_once_all_have_ended(
    make_executor: MakeExecutor, data: list[Any], dynamic: bool
) -> None:
    executor = make_executor(consumer_batch_size=2)
    if dynamic and data == [1, None]:
        assert values_of(executor.prepare_batch(iter([data]), obeying, dynamic_bs=True)) == [1]
        return
    with pytest.raises(DataExhaustedError, match="is exhausted") as raised:
        executor.prepare_batch(iter([data]), obeying, dynamic_bs=dynamic)
    left = f"{1 if 1 in data else 0} are left, fewer than a batch, which drop_last=False gives as the last"
    assert (left in str(raised.value)) == (1 in data)
    ledger = executor.ledger
    assert (ledger.pending, ledger.running, ledger.finished) == (0, 0, len(data))
    kept = [1] if 1 in data else []
    more = executor.prepare_batch([[2, 3]], obeying)
    assert values_of(more) == [*kept, 2, 3][:2], "what was left comes with the next batch"


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("data", "batches"),
    [
        ([1], [[1]]),
        ([1, None], [[1]]),
        ([None, 1, OSError(), 2, 3], [[1, 2], [3]]),
        ([None, OSError()], []),
        ([1, 2], [[1, 2]]),
    ],
    ids=["too few", "one rejected", "some not accepted", "none accepted", "just a batch"],
)
def test_without_drop_last_the_end_of_the_data_is_a_shorter_batch_once_all_have_ended(
    make_executor: MakeExecutor, data: list[Any], batches: list[list[int]], dynamic: bool
) -> None:
    executor = make_executor(consumer_batch_size=2, max_head_offpolicyness=4)
    loader, seen = iter([data]), list[list[int | None]]()
    with pytest.raises(DataExhaustedError, match="is exhausted") as raised:  # noqa: PT012 - as a trainer does
        while True:
            batch = executor.prepare_batch(loader, obeying, dynamic_bs=dynamic, drop_last=False)
            seen.append(values_of(batch))
    if dynamic:  # its batches are cut elsewhere
        assert [*itertools.chain(*seen)] == [*itertools.chain(*batches)] and all(seen)
    else:
        assert seen == batches
    assert executor.ledger.collected == (len(data) if batches else 0)
    accepted = sum(isinstance(one, int) for one in data)
    assert f"of {len(data)} training rollouts so far {accepted} were accepted" in str(raised.value)
    for count, word in (
        (data.count(None), "rejected"),
        (sum(isinstance(x, OSError) for x in data), "failed"),
    ):
        assert (f", {count} {word}" in str(raised.value)) == (count > 0)
    assert values_of(executor.prepare_batch([[8, 9]], obeying, drop_last=False)) == [8, 9]


def test_without_drop_last_what_runs_comes_with_the_last_batch(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=4), Door()
    loader = iter([[trajectory_of(1), trajectory_of(2)]])
    preparing = start_blocked(executor.prepare_batch, loader, Playing(door.walk_through), drop_last=False)
    door.wait_for(2)
    turn_loop(executor.runner)
    assert not preparing.is_done()
    door.open()
    assert sorted(values_of(preparing.result()), key=str) == [1, 2]


@pytest.mark.any_loop
def test_a_wait_in_vain_says_that_what_is_there_is_for_batches(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=2, max_head_offpolicyness=4)
    loader = iter([[1, 2, 3]])
    assert values_of(executor.prepare_batch(loader, obeying)) == [1, 2]
    turn_loop(executor.runner)
    with pytest.raises(TimeoutError, match=r"received 0\. 1 of prepare_batch are there, and come out of"):
        executor.wait(1, timeout=0)


@pytest.mark.any_loop
def test_what_the_dataloader_raises_is_not_its_end_and_leaves_what_there_is_for_the_next_batch(
    make_executor: MakeExecutor,
) -> None:
    executor = make_executor(consumer_batch_size=2)
    with pytest.raises(OSError, match="gone"):
        executor.prepare_batch(failing_after([[1]], OSError("gone")), obeying, drop_last=False)
    assert values_of(executor.prepare_batch(iter([[2]]), obeying, drop_last=False)) == [1, 2]


@pytest.mark.any_loop
def test_what_became_too_old_is_played_again_before_the_last_batch(make_executor: MakeExecutor) -> None:
    engine, door = TellingEngine(), Door()
    executor = make_executor(engine, consumer_batch_size=3, max_head_offpolicyness=0, on_stale="requeue")
    loader = iter([[trajectory_of(1), trajectory_of(2)]])
    preparing = start_blocked(executor.prepare_batch, loader, Playing(door.walk_through), drop_last=False)
    door.wait_for(2)
    engine.set_version(1)
    door.open()
    assert sorted(values_of(preparing.result()), key=str) == [1, 2]
    assert executor.ledger.requeued == 2


def test_what_runs_is_waited_for_when_the_dataloader_has_no_more(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=2), Door()
    one_pass = iter([[trajectory_of(1), trajectory_of(2)]])
    preparing = start_blocked(executor.prepare_batch, one_pass, Playing(door.walk_through))
    door.wait_for(2)
    turn_loop(executor.runner)
    door.open()
    assert sorted(values_of(preparing.result()), key=str) == [1, 2]


def failing_after(lists: list[Any], error: BaseException) -> Iterator[Any]:
    yield from lists
    raise error


def test_an_error_of_the_dataloader_waits_while_there_are_batches_and_is_raised_once(
    make_executor: MakeExecutor,
) -> None:
    engine, passes = TellingEngine(), 0

    class Flaky:
        def __iter__(self) -> Iterator[list[int]]:
            nonlocal passes
            passes += 1
            return failing_after([[1, 2], [3, 4], [5]], OSError("the disk is away"))

    executor, loader = make_executor(engine, consumer_batch_size=2, max_head_offpolicyness=1), Flaky()
    for version, expected in enumerate([[1, 2], [3, 4]]):
        assert values_of(executor.prepare_batch(loader, answering)) == expected
        engine.set_version(version + 1)
    assert passes == 1
    with pytest.raises(OSError, match="the disk is away"):
        executor.prepare_batch(loader, answering)
    assert values_of(executor.prepare_batch(loader, answering)) == [5, 1]


def test_an_error_of_one_dataloader_is_not_raised_for_another(make_executor: MakeExecutor) -> None:
    engine = TellingEngine()
    executor = make_executor(engine, consumer_batch_size=2)
    loader = failing_after([[1, 2]], OSError("the disk is away"))
    assert values_of(executor.prepare_batch(loader, answering)) == [1, 2]
    engine.set_version(1)
    assert values_of(executor.prepare_batch([[3, 4]], answering)) == [3, 4]


def test_a_ctrl_c_in_the_dataloader_goes_on_at_once_and_the_batch_comes_with_the_next_call(
    make_executor: MakeExecutor,
) -> None:
    executor = make_executor(consumer_batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        executor.prepare_batch(failing_after([[1, 2]], KeyboardInterrupt()), answering)
    assert values_of(executor.prepare_batch([[3]], answering)) == [1, 2]


class Unnamed(dict[str, int]):
    """An item that cannot be asked for its id."""

    def get(self, *_: Any) -> Any:
        raise LookupError("it has no name")


def test_a_list_that_cannot_be_made_into_rollouts_is_dropped_after_it_was_raised_once(
    make_executor: MakeExecutor,
) -> None:
    executor = make_executor(consumer_batch_size=2)
    loader: list[list[Any]] = [[1, Unnamed()], [2, 3]]
    lists = iter(loader)
    with pytest.raises(LookupError, match="it has no name"):
        executor.prepare_batch(lists, answering)
    assert values_of(executor.prepare_batch(lists, answering)) == [2, 3]
    executor.give_back(2)
    with pytest.raises(LookupError, match="it has no name"):
        executor.prepare_batch(loader, answering)
    assert values_of(executor.prepare_batch([[4, 5]], answering)) == [4, 5]


def test_what_a_list_gave_before_it_raised_is_kept_and_played_as_it_was_asked_for_then(
    make_executor: MakeExecutor,
) -> None:
    executor = make_executor(consumer_batch_size=3)
    lists = iter([failing_after([1, 2], OSError("the disk is away")), iter([3, 4])])
    with pytest.raises(OSError, match="the disk is away"):
        executor.prepare_batch(lists, answering)
    assert values_of(executor.prepare_batch(lists, Answering(100))) == [1, 2, 103]


def test_a_dataloader_of_nothing_but_empty_lists_is_refused(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=1)
    empty: itertools.repeat[list[int]] = itertools.repeat([])
    for _ in range(2):
        with pytest.raises(ValueError, match="1000 empty lists in a row"):
            executor.prepare_batch(empty, answering)
    few = itertools.chain(*([*itertools.repeat([], 999), [one]] for one in range(3)))
    assert values_of(executor.prepare_batch(few, answering)) == [0]


@pytest.mark.parametrize(
    ("group_size", "pulled", "at_once"), [(1, 8 + 4 * 16, 16), (8, 8 + 4 * 2, 2), (5, 8 + 4 * 4, 4)]
)
def test_no_more_is_pulled_ahead_than_keeps_the_slots_busy(
    make_executor: MakeExecutor, group_size: int, pulled: int, at_once: int
) -> None:
    door, loader = Door(), Lists(1)
    executor = make_executor(consumer_batch_size=4, max_head_offpolicyness=1000, max_concurrent_rollouts=16)

    async def play(data: int) -> Any:
        return trajectory_of(data) if data < 4 else await door.walk_through()

    assert len(executor.prepare_batch(loader, Playing(play), group_size=group_size)) == 4
    door.wait_for(16)
    assert loader.next == pulled
    ledger = executor.ledger
    assert (ledger.running, ledger.pending) == (at_once, pulled - 4 - at_once)


def test_a_second_call_at_the_same_time_is_refused_and_the_first_goes_on(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=1, max_head_offpolicyness=1), Door()
    preparing = start_blocked(executor.prepare_batch, [[trajectory_of(1)]], Playing(door.walk_through))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="is under way already"):
            executor.prepare_batch([[2]], answering)
    door.open()
    assert values_of(preparing.result()) == [1]
    assert len(executor.prepare_batch([[2]], answering)) == 1


def test_a_dataloader_that_prepares_a_batch_itself_is_refused(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=1)

    def turning() -> Iterator[list[int]]:
        yield [len(executor.prepare_batch([[2]], answering))]

    with pytest.raises(RuntimeError, match="is under way already"):
        executor.prepare_batch(turning(), answering)
    assert values_of(executor.prepare_batch([[3]], answering)) == [3]


def test_the_dataloader_is_advanced_in_the_callers_thread_only(make_executor: MakeExecutor) -> None:
    threads: set[threading.Thread] = set()

    class Looking(Lists):
        def __iter__(self) -> Iterator[list[int]]:
            for items in super().__iter__():
                threads.add(threading.current_thread())
                yield items

    engine = TellingEngine()
    executor = make_executor(engine, consumer_batch_size=2)
    loader = Looking(1)
    for version in range(4):
        executor.prepare_batch(loader, answering)
        engine.set_version(version + 1)
    assert threads == {threading.current_thread()}
