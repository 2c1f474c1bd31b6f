"""Callbacks that run when a loop is closed, whoever closes it and however they behave."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import logging
import math
import threading
import time
import warnings
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any, NoReturn

import pytest

from areal_core import _callback, loop_cleanup
from areal_core.loop_cleanup import register_loop_cleanup, run_loop_cleanup, unregister_loop_cleanup
from logged import LogLines

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Loop = asyncio.AbstractEventLoop


@pytest.fixture
def loop(loop_factory: LoopFactory) -> Iterator[Loop]:
    loop = loop_factory()
    yield loop
    loop.close()


def _name(function: Callable[..., object]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


class Recorder:
    """Makes callbacks that note their names, and is equal to every other recorder."""

    def __init__(self) -> None:
        self.ran: list[object] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recorder)

    def __hash__(self) -> int:
        return 0

    def sync(self) -> None:
        self.ran.append("sync")

    async def turns(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        self.ran.append("async")

    def note(self, value: object) -> Callable[[], object]:
        return lambda: self.ran.append(value)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


# --- when they run --------------------------------------------------------------------------------


def test_callbacks_run_newest_first_sync_and_async_alike(
    loop: Loop, recorder: Recorder, log_lines: LogLines
) -> None:
    for callback in (recorder.note(1), recorder.turns, recorder.note(2), recorder.sync):
        register_loop_cleanup(callback, loop=loop)
    assert recorder.ran == []
    loop.close()
    assert recorder.ran == ["sync", 2, "async", 1]
    assert loop.is_closed()
    assert log_lines == []


def test_a_second_close_does_nothing(loop: Loop, recorder: Recorder) -> None:
    register_loop_cleanup(recorder.sync, loop=loop)
    for _ in range(3):
        loop.close()
    assert recorder.ran == ["sync"]


def test_the_running_loop_is_the_one_that_is_meant(loop: Loop, recorder: Recorder) -> None:
    async def main() -> None:
        register_loop_cleanup(recorder.sync)
        register_loop_cleanup(recorder.turns)
        assert unregister_loop_cleanup(recorder.sync)

    loop.run_until_complete(main())
    loop.close()
    assert recorder.ran == ["async"]


def test_callbacks_run_in_the_closing_thread_with_the_loop_running(loop: Loop) -> None:
    seen: list[object] = []
    register_loop_cleanup(
        lambda: seen.extend([asyncio.get_running_loop(), threading.current_thread()]), loop=loop
    )
    thread = threading.Thread(target=loop.close)
    thread.start()
    thread.join()
    assert seen == [loop, thread]
    assert loop.is_closed()


class _Later:
    """Awaitable, and neither coroutine nor future."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __await__(self) -> Generator[Any, None, None]:
        return self._recorder.turns().__await__()


@pytest.mark.parametrize(
    "make",
    [
        lambda recorder: functools.partial(Recorder.turns, recorder),
        lambda recorder: lambda: recorder.turns(),  # noqa: PLW0108 (its result is the coroutine)
        lambda recorder: lambda: _Later(recorder),
        lambda recorder: lambda: asyncio.ensure_future(recorder.turns()),
        lambda recorder: lambda: asyncio.gather(recorder.turns()),
    ],
    ids=["partial", "lambda", "awaitable", "task", "future"],
)
def test_whatever_returns_an_awaitable_is_awaited(
    loop: Loop, recorder: Recorder, make: Callable[[Recorder], Callable[[], Awaitable[object]]]
) -> None:
    register_loop_cleanup(recorder.note("sync"), loop=loop)
    register_loop_cleanup(make(recorder), loop=loop)
    loop.close()
    assert recorder.ran == ["async", "sync"]


def test_closing_a_running_loop_fails_and_consumes_nothing(loop: Loop, recorder: Recorder) -> None:
    async def main() -> None:
        register_loop_cleanup(recorder.turns)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"^Cannot close a running event loop$"):
                loop.close()
        with pytest.raises(RuntimeError, match="running"):
            await asyncio.to_thread(loop.close)
        register_loop_cleanup(recorder.sync)
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_default_executor())
    assert recorder.ran == []
    loop.close()
    assert recorder.ran == ["sync", "async"]


# --- taking them back -----------------------------------------------------------------------------


def test_a_token_takes_back_its_own_registration(loop: Loop, recorder: Recorder) -> None:
    callback = recorder.note("same")
    old = register_loop_cleanup(callback, loop=loop)
    register_loop_cleanup(recorder.sync, loop=loop)
    register_loop_cleanup(callback, loop=loop)
    assert unregister_loop_cleanup(old, loop=loop) is True
    assert unregister_loop_cleanup(old, loop=loop) is False
    loop.close()
    assert recorder.ran == ["same", "sync"]


