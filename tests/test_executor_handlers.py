"""Signal handlers, and finalizers, that call the executor in the middle of their own thread's call of it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable

import pytest

from areal_core._executor.ids import Ids
from areal_core._executor.requests import Request, Want
from areal_core._executor.rollout import Lane, Plan, Rollout
from areal_core._runner.job import Job
from areal_core._runner.ledger import Ledger
from areal_core.workflow_executor import WorkflowExecutor
from children import RunScript
from conftest import MakeExecutor
from doors import Door, in_thread, start_blocked
from executor_tools import WAIT_S, Engine, Playing, answering, balance, values_of
from interrupts import Interruption, collect, each_step, intervene
from test_executor_process import PRELUDE

Meanwhile = Callable[[Callable[[], object], int, Callable[[], None]], Interruption]


def look(executor: WorkflowExecutor) -> None:
    balance(executor.ledger)
    assert executor.get_capacity() >= 0
    executor.is_paused()


def steer(executor: WorkflowExecutor) -> None:
    executor.cancel(2)
    executor.resume()
    executor.on_version_changed()
    assert executor.report().delivered >= 0


def give(executor: WorkflowExecutor) -> None:
    executor.submit(1, answering)
    assert values_of(executor.wait(1, WAIT_S)) == [1]


def ask(executor: WorkflowExecutor) -> None:
    with pytest.raises(TimeoutError):
        executor.wait(1, timeout=0)


@pytest.mark.any_loop
@pytest.mark.parametrize("meanwhile", [intervene, collect], ids=["a_handler", "a_finalizer"])
@pytest.mark.parametrize("call", [look, steer, give, ask])
def test_it_may_call_the_executor_at_any_step_of_a_call(
    meanwhile: Meanwhile, call: Callable[[WorkflowExecutor], None], make_executor: MakeExecutor
) -> None:
    executor = make_executor(Engine(), consumer_batch_size=10**6)
    done: list[int] = []

    def handle() -> None:
        task_id = executor.submit(3, answering, task_id=7, is_eval=True)
        executor.pause()
        assert executor.is_paused()
        executor.resume()
        executor.cancel(3)
        balance(executor.ledger)
        assert values_of([executor.wait_for_task(task_id, WAIT_S)]) == [3]
        done.append(task_id)

    for step in each_step():
        outcome = meanwhile(lambda: call(executor), step, handle)
        assert len(done) == outcome.noticed, f"at {outcome.where}"
        if not outcome.tripped:
            break
        done.clear()
    assert step > 20, "this was to be in the middle of something"


@pytest.mark.any_loop
@pytest.mark.parametrize("meanwhile", [intervene, collect], ids=["a_handler", "a_finalizer"])
def test_it_may_wait_for_a_rollout_at_any_step_of_a_look_at_the_manager(
    meanwhile: Meanwhile, make_executor: MakeExecutor
) -> None:
    executor = make_executor(Engine(), consumer_batch_size=10**6)

    def handle() -> None:
        assert values_of([executor.wait_for_task(executor.submit(1, answering), WAIT_S)]) == [1]

    noticed = 0
    for step in each_step():
        outcome = meanwhile(executor.staleness_manager.get_stats, step, handle)
        noticed += outcome.noticed
        if not outcome.tripped:
            break
    assert executor.staleness_manager.get_stats().accepted == noticed


class PreemptedError(RuntimeError):
    """What a signal handler raises."""


@pytest.mark.any_loop
@pytest.mark.parametrize("error", [PreemptedError, KeyboardInterrupt])
def test_what_a_handler_raises_at_any_step_of_submit_comes_through_and_keeps_nobody_waiting(
    error: type[BaseException], make_executor: MakeExecutor
) -> None:
    """Least of all who has submitted meanwhile, and saw that somebody had just woken the loop."""
    executor = make_executor(Engine(), consumer_batch_size=10**6)

    def handle() -> None:
        in_thread(executor.submit, 1, answering)
        raise error

    def submit() -> None:
        with contextlib.suppress(error):
            executor.submit(2, answering, is_eval=True)
            came_through.append(False)

    for step in each_step():
        waiting, came_through = start_blocked(executor.wait, 1), list[bool]()
        outcome = intervene(submit, step, handle)
        if not outcome.noticed:
            executor.submit(1, answering)
        try:
            assert values_of(waiting.result()) == [1]
            assert came_through == [False] * (not outcome.noticed)
        except BaseException as failure:
            failure.add_note(f"at {outcome.where}")
            raise
        if not outcome.tripped:
            break
    assert step > 20, "this was to be in the middle of something"


def test_a_storm_of_handlers_that_steer_does_not_stop_a_program_that_looks(run_script: RunScript) -> None:
    """Handlers come where the program is, whatever it does: here as often as they can."""
    done = run_script(
        PRELUDE
        + """
    executor = started(park)
    handled = 0
    def on_signal(*_):
        global handled
        handled += 1
        executor.pause()
        executor.resume()
        if handled < 2000:
            signal.setitimer(signal.ITIMER_REAL, 0.0002)
    signal.signal(signal.SIGALRM, on_signal)
    signal.setitimer(signal.ITIMER_REAL, 0.0002)
    while handled < 2000:
        ledger = executor.ledger
        assert ledger.submitted == ledger.running == 1, ledger
        executor.get_capacity()
        executor.is_paused()
    executor.destroy()
    """
    )
    assert (done.stderr, done.stdout, done.returncode) == ("", "", 0)


def test_a_handler_that_destroys_it_is_soon_done_wherever_it_comes(run_script: RunScript) -> None:
    done = run_script(
        PRELUDE
        + """
    class Looked(Exception):
        pass

    executor = started(park)

    def leave(signum, frame):
        executor.destroy()
        raise Looked

    signal.signal(signal.SIGTERM, leave)

    def look(core):
        signal.raise_signal(signal.SIGTERM)
        return core

    began = time.monotonic()
    try:
        executor._shift.desk.read(look)
    except Looked:
        print("destroyed", time.monotonic() - began < 10)
    """
    )
    assert (done.stderr, done.stdout, done.returncode) == ("", "destroyed True\n", 0)


@pytest.mark.any_loop
def test_the_executor_is_seen_as_it_is_between_two_events_though_nobody_holds_a_lock(
    make_executor: MakeExecutor,
) -> None:
    """What changes while it is looked at is looked at again."""
    executor, door = make_executor(Engine(), consumer_batch_size=8, max_head_offpolicyness=1), Door()
    assert executor._shift is not None
    desk, seen = executor._shift.desk, list[int]()

    def look(core: object) -> tuple[int, int]:
        before = executor._shift.desk.core.scheduler.running  # type: ignore[union-attr]
        running = len(before)
        if not seen:  # somebody else has it changed, in the middle
            seen.append(executor.submit(1, Playing(lambda _: door.walk_through())))
            door.wait_for()
        return running, len(before)

    assert desk.read(look) == (1, 1)
    door.open()


def a_rollout(task_id: int) -> Rollout:
    return Plan(answering, None, 1, False, False).rollout(task_id, None, Lane.OPEN)


def test_an_id_is_taken_and_handed_out_though_another_thread_stands_still_at_any_step_of_it() -> None:
    """As the main thread does in a handler that waits for the loop's, which may be about to take one, too."""
    for step in each_step():
        ids, gone, request = Ids(lambda rollout: False), a_rollout(1), Request(Want.ENDED, 1)
        ids.take(gone)
        gone.is_abandoned = True
        ids.take(again := a_rollout(1))
        request.rollouts = [again]
        taken: list[int] = []

        def take_all(ids: Ids = ids, request: Request = request) -> None:
            ids.hand_out(request)
            request.receipt.is_delivered = True
            ids.take(a_rollout(1))

        def handle(ids: Ids = ids, taken: list[int] = taken) -> None:
            for task_id in (1, 2):
                with contextlib.suppress(ValueError):
                    in_thread(ids.take, a_rollout(task_id))
                    taken.append(task_id)

        try:
            outcome = intervene(take_all, step, handle)
        except ValueError:  # the other was first
            assert taken == [1, 2]
            outcome = Interruption(1, 1)
        assert not outcome.noticed or 2 in taken, f"at {outcome.where}"
        with pytest.raises(ValueError, match="task_id=1 is in use"):
            ids.take(a_rollout(1))
        if not outcome.tripped:
            break
    assert step > 10, "this was to be in the middle of something"


