"""Callbacks that run when a loop is closed: registering them, taking them back, and what they keep alive."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import math
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NoReturn

import pytest

from areal_core import _callback, loop_cleanup
from areal_core.loop_cleanup import register_loop_cleanup, run_loop_cleanup, unregister_loop_cleanup
from cleanup_callbacks import Hooked, Later, Loop, LoopFactory, Recorder
from logged import LogLines


@pytest.fixture
def loop(loop_factory: LoopFactory) -> Iterator[Loop]:
    loop = loop_factory()
    yield loop
    loop.close()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


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


def test_loop_and_timeout_are_given_by_name_and_the_callback_either_way(
    loop: Loop, recorder: Recorder
) -> None:
    register: Any = register_loop_cleanup
    unregister: Any = unregister_loop_cleanup
    for call in (register, unregister):
        with pytest.raises(TypeError, match="positional argument"):
            call(recorder.sync, loop)
    register(callback=recorder.sync, loop=loop)
    assert unregister(token_or_callback=recorder.sync, loop=loop)


def test_a_close_that_somebody_wrapped_later_stays_wrapped(loop: Loop, recorder: Recorder) -> None:
    register_loop_cleanup(recorder.sync, loop=loop)
    inner = loop.close

    def wrapped() -> None:
        recorder.ran.append("wrapped")
        inner()

    loop.close = wrapped  # type: ignore[method-assign]
    register_loop_cleanup(recorder.turns, loop=loop)
    loop.close()
    assert recorder.ran == ["wrapped", "async", "sync"]
    assert loop.is_closed()


def test_a_second_close_does_nothing(loop: Loop, recorder: Recorder) -> None:
    register_loop_cleanup(recorder.sync, loop=loop)
    for _ in range(3):
        loop.close()
    assert recorder.ran == ["sync"]


def test_a_close_that_others_put_there_before_is_called_by_ours(loop: Loop, recorder: Recorder) -> None:
    own = loop.close

    def theirs() -> None:
        recorder.ran.append("theirs")
        own()

    loop.close = theirs  # type: ignore[method-assign]
    register_loop_cleanup(recorder.sync, loop=loop)
    loop.close()
    assert recorder.ran == ["sync", "theirs"]
    assert loop.is_closed()


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


@pytest.mark.parametrize(
    "make",
    [
        lambda recorder: functools.partial(Recorder.turns, recorder),
        lambda recorder: lambda: recorder.turns(),  # noqa: PLW0108 (its result is the coroutine)
        lambda recorder: lambda: Later(recorder),
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


def test_a_compiled_method_is_known_by_its_object_and_itsname_of(loop: Loop) -> None:
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
    assert _callback._CANCEL_GRACE_S == 0.5
    assert loop_cleanup.__all__ == ["register_loop_cleanup", "unregister_loop_cleanup"]


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

    class Loop(Hooked, asyncio.SelectorEventLoop):
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
