"""Callbacks that raise, hang or block: the others run all the same, and the loop closes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import operator
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

from areal_core import _callback, loop_cleanup
from areal_core.loop_cleanup import register_loop_cleanup, run_loop_cleanup
from children import RunScript
from cleanup_callbacks import Later, Loop, LoopFactory, Recorder, name_of
from logged import LogLines


@pytest.fixture
def loop(loop_factory: LoopFactory) -> Iterator[Loop]:
    loop = loop_factory()
    yield loop
    loop.close()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


class OwnBaseError(BaseException):
    pass


ERRORS = [ValueError, asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit, OwnBaseError]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("kind", ["sync", "async", "async after a turn", "in a child task"])
def test_what_a_callback_raises_keeps_nobody_from_running(
    loop: Loop,
    recorder: Recorder,
    log_lines: LogLines,
    complaints: list[dict[str, Any]],
    error: type[BaseException],
    kind: str,
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
    assert line.message == f"loop_cleanup_failed callback={name_of(callback)}"
    assert isinstance(line.error, error)
    assert complaints == []


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
        await asyncio.wait(others, timeout=1.0)
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
        f"loop_cleanup_failed callback={name_of(callback)}" for callback in (Recorder.turns, Recorder.sync)
    ]
    assert all("cannot be driven" in str(line.error) for line in log_lines)


def test_a_loop_that_fails_leaves_no_callback_that_was_never_awaited(
    loop: Loop, recorder: Recorder, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> NoReturn:
        raise OSError("no epoll")

    monkeypatch.setattr(logging.getLogger("areal_core"), "propagate", False)  # pytest would keep tracebacks
    register_loop_cleanup(recorder.turns, loop=loop)
    loop.run_forever = fail  # type: ignore[method-assign]
    loop.close()
    assert loop.is_closed()
    assert recorder.ran == []
    assert [line.message for line in log_lines] == [f"loop_cleanup_failed callback={name_of(Recorder.turns)}"]
    log_lines.clear()
    gc.collect()  # a complaint here fails the test


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
        (Later, "cleanup_callbacks.Later"),
        (operator.itemgetter("payload"), "operator.itemgetter"),
    ],
)
def test_a_callback_is_named_without_its_arguments(
    loop: Loop, log_lines: LogLines, callback: Callable[..., object], name: str
) -> None:
    register_loop_cleanup(callback, loop=loop)
    loop.close()
    assert [line.message for line in log_lines] == [f"loop_cleanup_failed callback={name}"]


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
    register_loop_cleanup(hang, loop=loop, timeout=0.0216)
    started = time.monotonic()
    loop.close()
    assert 0.02 <= time.monotonic() - started < 0.4
    assert recorder.ran == ["cancelled", "async"]
    told = f"loop_cleanup_timed_out callback={name_of(hang)} seconds=0.022 ended=True"
    assert log_lines == [("error", told, None)]


def test_children_left_by_a_callback_that_ran_out_of_time_go_in_silence(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    loop = loop_factory()
    complaints: list[object] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))

    async def hang() -> None:
        children.append(loop.create_task(asyncio.sleep(3600)))
        await asyncio.sleep(3600)

    children: list[asyncio.Task[None]] = []

    register_loop_cleanup(hang, loop=loop, timeout=0.02)
    loop.close()
    loop = None  # type: ignore[assignment]
    children.clear()
    gc.collect()
    assert complaints == []
    [record] = caplog.records
    assert not record.exc_info  # or a line "NoneType: None" would follow
    assert record.getMessage() == f"loop_cleanup_timed_out callback={name_of(hang)} seconds=0.02 ended=True"


def test_what_a_callback_raises_when_it_is_cancelled_is_logged(loop: Loop, log_lines: LogLines) -> None:
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while it was cancelled")

    register_loop_cleanup(hang, loop=loop, timeout=0.02)
    loop.close()
    [line] = log_lines
    assert line.message == f"loop_cleanup_timed_out callback={name_of(hang)} seconds=0.02 ended=True"
    assert isinstance(line.error, ValueError)


def test_a_callback_that_swallows_its_cancellation_has_half_a_second_more(loop: Loop) -> None:
    register_loop_cleanup(Stubborn().refuse, loop=loop, timeout=0.02)
    started = time.monotonic()
    loop.close()
    assert 0.5 <= time.monotonic() - started < 1.4


@pytest.mark.usefixtures("short_grace")
def test_what_an_abandoned_callback_waited_for_may_come(loop: Loop, complaints: list[dict[str, Any]]) -> None:
    waited_for: list[asyncio.Future[None]] = []

    async def refuse() -> None:
        while True:
            waited_for.append(loop.create_future())
            with contextlib.suppress(asyncio.CancelledError):
                await waited_for[-1]

    register_loop_cleanup(refuse, loop=loop, timeout=0.02)
    run_loop_cleanup(loop)
    waited_for[-1].set_result(None)
    for _ in range(3):
        loop.run_until_complete(asyncio.sleep(0))
    waited_for.clear()
    gc.collect()
    assert complaints == []


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
    told = f"loop_cleanup_timed_out callback={name_of(callback)} seconds=0.02 ended=False"
    assert log_lines == [("error", told, None)]
    loop = stubborn = callback = None  # type: ignore[assignment]
    gc.collect()
    assert complaints == []


@pytest.mark.usefixtures("short_grace")
def test_a_callback_that_refuses_even_to_be_closed_is_abandoned_in_silence(
    loop_factory: LoopFactory, log_lines: LogLines
) -> None:
    loop = loop_factory()
    refused: list[type[BaseException]] = []

    async def refuse() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except BaseException as exc:
                refused.append(type(exc))

    register_loop_cleanup(refuse, loop=loop, timeout=0.02)
    loop.close()
    assert refused == [asyncio.CancelledError, GeneratorExit]
    told = f"loop_cleanup_timed_out callback={name_of(refuse)} seconds=0.02 ended=False"
    assert log_lines == [("error", told, None)]
    del loop
    gc.collect()  # a complaint here fails the test


@pytest.mark.usefixtures("short_grace")
def test_what_is_abandoned_is_closed_at_once(loop: Loop, recorder: Recorder) -> None:
    async def refuse() -> None:
        try:
            await Stubborn().refuse()
        finally:
            recorder.ran.append("closed")

    register_loop_cleanup(recorder.sync, loop=loop)
    register_loop_cleanup(refuse, loop=loop, timeout=0.02)
    loop.close()
    assert recorder.ran == ["closed", "sync"]


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
    monkeypatch.setattr(loop_cleanup, "_BUDGET_S", 1.5)  # instead of ten
    monkeypatch.setattr(loop_cleanup, "_KEPT_S", 0.25)
    stubborn = Stubborn()
    register_loop_cleanup(recorder.turns, loop=loop)
    for _ in range(4):
        register_loop_cleanup(stubborn.refuse, loop=loop)
    started = time.monotonic()
    loop.close()
    assert 1.2 <= time.monotonic() - started < 3.0
    assert recorder.ran == ["async"]
    seconds = _seconds(log_lines)
    assert len(seconds) == 4
    assert seconds[0] == pytest.approx(1.5 - 4 * 0.25, abs=0.15)
    assert max(seconds[1:]) < 0.4


@pytest.mark.usefixtures("short_grace")
def test_a_budget_too_small_for_all_is_shared(loop: Loop, recorder: Recorder, log_lines: LogLines) -> None:
    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(Stubborn().refuse, loop=loop)
    run_loop_cleanup(loop, 0.16)
    assert recorder.ran == ["async"]
    assert _seconds(log_lines) == [pytest.approx(0.08, abs=0.02)]


@pytest.mark.usefixtures("short_grace")
def test_a_tenth_of_a_second_is_kept_for_each_callback_to_come(loop: Loop, log_lines: LogLines) -> None:
    register_loop_cleanup(Recorder().turns, loop=loop)
    register_loop_cleanup(Stubborn().refuse, loop=loop)
    run_loop_cleanup(loop, budget_s=1.0)
    [seconds] = _seconds(log_lines)
    assert 0.6 < seconds <= 0.9  # less the time that has gone by


def _seconds(log_lines: LogLines) -> list[float]:
    """Return the time limits that the lines tell."""
    return [float(line.message.partition(" seconds=")[2].split()[0]) for line in log_lines]


@pytest.mark.usefixtures("short_grace")
def test_with_no_time_left_a_callback_still_has_a_turn(
    loop: Loop, recorder: Recorder, log_lines: LogLines
) -> None:
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
    assert _seconds(log_lines) == [0.0]


def test_a_sync_callback_that_blocks_is_named_while_it_does(loop: Loop, log_lines: LogLines) -> None:
    def block() -> None:
        log_lines.wait_for("loop_cleanup_blocks")

    register_loop_cleanup(block, loop=loop, timeout=0.0216)
    loop.close()
    assert log_lines == [("warning", f"loop_cleanup_blocks callback={name_of(block)} seconds=0.022", None)]


@pytest.mark.usefixtures("short_grace")
def test_a_coroutine_that_blocks_the_thread_is_named_while_it_does(loop: Loop, log_lines: LogLines) -> None:
    async def block() -> None:
        log_lines.wait_for("loop_cleanup_blocks")

    register_loop_cleanup(block, loop=loop, timeout=0.03)
    loop.close()
    assert log_lines == [("warning", f"loop_cleanup_blocks callback={name_of(block)} seconds=0.23", None)]


def test_no_thread_is_left_behind(loop: Loop, recorder: Recorder) -> None:
    before = threading.enumerate()
    register_loop_cleanup(recorder.sync, loop=loop)
    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(lambda: recorder.ran.append(len(threading.enumerate())), loop=loop)
    loop.close()
    assert threading.enumerate() == before
    assert recorder.ran == [len(before) + 1, "async", "sync"]


def test_callbacks_run_when_no_thread_can_be_started(
    loop: Loop, recorder: Recorder, log_lines: LogLines
) -> None:
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
    assert log_lines == []


def test_the_program_may_end_while_a_callback_blocks_a_daemon_thread(run_script: RunScript) -> None:
    """Whoever watches the callback must not keep the program waiting until the limit is over."""
    ended = run_script(
        """
        import importlib, os, threading
        from areal_core.loop_cleanup import register_loop_cleanup

        loop = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop()
        blocks = threading.Event()

        def block():
            blocks.set()
            threading.Event().wait()

        register_loop_cleanup(block, loop=loop, timeout=3600)
        threading.Thread(target=loop.close, daemon=True).start()
        blocks.wait()
        print("end", flush=True)
        """,
        timeout=20.0,
        flags=(),  # an open loop is left behind
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "end\n", "")