def test_a_token_knows_its_loop(loop: Loop, loop_factory: LoopFactory, recorder: Recorder) -> None:
    token = register_loop_cleanup(recorder.sync, loop=loop)
    other = loop_factory()
    assert unregister_loop_cleanup(token, loop=other) is False
    register_loop_cleanup(recorder.note("other"), loop=other)
    assert unregister_loop_cleanup(token, loop=other) is False

    async def elsewhere() -> bool:
        return unregister_loop_cleanup(token)

    assert other.run_until_complete(elsewhere()) is True
    assert unregister_loop_cleanup(token) is False
    other.close()
    loop.close()
    assert recorder.ran == ["other"]


def test_a_token_of_a_loop_that_is_gone_takes_nothing_back(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    token = register_loop_cleanup(print, loop=loop)
    loop.close()
    assert unregister_loop_cleanup(token) is False
    del loop
    gc.collect()
    assert unregister_loop_cleanup(token) is False


def test_of_one_callback_registered_twice_the_newest_goes_first(loop: Loop, recorder: Recorder) -> None:
    callback = recorder.note("twice")
    for value in (callback, recorder.note("between"), callback):
        register_loop_cleanup(value, loop=loop)
    assert unregister_loop_cleanup(callback, loop=loop) is True
    loop.close()
    assert recorder.ran == ["between", "twice"]
    assert unregister_loop_cleanup(callback, loop=loop) is False


def test_a_bound_method_is_known_by_its_object_and_its_function(loop: Loop, recorder: Recorder) -> None:
    equal = Recorder()
    assert equal == recorder
    register_loop_cleanup(recorder.sync, loop=loop)
    assert unregister_loop_cleanup(equal.sync, loop=loop) is False
    assert unregister_loop_cleanup(recorder.turns, loop=loop) is False
    assert unregister_loop_cleanup(Recorder.sync, loop=loop) is False
    assert unregister_loop_cleanup(recorder, loop=loop) is False
    assert unregister_loop_cleanup(recorder.sync, loop=loop) is True
    loop.close()
    assert recorder.ran == []


def test_an_equal_callable_object_is_another(loop: Loop) -> None:
    class Equal(Recorder):
        def __call__(self) -> None:
            self.ran.append("called")

    one, other = Equal(), Equal()
    register_loop_cleanup(one, loop=loop)
    assert unregister_loop_cleanup(other, loop=loop) is False
    assert unregister_loop_cleanup(one, loop=loop) is True


def test_a_compiled_method_is_known_by_its_object_and_its_name(loop: Loop) -> None:
    one: list[int] = [1]
    other: list[int] = [1]
    register_loop_cleanup(one.clear, loop=loop)
    assert one.clear is not one.clear
    assert unregister_loop_cleanup(other.clear, loop=loop) is False
    assert unregister_loop_cleanup(one.reverse, loop=loop) is False
    assert unregister_loop_cleanup(one.clear, loop=loop) is True
    register_loop_cleanup(one.__str__, loop=loop)
    assert unregister_loop_cleanup(other.__str__, loop=loop) is False
    assert unregister_loop_cleanup(one.__repr__, loop=loop) is False
    assert unregister_loop_cleanup(one.__str__, loop=loop) is True
    loop.close()
    assert one == [1]


def test_what_was_never_registered_is_not_taken_back(loop: Loop, recorder: Recorder) -> None:
    assert unregister_loop_cleanup(recorder.sync, loop=loop) is False
    register_loop_cleanup(recorder.sync, loop=loop)
    assert unregister_loop_cleanup(object(), loop=loop) is False
    loop.close()
    assert recorder.ran == ["sync"]


def test_a_callback_that_has_begun_is_not_taken_back(loop: Loop, recorder: Recorder) -> None:
    def callback() -> None:
        recorder.ran.append(unregister_loop_cleanup(callback))
        recorder.ran.append(unregister_loop_cleanup(token))
        recorder.ran.append(unregister_loop_cleanup(waiting))

    waiting = register_loop_cleanup(recorder.sync, loop=loop)
    token = register_loop_cleanup(callback, loop=loop)
    loop.close()
    assert recorder.ran == [False, False, True]


# --- what is refused ------------------------------------------------------------------------------


def test_a_closed_loop_takes_no_registration_and_can_be_closed_again(loop: Loop, recorder: Recorder) -> None:
    loop.close()
    with pytest.raises(RuntimeError, match=r"^the loop is closed, or past its cleanup; register before$"):
        register_loop_cleanup(recorder.sync, loop=loop)
    loop.close()
    assert recorder.ran == []


def test_a_loop_closed_after_its_cleanup_takes_no_registration(loop: Loop, recorder: Recorder) -> None:
    register_loop_cleanup(recorder.sync, loop=loop)
    loop.close()
    with pytest.raises(RuntimeError, match=r"^the loop is closed, or past its cleanup; register before$"):
        register_loop_cleanup(recorder.sync, loop=loop)
    loop.close()
    assert recorder.ran == ["sync"]


@pytest.mark.any_loop
def test_without_a_loop_there_must_be_one_running(loop_name: str) -> None:
    told = r"^no event loop runs in this thread; call this in a coroutine or pass loop=$"
    with pytest.raises(RuntimeError, match=told):
        register_loop_cleanup(print)
    with pytest.raises(RuntimeError, match=told):
        unregister_loop_cleanup(print)


def test_what_cannot_be_called_is_refused(loop: Loop, recorder: Recorder) -> None:
    told = r"^callback is a {}, which cannot be called; pass a function$"
    with pytest.raises(TypeError, match=told.format("NoneType")):
        register_loop_cleanup(None, loop=loop)  # type: ignore[arg-type]
    coroutine = recorder.turns()
    with pytest.raises(TypeError, match=told.format("coroutine")):
        register_loop_cleanup(coroutine, loop=loop)  # type: ignore[arg-type]
    coroutine.close()


@pytest.mark.parametrize("timeout", [None, True, False, "5", 1j])
def test_a_timeout_is_a_number(loop: Loop, timeout: Any) -> None:
    with pytest.raises(TypeError, match=r"^timeout=.* is not a number; pass seconds$") as caught:
        register_loop_cleanup(print, loop=loop, timeout=timeout)
    assert repr(timeout) in str(caught.value)


@pytest.mark.parametrize("timeout", [0, 0.0, -1, -0.5, math.nan, -math.inf])
def test_a_timeout_is_positive(loop: Loop, timeout: float) -> None:
    with pytest.raises(ValueError, match=r"^timeout=.* is not positive; pass seconds$") as caught:
        register_loop_cleanup(print, loop=loop, timeout=timeout)
    assert repr(timeout) in str(caught.value)


@pytest.mark.parametrize("timeout", [1, 1e-9, 1e300, math.inf])
def test_any_positive_timeout_will_do(
    loop: Loop, recorder: Recorder, log_lines: LogLines, timeout: float
) -> None:
    register_loop_cleanup(recorder.turns, loop=loop, timeout=max(timeout, 1.0))
    register_loop_cleanup(recorder.sync, loop=loop, timeout=timeout)
    loop.close()
    assert recorder.ran == ["sync", "async"]
    assert all("sync" in line.message for line in log_lines)  # 1 ns is soon over


@pytest.mark.any_loop
def test_the_limits_are_those_of_the_contract(loop_name: str) -> None:
    register = inspect.signature(register_loop_cleanup).parameters
    assert {name: parameter.default for name, parameter in register.items()} == {
        "callback": inspect.Parameter.empty,
        "loop": None,
        "timeout": 5.0,
    }
    assert inspect.signature(run_loop_cleanup).parameters["budget_s"].default == 10.0
    assert loop_cleanup._BUDGET_S == 10.0
    assert loop_cleanup.__all__ == ["register_loop_cleanup", "unregister_loop_cleanup"]


# --- callbacks that misbehave ---------------------------------------------------------------------


class OwnBaseError(BaseException):
    pass


ERRORS = [ValueError, asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit, OwnBaseError]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("kind", ["sync", "async", "async after a turn", "in a child task"])
def test_what_a_callback_raises_keeps_nobody_from_running(
    loop: Loop, recorder: Recorder, log_lines: LogLines, error: type[BaseException], kind: str
) -> None:
    def sync() -> NoReturn:
        raise error("from the callback")

    async def coroutine() -> NoReturn:
        if kind != "async":
            await asyncio.sleep(0)
        raise error("from the callback")

    async def parent() -> None:
        await loop.create_task(coroutine())

    callback: Callable[[], object] = {"sync": sync, "in a child task": parent}.get(kind, coroutine)
    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(callback, loop=loop)
    register_loop_cleanup(recorder.sync, loop=loop)
    interrupt = error if error in (KeyboardInterrupt, SystemExit) else None
    with pytest.raises(interrupt, match="from the callback") if interrupt else contextlib.nullcontext():
        loop.close()
    assert loop.is_closed()
    loop.close()
    assert recorder.ran == ["sync", "async"]
    [line] = log_lines
    assert line.level == "error"
    assert line.message == f"loop_cleanup_failed callback={_name(callback)}"
    assert isinstance(line.error, error)


def test_the_first_interrupt_is_the_one_that_is_raised_again(loop: Loop) -> None:
    def interrupt(error: BaseException) -> NoReturn:
        raise error

    errors = [SystemExit(3), ValueError("no interrupt"), KeyboardInterrupt("newest"), ValueError("newer")]
    for error in errors:
        register_loop_cleanup(functools.partial(interrupt, error), loop=loop)
    with pytest.raises(KeyboardInterrupt, match="newest"):
        loop.close()


def test_an_interrupt_in_some_other_task_is_raised_after_the_close(loop: Loop, recorder: Recorder) -> None:
    async def leave() -> NoReturn:
        raise SystemExit(3)

    async def callback() -> None:
        task = loop.create_task(leave())
        await asyncio.wait([task])
        recorder.ran.append(type(task.exception()))

    register_loop_cleanup(recorder.sync, loop=loop)
    register_loop_cleanup(callback, loop=loop)
    with pytest.raises(SystemExit):
        loop.close()
    assert loop.is_closed()
    assert recorder.ran == [SystemExit, "sync"]


def test_a_callback_may_cancel_all_tasks_and_wait_for_them(
    loop: Loop, recorder: Recorder, log_lines: LogLines
) -> None:
    async def cancel_all() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        recorder.ran.append(len(others))

    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(cancel_all, loop=loop)
    waiting = loop.create_task(asyncio.sleep(3600))
    loop.close()
    assert waiting.cancelled()
    assert recorder.ran == [1, "async"]
    assert log_lines == []


def test_a_callback_may_stop_the_loop(loop: Loop, recorder: Recorder, log_lines: LogLines) -> None:
    async def stop() -> None:
        loop.stop()
        await asyncio.sleep(0)
        loop.stop()
        recorder.ran.append("stopped")

    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(loop.stop, loop=loop)
    register_loop_cleanup(stop, loop=loop)
    loop.close()
    assert recorder.ran == ["stopped", "async"]
    assert log_lines == []


def test_a_callback_that_cancels_the_task_it_runs_in_harms_nobody(loop: Loop, recorder: Recorder) -> None:
    def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(cancel, loop=loop)
    loop.close()
    assert recorder.ran == ["async"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_callback_that_closes_the_loop_itself_does_nothing_by_that(
    loop: Loop, recorder: Recorder, log_lines: LogLines, kind: str
) -> None:
    async def close() -> None:
        loop.close()

    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(close if kind == "async" else loop.close, loop=loop)
    loop.close()
    assert recorder.ran == ["async"]
    assert loop.is_closed()
    assert log_lines == []


def test_a_callback_that_goes_behind_our_back_is_no_obstacle(
    loop: Loop, recorder: Recorder, log_lines: LogLines
) -> None:
    """Whoever closes the loop by its class leaves the callbacks without one: each is told in the log."""
    register_loop_cleanup(recorder.sync, loop=loop)
    register_loop_cleanup(recorder.turns, loop=loop)
    type(loop).close(loop)
    with pytest.raises(RuntimeError, match="the loop is closed"):
        register_loop_cleanup(recorder.note("late"), loop=loop)
    loop.close()
    assert recorder.ran == []
    assert [line.message for line in log_lines] == [
        f"loop_cleanup_failed callback={_name(callback)}" for callback in (Recorder.turns, Recorder.sync)
    ]
    assert all("cannot be driven" in str(line.error) for line in log_lines)


def test_a_log_filter_that_raises_is_no_obstacle(loop: Loop, recorder: Recorder) -> None:
    def refuse(_record: logging.LogRecord) -> NoReturn:
        raise ValueError("from the filter")

    def fail() -> NoReturn:
        raise ValueError("from the callback")

    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(fail, loop=loop)
    logger = logging.getLogger("areal_core")
    logger.addFilter(refuse)
    try:
        loop.close()
    finally:
        logger.removeFilter(refuse)
    assert recorder.ran == ["async"]
    assert loop.is_closed()


@pytest.mark.parametrize(
    ("callback", "name"),
    [
        (functools.partial(int, "payload"), "builtins.int"),
        (functools.partial(functools.partial(int, "payload"), 10), "builtins.int"),
        ([].pop, "list.pop"),
        ("payload".__contains__, "str.__contains__"),
        (_Later, f"{__name__}._Later"),
    ],
)
def test_a_callback_is_named_without_its_arguments(
    loop: Loop, log_lines: LogLines, callback: Callable[..., object], name: str
) -> None:
    register_loop_cleanup(callback, loop=loop)
    loop.close()
    assert [line.message for line in log_lines] == [f"loop_cleanup_failed callback={name}"]


# --- callbacks that take too long -----------------------------------------------------------------


class Stubborn:
    """Swallows every cancellation until it is released."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.cancellations = 0

    async def refuse(self) -> None:
        while not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                self.cancellations += 1


@pytest.fixture
def complaints(loop: Loop) -> list[dict[str, Any]]:
    """Collect what *loop* tells its exception handler."""
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    return told


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon what refuses its cancellation."""
    monkeypatch.setattr(_callback, "_CANCEL_GRACE_S", 0.1)


def test_a_callback_that_hangs_is_cancelled_at_its_limit(
    loop: Loop, recorder: Recorder, log_lines: LogLines
) -> None:
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            recorder.ran.append("cancelled")

    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(hang, loop=loop, timeout=0.02)
    started = time.monotonic()
    loop.close()
    assert 0.02 <= time.monotonic() - started < 0.4
    assert recorder.ran == ["cancelled", "async"]
    told = f"loop_cleanup_timed_out callback={_name(hang)} seconds=0.02 ended=True"
    assert log_lines == [("error", told, None)]


def test_what_a_callback_raises_when_it_is_cancelled_is_logged(loop: Loop, log_lines: LogLines) -> None:
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while it was cancelled")

    register_loop_cleanup(hang, loop=loop, timeout=0.02)
    loop.close()
    [line] = log_lines
    assert line.message == f"loop_cleanup_timed_out callback={_name(hang)} seconds=0.02 ended=True"
    assert isinstance(line.error, ValueError)


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("children", [0, 2])
def test_a_callback_that_swallows_its_cancellation_is_abandoned_in_silence(
    loop_factory: LoopFactory, recorder: Recorder, log_lines: LogLines, children: int
) -> None:
    loop = loop_factory()
    complaints: list[object] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    stubborn = Stubborn()

    async def gather() -> None:
        await asyncio.gather(*[stubborn.refuse() for _ in range(children)])

    callback = gather if children else stubborn.refuse
    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(callback, loop=loop, timeout=0.02)
    started = time.monotonic()
    loop.close()
    assert 0.12 <= time.monotonic() - started < 0.6
    assert stubborn.cancellations == max(children, 1)
    assert recorder.ran == ["async"]
    told = f"loop_cleanup_timed_out callback={_name(callback)} seconds=0.02 ended=False"
    assert log_lines == [("error", told, None)]
    loop = stubborn = callback = None  # type: ignore[assignment]
    gc.collect()
    assert complaints == []


@pytest.mark.usefixtures("short_grace")
def test_nobody_waits_for_what_was_abandoned_or_hears_of_it_again(
    loop: Loop, complaints: list[dict[str, Any]]
) -> None:
    stubborn = Stubborn()

    async def fail_at_last() -> NoReturn:
        await stubborn.refuse()
        raise ValueError("at last")

    async def main() -> None:
        assert asyncio.all_tasks() == {asyncio.current_task()}
        stubborn.released.set()
        for _ in range(5):
            await asyncio.sleep(0)

    register_loop_cleanup(fail_at_last, loop=loop, timeout=0.02)
    assert run_loop_cleanup(loop) is None
    loop.run_until_complete(main())
    gc.collect()
    assert complaints == []


@pytest.mark.usefixtures("short_grace")
def test_abandoning_one_callback_silences_no_other_task(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    stubborn = Stubborn()
    task = loop.create_task(asyncio.Event().wait())
    register_loop_cleanup(stubborn.refuse, loop=loop, timeout=0.02)
    run_loop_cleanup(loop)
    assert asyncio.all_tasks(loop) == {task}
    loop.close()
    del loop, task, stubborn
    gc.collect()
    assert [context["message"] for context in complaints] == ["Task was destroyed but it is pending!"]


@pytest.mark.usefixtures("short_grace")
def test_a_task_from_before_the_cleanup_is_abandoned_when_a_callback_returns_it(
    loop_factory: LoopFactory,
) -> None:
    loop = loop_factory()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    stubborn = Stubborn()
    task = loop.create_task(stubborn.refuse())
    register_loop_cleanup(lambda: task, loop=loop, timeout=0.02)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert stubborn.cancellations == 1
    loop = stubborn = task = None  # type: ignore[assignment]
    gc.collect()
    assert complaints == []


@pytest.mark.usefixtures("short_grace")
def test_all_async_callbacks_together_have_ten_seconds(
    loop: Loop, recorder: Recorder, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody has none: a part is kept for each that is still to come."""
    monkeypatch.setattr(loop_cleanup, "_BUDGET_S", 0.6)  # instead of ten
    monkeypatch.setattr(loop_cleanup, "_KEPT_S", 0.05)
    stubborn = Stubborn()
    register_loop_cleanup(recorder.turns, loop=loop)
    for _ in range(4):
        register_loop_cleanup(stubborn.refuse, loop=loop)
    started = time.monotonic()
    loop.close()
    assert 0.5 <= time.monotonic() - started < 1.5
    assert recorder.ran == ["async"]
    seconds = _seconds(log_lines)
    assert len(seconds) == 4
    assert seconds[0] == pytest.approx(0.6 - 4 * 0.05, abs=0.03)
    assert max(seconds[1:]) < 0.08


@pytest.mark.usefixtures("short_grace")
def test_a_budget_too_small_for_all_is_shared(loop: Loop, recorder: Recorder, log_lines: LogLines) -> None:
    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(Stubborn().refuse, loop=loop)
    run_loop_cleanup(loop, 0.16)
    assert recorder.ran == ["async"]
    assert _seconds(log_lines) == [pytest.approx(0.08, abs=0.02)]


def _seconds(log_lines: LogLines) -> list[float]:
    """Return the time limits that the lines tell."""
    return [float(line.message.partition(" seconds=")[2].split()[0]) for line in log_lines]


@pytest.mark.usefixtures("short_grace")
def test_with_no_time_left_a_callback_still_has_a_turn(loop: Loop, recorder: Recorder) -> None:
    async def at_once() -> None:
        recorder.ran.append("at once")

    stubborn = Stubborn()
    register_loop_cleanup(at_once, loop=loop)
    register_loop_cleanup(stubborn.refuse, loop=loop)
    started = time.monotonic()
    run_loop_cleanup(loop, -1.0)
    assert time.monotonic() - started < 0.4
    assert recorder.ran == ["at once"]
    assert stubborn.cancellations == 1


def test_a_sync_callback_that_blocks_is_named_while_it_does(loop: Loop, log_lines: LogLines) -> None:
    def block() -> None:
        log_lines.wait_for("loop_cleanup_blocks")

    register_loop_cleanup(block, loop=loop, timeout=0.02)
    loop.close()
    assert log_lines == [("warning", f"loop_cleanup_blocks callback={_name(block)} seconds=0.02", None)]


@pytest.mark.usefixtures("short_grace")
def test_a_coroutine_that_blocks_the_thread_is_named_while_it_does(loop: Loop, log_lines: LogLines) -> None:
    async def block() -> None:
        log_lines.wait_for("loop_cleanup_blocks")

    register_loop_cleanup(block, loop=loop, timeout=0.03)
    loop.close()
    assert log_lines == [("warning", f"loop_cleanup_blocks callback={_name(block)} seconds=0.23", None)]


def test_no_thread_is_left_behind(loop: Loop, recorder: Recorder) -> None:
    before = threading.enumerate()
    register_loop_cleanup(recorder.sync, loop=loop)
    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(lambda: recorder.ran.append(len(threading.enumerate())), loop=loop)
    loop.close()
    assert threading.enumerate() == before
    assert recorder.ran == [len(before) + 1, "async", "sync"]


def test_callbacks_run_when_no_thread_can_be_started(loop: Loop, recorder: Recorder) -> None:
    register_loop_cleanup(recorder.sync, loop=loop)
    register_loop_cleanup(recorder.turns, loop=loop)
    usual = threading.stack_size(1 << 46)  # more than there is
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threading.Thread(target=print).start()
        loop.close()
    finally:
        threading.stack_size(usual)
    assert recorder.ran == ["async", "sync"]


# --- registering while the loop closes ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_is_registered_during_cleanup_runs_too(loop: Loop, recorder: Recorder, kind: str) -> None:
    def sync() -> None:
        register_loop_cleanup(recorder.turns)
        register_loop_cleanup(recorder.note("newest"))

    async def coroutine() -> None:
        sync()
        await asyncio.sleep(0)
        assert recorder.ran == []

    register_loop_cleanup(recorder.note("oldest"), loop=loop)
    register_loop_cleanup(sync if kind == "sync" else coroutine, loop=loop)
    loop.close()
    assert recorder.ran == ["newest", "async", "oldest"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_callback_that_registers_itself_for_ever_is_stopped(
    loop: Loop, recorder: Recorder, log_lines: LogLines, kind: str
) -> None:
    def sync() -> None:
        recorder.ran.append("again")
        register_loop_cleanup(callback)

    async def coroutine() -> None:
        sync()

    callback = sync if kind == "sync" else coroutine
    register_loop_cleanup(recorder.sync, loop=loop)
    for _ in range(3):  # those from before do not count
        register_loop_cleanup(recorder.note("before"), loop=loop)
    register_loop_cleanup(callback, loop=loop)
    loop.close()
    assert recorder.ran == ["again"] * 101 + ["before"] * 3 + ["sync"]
    assert loop.is_closed()
    [line] = log_lines
    assert line.message == f"loop_cleanup_failed callback={_name(callback)}"
    assert str(line.error) == "100 callbacks were registered during cleanup; it takes no more"


def test_each_cleanup_takes_as_many_late_registrations(loop: Loop, recorder: Recorder) -> None:
    def register(count: int) -> None:
        for value in range(count):
            register_loop_cleanup(recorder.note(value))

    register_loop_cleanup(lambda: register(100), loop=loop)
    assert run_loop_cleanup(loop) is None
    register_loop_cleanup(lambda: register(100), loop=loop)
    loop.close()
    assert recorder.ran == [*reversed(range(100))] * 2


class _Hooked:
    """A loop whose own close does something first; to be mixed in."""

    before_close: Callable[[], object]

    def close(self) -> None:
        if not self.is_closed():  # type: ignore[attr-defined]
            self.before_close()
        super().close()  # type: ignore[misc]


@pytest.fixture
def hooked(loop: Loop) -> Iterator[Any]:
    """Make a loop of the same kind, whose ``before_close`` the test sets."""
    hooked = type("Hooked", (_Hooked, type(loop)), {})()
    hooked.before_close = lambda: None
    yield hooked
    hooked.before_close = lambda: None
    hooked.close()


def test_after_the_last_callback_a_registration_raises(hooked: Any, recorder: Recorder) -> None:
    def register() -> None:
        with pytest.raises(RuntimeError, match=r"^the loop is closed, or past its cleanup; register before$"):
            register_loop_cleanup(recorder.note("late"), loop=hooked)
        recorder.ran.append("refused")

    hooked.before_close = register
    register_loop_cleanup(recorder.sync, loop=hooked)
    hooked.close()
    assert recorder.ran == ["sync", "refused"]


def test_the_first_registration_during_a_close_that_has_begun_raises(hooked: Any, recorder: Recorder) -> None:
    """It comes too late to replace the close: that one would not run it."""
    entered, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert go_on.wait(10)

    hooked.before_close = wait
    thread = threading.Thread(target=hooked.close)
    thread.start()
    assert entered.wait(10)
    try:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"^the loop is being closed; register before$"):
                register_loop_cleanup(recorder.sync, loop=hooked)
    finally:
        go_on.set()
        thread.join()
    assert hooked.is_closed()
    assert recorder.ran == []


def test_another_loop_that_is_being_closed_is_no_reason_to_refuse(
    hooked: Any, loop: Loop, recorder: Recorder
) -> None:
    hooked.before_close = lambda: register_loop_cleanup(recorder.sync, loop=loop)
    hooked.close()
    loop.close()
    assert recorder.ran == ["sync"]


@pytest.mark.parametrize("earlier", [False, True], ids=["the first one", "not the first one"])
def test_a_registration_that_races_with_close_runs_or_raises(
    loop_factory: LoopFactory, recorder: Recorder, earlier: bool
) -> None:
    for _ in range(100):
        loop = loop_factory()
        if earlier:
            register_loop_cleanup(recorder.note("earlier"), loop=loop)
        outcomes: list[str] = []
        barrier = threading.Barrier(2)

        def register(
            loop: Loop = loop, outcomes: list[str] = outcomes, barrier: threading.Barrier = barrier
        ) -> None:
            barrier.wait()
            try:
                register_loop_cleanup(lambda: outcomes.append("ran"), loop=loop)
            except RuntimeError:
                outcomes.append("raised")

        thread = threading.Thread(target=register)
        thread.start()
        barrier.wait()
        loop.close()
        thread.join()
        assert outcomes in (["ran"], ["raised"])


def test_a_close_in_another_thread_leaves_a_cleanup_under_way_alone(loop: Loop, recorder: Recorder) -> None:
    def close_elsewhere() -> None:
        thread = threading.Thread(target=loop.close)
        thread.start()
        thread.join(10)
        recorder.ran.append((thread.is_alive(), loop.is_closed()))

    register_loop_cleanup(recorder.sync, loop=loop)
    register_loop_cleanup(close_elsewhere, loop=loop)
    loop.close()
    assert recorder.ran == [(False, False), "sync"]
    assert loop.is_closed()


def test_a_loop_whose_own_close_fails_can_be_used_and_closed_again(hooked: Any, recorder: Recorder) -> None:
    def fail() -> NoReturn:
        raise OSError("from the loop's own close")

    hooked.before_close = fail
    register_loop_cleanup(recorder.sync, loop=hooked)
    for _ in range(2):
        with pytest.raises(OSError, match="from the loop's own close"):
            hooked.close()
    register_loop_cleanup(recorder.turns, loop=hooked)
    hooked.before_close = lambda: None
    hooked.close()
    assert recorder.ran == ["sync", "async"]
    assert hooked.is_closed()


def test_a_finalizer_may_unregister_whenever_the_collector_runs_it(loop: Loop, recorder: Recorder) -> None:
    """The collector may run inside our critical sections: here it does, by force."""
    outcomes: list[bool] = []

    class Garbage:
        def __init__(self, loop: Loop) -> None:
            self.loop, self.cycle = loop, self

        def __del__(self) -> None:
            outcomes.append(unregister_loop_cleanup(recorder.turns, loop=self.loop))

    class Collecting:
        def is_closed(self) -> bool:
            gc.collect(0)
            return bool(super().is_closed())  # type: ignore[misc]

    collecting = type("Collecting", (Collecting, type(loop)), {})()
    register_loop_cleanup(recorder.turns, loop=collecting)
    Garbage(collecting)
    thread = threading.Thread(
        target=lambda: register_loop_cleanup(recorder.sync, loop=collecting), daemon=True
    )
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert outcomes == [True]
    collecting.close()
    assert recorder.ran == ["sync"]


# --- lifetimes ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _one_collection() -> Iterator[None]:
    """Collect at the end, and only then.

    Garbage of one age is finalized in the order it was made, so that asyncio's loop closes itself before
    its sockets are. In another order its own close fails.
    """
    gc.collect()
    gc.disable()
    try:
        yield
        gc.collect()
    finally:
        gc.enable()


def test_a_closed_loop_is_freed_at_once(loop_factory: LoopFactory, recorder: Recorder) -> None:
    loop = loop_factory()
    gone = weakref.ref(loop)
    tokens = [register_loop_cleanup(callback, loop=loop) for callback in (recorder.sync, recorder.turns)]
    with _one_collection():
        loop.close()
        del loop
        assert gone() is None
    assert not any(map(unregister_loop_cleanup, tokens))


@pytest.mark.parametrize("closed", [True, False])
def test_callbacks_that_reach_the_loop_do_not_keep_it_alive(loop_factory: LoopFactory, closed: bool) -> None:
    class Session:
        def __init__(self, loop: Loop) -> None:
            self.loop = loop
            self.token = register_loop_cleanup(self.close, loop=loop)

        async def close(self) -> None:
            pass

    def cycle() -> tuple[weakref.ref[Loop], object]:
        loop = loop_factory()
        session = Session(loop)
        if closed:
            loop.close()
        return weakref.ref(loop), session.token

    with warnings.catch_warnings(), _one_collection():
        if not closed:
            warnings.simplefilter("ignore", ResourceWarning)
        made = [cycle() for _ in range(20)]
    assert [gone() for gone, _ in made] == [None] * 20


def test_a_new_loop_inherits_no_callbacks(loop_factory: LoopFactory, recorder: Recorder) -> None:
    ids = []
    for value in range(20):
        loop = loop_factory()
        ids.append(id(loop))
        register_loop_cleanup(recorder.note(value), loop=loop)
        loop.close()
        del loop
    assert len(set(ids)) < 20  # ids do come back
    assert recorder.ran == list(range(20))


@pytest.mark.any_loop
def test_an_asyncio_loop_that_is_collected_unclosed_is_closed_and_runs_nothing(
    loop_name: str, recorder: Recorder, log_lines: LogLines
) -> None:
    closed: list[str] = []

    class Loop(_Hooked, asyncio.SelectorEventLoop):
        before_close = staticmethod(lambda: closed.append("closed"))

    def leave_open() -> weakref.ref[Loop]:
        loop = Loop()
        register_loop_cleanup(recorder.sync, loop=loop)
        register_loop_cleanup(recorder.turns, loop=loop)
        return weakref.ref(loop)

    with pytest.warns(ResourceWarning, match="unclosed event loop"), _one_collection():
        gone = leave_open()
    assert gone() is None
    assert closed == ["closed"]
    assert recorder.ran == []
    assert log_lines == []


# --- run now: for the runner ----------------------------------------------------------------------


def test_run_loop_cleanup_runs_what_is_there_and_close_what_comes_later(
    loop: Loop, recorder: Recorder
) -> None:
    assert run_loop_cleanup(loop) is None
    register_loop_cleanup(recorder.sync, loop=loop)
    register_loop_cleanup(recorder.turns, loop=loop)
    assert run_loop_cleanup(loop) is None
    assert recorder.ran == ["async", "sync"]
    assert run_loop_cleanup(loop, 0.0) is None
    assert not loop.is_closed()
    register_loop_cleanup(recorder.note("later"), loop=loop)
    loop.close()
    assert recorder.ran == ["async", "sync", "later"]


def test_run_loop_cleanup_hands_back_the_first_interrupt(loop: Loop, recorder: Recorder) -> None:
    first = SystemExit(3)

    def leave(error: BaseException) -> NoReturn:
        raise error

    for error in (KeyboardInterrupt(), first, ValueError()):
        register_loop_cleanup(functools.partial(leave, error), loop=loop)
    register_loop_cleanup(recorder.sync, loop=loop)
    assert run_loop_cleanup(loop) is first
    assert recorder.ran == ["sync"]
    loop.close()


@pytest.mark.usefixtures("short_grace")
def test_run_loop_cleanup_keeps_to_its_budget(loop: Loop, log_lines: LogLines) -> None:
    stubborn = Stubborn()
    for _ in range(3):
        register_loop_cleanup(stubborn.refuse, loop=loop)
    started = time.monotonic()
    assert run_loop_cleanup(loop, 0.05) is None
    assert time.monotonic() - started < 0.5
    assert len(log_lines) == 3


def test_run_loop_cleanup_refuses_a_running_loop(loop: Loop, recorder: Recorder) -> None:
    async def main() -> None:
        register_loop_cleanup(recorder.sync)
        with pytest.raises(RuntimeError, match="running"):
            run_loop_cleanup(loop)

    loop.run_until_complete(main())
    assert recorder.ran == []


def test_a_close_during_run_loop_cleanup_is_left_to_whoever_runs_it(loop: Loop, recorder: Recorder) -> None:
    register_loop_cleanup(recorder.sync, loop=loop)
    register_loop_cleanup(loop.close, loop=loop)
    register_loop_cleanup(lambda: recorder.ran.append(run_loop_cleanup(loop)), loop=loop)
    assert run_loop_cleanup(loop) is None
    assert not loop.is_closed()
    assert recorder.ran == [None, "sync"]