def test_who_asks_whether_an_id_is_free_keeps_no_other_from_his() -> None:
    asked: list[Rollout] = []

    def is_submitted(rollout: Rollout) -> bool:
        asked.append(rollout)
        in_thread(ids.take, a_rollout(2))  # it would wait for a lock
        return False

    ids, gone = Ids(is_submitted), a_rollout(1)
    ids.take(gone)
    gone.is_abandoned = True
    ids.take(a_rollout(1))
    assert asked == [gone]


def test_what_is_submitted_at_any_step_while_unstarted_tasks_are_put_back_is_not_lost() -> None:
    """By a finalizer, that is: they are put back on the loop thread."""
    for step in each_step():
        ledger = Ledger(10, lambda: None, lambda: None)
        for task_id in (1, 2):
            ledger.accept(a_job(task_id))
        begun = ledger.take_pending()
        ledger.accept(a_job(3))
        outcome = intervene(lambda: ledger.put_back(begun), step, lambda: ledger.accept(a_job(4)))  # noqa: B023
        there = [job.task_id for job in ledger.take_pending()]
        assert there == [1, 2, 3, *([4] if outcome.noticed else [])], f"at {outcome.where}"
        if not outcome.tripped:
            break
    assert step > 10, "this was to be in the middle of something"


def a_job(task_id: int) -> Job:
    return Job(task_id, contextlib.nullcontext, (), {}, contextvars.copy_context(), None)
