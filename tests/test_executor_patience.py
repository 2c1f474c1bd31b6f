"""When waiting is given up: rollouts that fail one after the other, and a version that does not come."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from areal_core.errors import AdmissionStalledError, FailureBudgetError
from areal_core.workflow_executor import WorkflowExecutor
from conftest import MakeExecutor
from doors import Caller, Door, fail, in_thread, start_blocked, turn_loop
from executor_tools import (
    WAIT_S,
    Engine,
    Lists,
    Playing,
    TellingEngine,
    answering,
    balance,
    counts,
    obeying,
    statuses_of,
    trajectory_of,
    values_of,
)
from logged import LogLines


class Failing:
    """Fails until it is mended."""

    def __init__(self) -> None:
        self.runs = 0
        self.error: BaseException | None = ConnectionError("no server")
        self.workflow = Playing(self.play)

    async def play(self, data: int) -> Any:
        self.runs += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return trajectory_of(data)


def test_a_workflow_that_always_fails_raises_from_prepare_batch_within_its_budget(
    make_executor: MakeExecutor,
) -> None:
    executor, failing, loader = make_executor(consumer_batch_size=4), Failing(), Lists(4)
    with pytest.raises(FailureBudgetError, match="max_consecutive_failures=32") as raised:
        executor.prepare_batch(loader, failing.workflow)
    assert 32 <= failing.runs <= 32 + 4
    ((kind, count),) = raised.value.kinds.items()
    assert count == 32
    assert re.fullmatch(rf"ConnectionError at {re.escape(__file__)}:\d+ in play", kind)
    assert f"32 x {kind}" in str(raised.value)
    assert raised.value.__cause__ is failing.error
    turn_loop(executor.runner)
    assert executor.ledger.running == 0
    with pytest.raises(FailureBudgetError):
        executor.prepare_batch(loader, failing.workflow)
    assert failing.runs <= 32 + 4, "it started more"
    balance(executor.ledger)

    failing.error = None
    executor.reset_failures()
    assert len(executor.prepare_batch(loader, failing.workflow)) == 4
    assert executor.ledger.accepted >= 4


def test_a_rollout_batch_that_gives_up_at_once_has_submitted_nothing_and_can_be_made_again(
    make_executor: MakeExecutor,
) -> None:
    executor, played = make_executor(consumer_batch_size=8, max_consecutive_failures=1), list[int]()

    async def play(data: int) -> Any:
        played.append(data)
        return trajectory_of(data)

    executor.submit(OSError("down"), obeying, task_id=7)
    turn_loop(executor.runner)
    with pytest.raises(FailureBudgetError):
        executor.rollout_batch([1, 2], Playing(play))
    assert values_of(executor.rollout_batch([3], Playing(play), is_eval=True)) == [3]
    executor.reset_failures()
    assert values_of(executor.rollout_batch([1, 2], Playing(play))) == [1, 2]
    assert played == [3, 1, 2]
    assert [outcome.task_id for outcome in executor.wait_outcomes(1, WAIT_S)] == [7]
    assert counts(executor.ledger) == {"submitted": 3, "collected": 3, "accepted": 2, "failed": 1}


def test_rows_of_a_rollout_batch_that_gives_up_as_it_waits_are_for_whoever_waits(
    make_executor: MakeExecutor,
) -> None:
    executor, door = make_executor(consumer_batch_size=8, max_consecutive_failures=1), Door()

    async def play(data: int) -> Any:
        return await door.walk_through(trajectory_of(data))

    calling = start_blocked(executor.rollout_batch, [1, 2], Playing(play))
    door.wait_for(2)
    executor.submit(OSError("down"), obeying, task_id=7)
    with pytest.raises(FailureBudgetError):
        calling.result()
    door.open()
    executor.reset_failures()
    outcomes = executor.wait_outcomes(3, WAIT_S)
    assert sorted(outcome.status for outcome in outcomes) == ["accepted", "accepted", "failed"]


class OddError(Exception):
    """An error that answers no question."""

    def _refuse(self, *_: object) -> Any:
        raise ValueError("odd")

    __bool__ = __len__ = __eq__ = __hash__ = __str__ = __repr__ = __getattr__ = _refuse


@pytest.mark.parametrize("group_size", [1, 3])
def test_errors_that_answer_no_question_fail_their_rollouts_and_nothing_else(
    make_executor: MakeExecutor, group_size: int
) -> None:
    executor = make_executor(max_consecutive_failures=3, on_member_failure="keep_rest")
    for number in range(3):
        executor.submit(OddError("x"), obeying, task_id=number, group_size=group_size)
    with pytest.raises(FailureBudgetError, match="3 x OddError") as raised:
        executor.wait(3, WAIT_S)
    assert type(raised.value.__cause__) is OddError
    executor.reset_failures()
    assert {outcome.status for outcome in executor.wait_outcomes(3, WAIT_S)} == {"failed"}
    executor.submit(1, answering)
    assert values_of(executor.wait(1, WAIT_S)) == [1]


def test_it_raises_from_blocked_and_later_waits_until_the_failures_are_reset(
    make_executor: MakeExecutor,
) -> None:
    executor = make_executor(consumer_batch_size=4, max_consecutive_failures=3)
    waiting: list[Caller[Any]] = [start_blocked(executor.wait, 9), start_blocked(executor.wait_outcomes, 9)]
    for number in range(3):
        executor.submit(OSError(number), obeying, task_id=number)
    for caller in waiting:
        assert isinstance(caller.error(), FailureBudgetError)
    for call in (
        lambda: executor.wait(1),
        lambda: executor.wait_for_task(1),
        lambda: executor.rollout_batch([1], answering),
    ):
        with pytest.raises(FailureBudgetError) as raised:
            call()
        assert isinstance(raised.value.__cause__, OSError)
        assert raised.value.__cause__.args == (0,)
    executor.reset_failures()
    outcomes = executor.wait_outcomes(3, WAIT_S)  # nothing was consumed
    assert {outcome.task_id for outcome in outcomes} == {0, 1, 2}
    assert executor.ledger.submitted == 3, "the row was not taken"


def test_nothing_more_starts_once_it_was_given_up(make_executor: MakeExecutor) -> None:
    executor, failing = make_executor(consumer_batch_size=2, max_consecutive_failures=3), Failing()
    for number in range(50):
        executor.submit(number, failing.workflow)
    with pytest.raises(FailureBudgetError):
        executor.wait(50)
    turn_loop(executor.runner)
    assert failing.runs <= 3 + 2
    failed = failing.runs
    assert executor.ledger.pending == 50 - failed
    failing.error = None
    executor.reset_failures()
    assert values_of(executor.wait(failed + 2, WAIT_S)) == [None] * failed + [failed, failed + 1]


def test_evaluation_goes_on_and_does_not_count(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=4, max_consecutive_failures=2)
    for number in range(5):
        executor.submit(OSError(), obeying, task_id=number, is_eval=True)
    assert set(statuses_of(executor.wait_outcomes(5, WAIT_S, is_eval=True)).values()) == {"failed"}
    executor.submit(1, answering)
    assert values_of(executor.wait(1, WAIT_S)) == [1]
    for _ in range(2):
        executor.submit(OSError(), obeying)
    with pytest.raises(FailureBudgetError):
        executor.wait(9)
    assert values_of(executor.rollout_batch([1, 2], answering, is_eval=True)) == [1, 2]


@pytest.mark.parametrize("saviour", [1, None], ids=["accepted", "rejected"])
def test_one_that_is_accepted_or_rejected_begins_the_count_anew(
    make_executor: MakeExecutor, saviour: int | None
) -> None:
    executor = make_executor(consumer_batch_size=16, max_consecutive_failures=3)
    for data in (OSError(), OSError(), saviour, OSError(), OSError(), saviour):
        executor.submit(data, obeying)
        executor.wait(1, WAIT_S)


def test_a_timeout_counts_and_a_cancellation_does_not(make_executor: MakeExecutor) -> None:
    executor = make_executor(
        consumer_batch_size=4, max_concurrent_rollouts=2, max_consecutive_failures=2, episode_timeout=0.5
    )
    door = Door()
    for _ in range(3):
        assert executor.cancel(executor.submit(None, Playing(door.walk_through)))
    assert len(executor.wait(3, WAIT_S)) == 3
    for _ in range(2):
        executor.submit(None, Playing(door.walk_through))
    with pytest.raises(FailureBudgetError) as raised:
        executor.wait(3, WAIT_S)
    assert raised.value.kinds == {"TimeoutError": 2}
    assert isinstance(raised.value.__cause__, TimeoutError)
    # It says what the episode did at that moment.
    assert "deadline of 0.5 s (playing its workflow for 0.5 s, 0 requests for tokens sent)" in str(
        raised.value.__cause__
    )


def test_a_workflow_that_cancels_itself_fails_like_one_that_raises(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor = make_executor(consumer_batch_size=4)

    async def play(data: int) -> Any:
        raise asyncio.CancelledError("a scope that leaks")

    with pytest.raises(FailureBudgetError, match="max_consecutive_failures=32") as raised:
        executor.prepare_batch(Lists(4), Playing(play))
    assert sum(raised.value.kinds.values()) == 32
    assert "rollout_cancelled_itself" in log_lines.of("warning")[0]


def test_a_workflow_that_rejects_everything_raises_within_its_budget(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=2)
    runs = 0

    async def play(data: int) -> Any:
        nonlocal runs
        runs += 1

    with pytest.raises(FailureBudgetError, match="max_consecutive_unaccepted=128") as raised:
        executor.prepare_batch(Lists(2), Playing(play))
    assert 128 <= runs <= 130
    assert raised.value.kinds == {"rejected: the workflow returned None": 128}
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("dynamic_bs", [False, True])
def test_one_in_eight_that_never_ends_does_not_stop_the_batches(
    make_executor: MakeExecutor, dynamic_bs: bool
) -> None:
    engine, door = TellingEngine(), Door()
    executor = make_executor(engine, consumer_batch_size=8, max_head_offpolicyness=1, cancel_grace=0.01)
    seen: list[int | None] = []

    async def play(data: int) -> Any:
        return await (door.insist() if data % 8 == 5 else _give(data))

    async def _give(data: int) -> Any:
        return trajectory_of(data)

    loader = Lists(8)
    for version in range(1, 13):
        batch = executor.prepare_batch(loader, Playing(play), dynamic_bs=dynamic_bs)
        assert 0 < len(batch) <= 8
        seen += values_of(batch)
        engine.set_version(version)
    assert all(value is not None and value % 8 != 5 for value in seen)
    door.open()


class UntouchableError(Exception):
    """An error of somebody's that fails in every way it can."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("no class")

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def test_an_error_that_fails_itself_harms_only_its_rollout(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=4)

    async def play(data: Any) -> Any:
        await fail(UntouchableError())

    executor.submit(None, Playing(play))
    executor.submit(None, Playing(play), group_size=2)
    executor.submit(1, answering)
    statuses = [outcome.status for outcome in executor.wait_outcomes(3, WAIT_S)]
    assert sorted(statuses) == ["accepted", "failed", "failed"]


