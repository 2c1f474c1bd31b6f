"""A loop driven to the end of one coroutine, whatever its tasks do."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from areal_core._drive import ctrl_c_held, drive
from cleanup_callbacks import nothing_interrupts

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture
def loop(loop_factory: LoopFactory) -> Iterator[asyncio.AbstractEventLoop]:
    loop = loop_factory()
    yield loop
    loop.close()


async def _turns(count: int) -> int:
    for _ in range(count):
        await asyncio.sleep(0)
    return count


async def _interrupt(error: BaseException) -> None:
    raise error


def test_it_returns_the_value(loop: asyncio.AbstractEventLoop) -> None:
    assert drive(loop, _turns(3)) == 3
    assert not loop.is_running()
    assert drive(loop, _turns(2)) == 2


def test_it_raises_what_the_coroutine_raises(loop: asyncio.AbstractEventLoop) -> None:
    error = ValueError("from the coroutine")
    with pytest.raises(ValueError, match="from the coroutine") as caught:
        drive(loop, _interrupt(error))
    assert caught.value is error


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_task_is_handed_over_and_the_loop_runs_on(
    loop: asyncio.AbstractEventLoop, interrupt: type[BaseException]
) -> None:
    errors = [interrupt("first"), interrupt("second")]
    contained: list[BaseException] = []

    async def main() -> str:
        for error in errors:
            task = loop.create_task(_interrupt(error))
            await asyncio.wait([task])
            assert task.exception() is error
        return "done"

    with nothing_interrupts():
        assert drive(loop, main(), on_contained=contained.append) == "done"
    assert contained == errors


def test_an_interrupt_in_a_task_is_dropped_when_nobody_asks(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> str:
        await asyncio.wait([loop.create_task(_interrupt(SystemExit(3)))])
        return "done"

    assert drive(loop, main()) == "done"


def test_an_interrupt_of_the_coroutine_is_raised(loop: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(SystemExit):
        drive(loop, _interrupt(SystemExit(3)))


def test_a_fault_of_the_loop_itself_is_raised(loop_factory: LoopFactory) -> None:
    loop = _broken(loop_factory)
    told: list[object] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    with pytest.raises(OSError, match="no epoll"):
        drive(loop, _turns(5))
    loop.close()
    del loop
    gc.collect()
    assert told == []  # of a task that was destroyed, for example


def test_nothing_is_said_of_the_coroutine_when_a_loop_that_failed_runs_again(
    loop_factory: LoopFactory,
) -> None:
    loop = _broken(loop_factory)
    told: list[object] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    with pytest.raises(OSError, match="no epoll"):
        drive(loop, _turns(5))
    for _ in range(3):
        with pytest.raises(OSError, match="no epoll"):
            loop.run_forever()
    loop.close()
    del loop
    gc.collect()
    assert told == []  # of an exception that nobody asked for


def _broken(loop_factory: LoopFactory) -> asyncio.AbstractEventLoop:
    """Return a loop that runs for one turn and fails then."""
    loop = loop_factory()
    run_forever = loop.run_forever

    def fail() -> None:
        loop.stop()
        run_forever()
        raise OSError("no epoll")

    loop.run_forever = fail  # type: ignore[method-assign]
    return loop


def test_stop_in_a_task_does_not_end_it(loop: asyncio.AbstractEventLoop) -> None:
    stops = 0

    async def stop() -> None:
        nonlocal stops
        for _ in range(5):
            loop.stop()
            stops += 1
            await asyncio.sleep(0)

    async def main() -> str:
        await loop.create_task(stop())
        return "done"

    loop.stop()
    assert drive(loop, main()) == "done"
    assert stops == 5


def test_no_task_can_cancel_the_coroutine_or_wait_for_it(loop: asyncio.AbstractEventLoop) -> None:
    async def cancel_all_others() -> str:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=1.0)
        return f"{len(others)} others"

    async def main() -> str:
        return await loop.create_task(cancel_all_others())

    assert drive(loop, main()) == "0 others"


def test_the_loops_task_factory_is_not_asked(loop: asyncio.AbstractEventLoop) -> None:
    def factory(*_args: Any, **_kwargs: Any) -> Any:
        raise AssertionError("asked")

    loop.set_task_factory(factory)
    assert drive(loop, _turns(1)) == 1


@pytest.mark.parametrize("inner", ["asyncio", "uvloop"])
def test_it_works_while_another_loop_runs_in_this_thread(
    loop: asyncio.AbstractEventLoop, loop_factory: LoopFactory, inner: str
) -> None:
    if inner != type(loop).__module__.partition(".")[0]:
        loop_factory = pytest.importorskip(inner).new_event_loop
    inside = loop_factory()

    async def inner_main() -> threading.Thread:
        assert asyncio.get_running_loop() is inside
        assert asyncio.current_task(loop) is None
        await asyncio.sleep(0.001)
        return threading.current_thread()

    async def outer_main() -> None:
        task = asyncio.current_task()
        assert drive(inside, inner_main()) is threading.current_thread()
        with pytest.raises(ValueError, match="inside"):
            drive(inside, _interrupt(ValueError("inside")))
        assert asyncio.get_running_loop() is loop
        assert asyncio.current_task() is task
        assert await loop.create_task(_turns(2)) == 2

    try:
        loop.run_until_complete(outer_main())
    finally:
        inside.close()


def test_it_works_in_a_callback_of_another_loop(
    loop: asyncio.AbstractEventLoop, loop_factory: LoopFactory
) -> None:
    inside = loop_factory()
    values: list[int] = []

    def callback() -> None:  # where a loop runs, but no task
        values.append(drive(inside, _turns(2)))
        loop.stop()

    loop.call_soon(callback)
    loop.run_forever()
    inside.close()
    assert values == [2]
    assert loop.run_until_complete(_turns(1)) == 1  # no task, and not None either, is being executed


def test_a_running_loop_is_refused(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=r" cannot be driven; pass one that is stopped and open$"):
            drive(loop, _turns(1))
        await asyncio.sleep(0)  # it runs on, and so it does when another thread tries
        await asyncio.to_thread(refused)
        await asyncio.sleep(0)

    def refused() -> None:
        with pytest.raises(RuntimeError, match=r"running=True.* cannot be driven; pass"):
            drive(loop, _turns(1))

    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_default_executor())


def test_a_closed_loop_is_refused(loop: asyncio.AbstractEventLoop) -> None:
    loop.close()
    with pytest.raises(RuntimeError, match=r"closed=True.* cannot be driven"):
        drive(loop, _turns(1))


@pytest.mark.any_loop
def test_the_first_ctrl_c_is_held_and_the_second_raised(loop_name: str) -> None:
    held: list[BaseException] = []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with nothing_interrupts(), ctrl_c_held(held.append):
        signal.raise_signal(signal.SIGINT)
        assert [type(exc) for exc in held] == [KeyboardInterrupt]
        with pytest.raises(KeyboardInterrupt) as raised:
            signal.raise_signal(signal.SIGINT)
    assert len(held) == 1
    assert raised.value is not held[0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.any_loop
def test_ctrl_c_is_raised_again_after_it_was_held(loop_name: str) -> None:
    with ctrl_c_held(lambda _: None):
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.any_loop
def test_a_handler_of_the_program_is_left_alone(loop_name: str) -> None:
    seen: list[int] = []
    mine = signal.signal(signal.SIGINT, lambda signum, _: seen.append(signum))
    try:
        with nothing_interrupts(), ctrl_c_held(lambda _: pytest.fail("held")):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, mine)
    assert seen == [signal.SIGINT]


@pytest.mark.any_loop
def test_ctrl_c_is_none_of_another_threads_business(loop_name: str) -> None:
    """Only the main thread may set handlers; elsewhere nothing is held and nothing raises."""
    handlers: list[object] = []

    def hold() -> None:
        with ctrl_c_held(lambda _: None):
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