# -- a version that does not come -------------------------------------------------------------------


def consume(executor: WorkflowExecutor, count: int) -> None:
    for _ in range(count):
        executor.submit(1, answering)
    executor.wait(count, WAIT_S)


@pytest.mark.parametrize("name", ["wait", "wait_for_task", "prepare_batch"])
def test_who_waits_for_what_may_not_start_is_told_at_once_and_gives_up_after_a_while(
    make_executor: MakeExecutor, log_lines: LogLines, name: str
) -> None:
    engine = Engine(3)
    executor = make_executor(engine, consumer_batch_size=2, max_head_offpolicyness=1, stall_timeout=0.05)
    consume(executor, 4)
    if name != "prepare_batch":
        executor.submit(1, answering, task_id=5)
    calls: dict[str, Callable[[], object]] = {
        "wait": lambda: executor.wait(1),
        "wait_for_task": lambda: executor.wait_for_task(5),
        "prepare_batch": lambda: executor.prepare_batch(Lists(1), answering),
    }
    with pytest.raises(AdmissionStalledError, match="nothing more may start at version 3") as raised:
        calls[name]()
    error = raised.value
    assert (error.limit, error.version, error.waiting, error.consumed) == (4, 3, 0, 4)
    assert [line for line in log_lines.of("warning") if line.startswith("admission_stalled")]
    assert executor.ledger.pending >= 1
    engine.version = 4
    executor.on_version_changed()
    assert calls[name]()


def test_it_is_logged_before_anybody_gives_up_and_a_version_in_time_is_enough(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    engine = TellingEngine()
    executor = make_executor(engine, consumer_batch_size=1)
    consume(executor, 1)
    executor.submit(2, answering)
    waiting = start_blocked(executor.wait, 1)
    log_lines.wait_for("admission_stalled")
    assert not waiting.is_done()
    engine.set_version(1)
    assert values_of(waiting.result()) == [2]
    assert len([line for line in log_lines.of("warning") if "admission_stalled" in line]) == 1


def test_it_is_logged_once_however_often_somebody_looks(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor = make_executor(consumer_batch_size=1)
    consume(executor, 1)
    executor.submit(2, answering)
    for _ in range(5):
        assert executor.wait(1, timeout=0, raise_timeout=False) == []
    assert len([line for line in log_lines.of("warning") if "admission_stalled" in line]) == 1


def test_a_rollout_given_back_is_enough_too(make_executor: MakeExecutor, log_lines: LogLines) -> None:
    executor = make_executor(consumer_batch_size=2)
    consume(executor, 2)
    executor.submit(3, answering)
    waiting = start_blocked(executor.wait, 1)
    log_lines.wait_for("admission_stalled")
    with pytest.raises(ValueError, match=r"give_back\(3\): only 2 trajectories were delivered"):
        executor.give_back(3)
    executor.give_back(1)
    assert values_of(waiting.result()) == [3]
    assert executor.get_capacity() == 0
    executor.give_back(2)
    assert executor.get_capacity() == 2


def test_nobody_gives_up_while_something_runs_or_all_is_paused_or_evaluation_is_waited_for(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor, door = make_executor(consumer_batch_size=1, stall_timeout=0.01), Door()
    executor.submit(trajectory_of(1), Playing(door.walk_through))
    executor.submit(2, answering)
    door.wait_for()
    waiting = start_blocked(executor.wait, 2)
    in_eval = start_blocked(executor.wait_outcomes, 1, None, is_eval=True)
    with pytest.raises(TimeoutError):  # as long as that takes, in which it would have been given up
        in_thread(executor.wait, 2, 0.05)
    executor.pause()
    door.open()
    with pytest.raises(TimeoutError):
        executor.wait(2, 0.05)
    assert log_lines.of("warning") == []
    executor.resume()
    assert isinstance(waiting.error(), AdmissionStalledError)
    executor.submit(3, answering, is_eval=True)
    assert len(in_eval.result()) == 1
    assert counts(executor.ledger) == {"submitted": 2, "pending": 1, "finished": 1, "accepted": 1}


def test_who_does_not_wait_for_more_gets_what_there_is(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=2, stall_timeout=0.01)
    for number in range(3):
        executor.submit(number, answering)
    with pytest.raises(AdmissionStalledError):
        executor.wait(3)
    assert values_of(executor.wait(2, WAIT_S)) == [0, 1]
    assert values_of(executor.rollout_batch([7], answering)) == [7]  # rows need slots only
