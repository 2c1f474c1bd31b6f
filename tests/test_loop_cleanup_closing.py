"""The moment a loop closes: who closes it, what may be registered then, Ctrl-C, and forked children."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, NoReturn

import pytest

from areal_core._drive import drive
from areal_core.loop_cleanup import register_loop_cleanup, run_loop_cleanup, unregister_loop_cleanup
from children import RunScript
from cleanup_callbacks import Hooked, Loop, LoopFactory, Recorder, name_of
from logged import LogLines

Main = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture
def loop(loop_factory: LoopFactory) -> Iterator[Loop]:
    loop = loop_factory()
    yield loop
    loop.close()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


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
        if len(recorder.ran) < 1000:
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
    assert line.message == f"loop_cleanup_failed callback={name_of(callback)}"
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


@pytest.fixture
def hooked(loop: Loop) -> Iterator[Any]:
    """Make a loop of the same kind, whose ``before_close`` the test sets."""
    hooked = type("Hooked", (Hooked, type(loop)), {})()
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


def _with_runner(main: Main, make_loop: LoopFactory) -> None:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


def _with_run(main: Main, make_loop: LoopFactory) -> None:
    run = asyncio.run if make_loop is asyncio.new_event_loop else importlib.import_module("uvloop").run
    run(main())


def _with_anyio(main: Main, make_loop: LoopFactory) -> None:
    use_uvloop = make_loop is not asyncio.new_event_loop
    pytest.importorskip("anyio").run(main, backend_options={"use_uvloop": use_uvloop})


def _by_hand(main: Main, make_loop: LoopFactory) -> None:
    with contextlib.closing(make_loop()) as loop:
        loop.run_until_complete(main())


@pytest.mark.parametrize("host", [_with_runner, _with_run, _with_anyio, _by_hand])
@pytest.mark.parametrize("error", [None, ValueError, SystemExit])
def test_whoever_runs_the_loop_runs_its_callbacks_too(
    host: Callable[[Main, LoopFactory], None],
    loop_factory: LoopFactory,
    recorder: Recorder,
    log_lines: LogLines,
    error: type[BaseException] | None,
) -> None:
    loops: list[Loop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        register_loop_cleanup(recorder.sync)
        register_loop_cleanup(recorder.turns)
        await asyncio.sleep(0)
        if error is not None:
            raise error

    with pytest.raises(error) if error else contextlib.nullcontext():
        host(main, loop_factory)
    assert recorder.ran == ["async", "sync"]
    assert type(loops[0]) is type(_closed(loop_factory()))
    assert loops[0].is_closed()
    assert log_lines == []


def _closed(loop: Loop) -> Loop:
    loop.close()
    return loop


def test_test_frameworks_that_own_the_loop_run_its_callbacks_too(
    run_script: RunScript, loop_name: str
) -> None:
    pytest.importorskip("pytest_asyncio")
    ended = run_script(
        """
        import asyncio, os, pathlib, sys
        import pytest

        uvloop = os.environ["AREAL_TEST_LOOP"] == "uvloop"
        pathlib.Path("test_inner.py").write_text(f'''
        import pytest, sys
        from areal_core.loop_cleanup import register_loop_cleanup

        ran = sys.modules["__main__"].ran

        async def note():
            ran.append("ran")

        @pytest.fixture
        def event_loop_policy():
            import asyncio, uvloop
            return uvloop.EventLoopPolicy() if {uvloop} else asyncio.DefaultEventLoopPolicy()

        @pytest.fixture
        def anyio_backend():
            return "asyncio", {{"use_uvloop": {uvloop}}}

        @pytest.mark.asyncio
        async def test_with_pytest_asyncio():
            register_loop_cleanup(note)
            assert ran == []

        @pytest.mark.anyio
        async def test_with_anyio():
            register_loop_cleanup(note)
            assert ran == ["ran"]
        '''.replace("\\n        ", "\\n"))
        ran = []
        status = pytest.main(["-q", "-p", "no:cacheprovider", "-W", "ignore", "test_inner.py"])
        print(status, ran)
        """,
    )
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[-1] == "0 ['ran', 'ran']"


@pytest.mark.parametrize("inner", ["asyncio", "uvloop"])
def test_a_loop_may_be_closed_while_another_runs_in_this_thread(
    loop: Loop, recorder: Recorder, inner: str
) -> None:
    inside = pytest.importorskip(inner).new_event_loop()
    register_loop_cleanup(recorder.sync, loop=inside)
    register_loop_cleanup(recorder.turns, loop=inside)
    register_loop_cleanup(lambda: recorder.ran.append(asyncio.get_running_loop() is inside), loop=inside)

    async def main() -> None:
        task = asyncio.current_task()
        inside.close()
        assert recorder.ran == [True, "async", "sync"]
        assert asyncio.get_running_loop() is loop
        assert asyncio.current_task() is task
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert inside.is_closed()


def test_a_callback_may_close_another_loop(loop: Loop, loop_factory: LoopFactory, recorder: Recorder) -> None:
    other = loop_factory()
    register_loop_cleanup(recorder.turns, loop=other)
    register_loop_cleanup(recorder.sync, loop=loop)
    register_loop_cleanup(other.close, loop=loop)
    loop.close()
    assert recorder.ran == ["async", "sync"]
    assert other.is_closed()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_first_ctrl_c_waits_for_the_close(
    loop: Loop, recorder: Recorder, log_lines: LogLines, kind: str
) -> None:
    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)
        recorder.ran.append("not interrupted")

    async def coroutine() -> None:
        interrupt()

    register_loop_cleanup(recorder.sync, loop=loop)
    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(interrupt if kind == "sync" else coroutine, loop=loop)
    with pytest.raises(KeyboardInterrupt):
        loop.close()
    assert loop.is_closed()
    assert recorder.ran == ["not interrupted", "async", "sync"]
    assert log_lines == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_ctrl_c_interrupts_a_callback_and_nothing_else(
    loop: Loop, recorder: Recorder, log_lines: LogLines
) -> None:
    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        recorder.ran.append("not interrupted")

    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(interrupt, loop=loop)
    with pytest.raises(KeyboardInterrupt):
        loop.close()
    assert loop.is_closed()
    assert recorder.ran == ["async"]
    assert [line.message for line in log_lines] == [f"loop_cleanup_failed callback={name_of(interrupt)}"]


def test_an_interrupt_after_a_callback_is_raised_when_all_have_run(loop: Loop, recorder: Recorder) -> None:
    """A program's own handler may raise it there, where no loop runs that could contain it."""

    def enter(frame: FrameType, event: str, _: object) -> Any:
        return leave if frame.f_code is drive.__code__ else None

    def leave(_frame: FrameType, event: str, _: object) -> Any:
        if event != "return":
            return leave
        sys.settrace(None)
        raise KeyboardInterrupt("after a callback")

    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(recorder.sync, loop=loop)
    sys.settrace(enter)
    try:
        with pytest.raises(KeyboardInterrupt, match="after a callback"):
            loop.close()
    finally:
        sys.settrace(None)
    assert recorder.ran == ["sync", "async"]
    assert loop.is_closed()


def test_run_loop_cleanup_hands_back_a_ctrl_c(loop: Loop, recorder: Recorder) -> None:
    register_loop_cleanup(recorder.turns, loop=loop)
    register_loop_cleanup(functools.partial(signal.raise_signal, signal.SIGINT), loop=loop)
    assert isinstance(run_loop_cleanup(loop), KeyboardInterrupt)
    assert recorder.ran == ["async"]


def test_ctrl_c_at_any_moment_loses_no_callback(run_script: RunScript) -> None:
    ended = run_script(
        """
        import asyncio, collections, importlib, os, random, signal, threading
        from areal_core.loop_cleanup import register_loop_cleanup

        make_loop = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop
        moments = random.Random(1)
        told = collections.Counter()

        def close_and_interrupt():
            loop = make_loop()
            ran = []

            async def turns():
                await asyncio.sleep(0)
                await asyncio.sleep(0.0005)
                ran.append("turns")

            for callback in (lambda: ran.append("first"), turns, lambda: ran.append("last")):
                register_loop_cleanup(callback, loop=loop)
            ctrl_c = threading.Timer(moments.uniform(0.0, 0.004), os.kill, [os.getpid(), signal.SIGINT])
            try:
                try:
                    ctrl_c.start()
                    loop.close()
                finally:
                    ctrl_c.join()
            except KeyboardInterrupt:
                told["interrupted"] += 1
            loop.close()  # if it was not reached before
            told[loop.is_closed(), *ran] += 1

        for _ in range(150):
            close_and_interrupt()
        print(dict(told))
        """,
        flags=(),
    )
    assert ended.stderr == ""
    assert ended.stdout == "{'interrupted': 150, (True, 'last', 'turns', 'first'): 150}\n"


def test_a_forked_child_runs_no_callbacks_and_leaves_its_parents_loop_alone(run_script: RunScript) -> None:
    ended = run_script(
        """
        import asyncio, gc, importlib, os, sys
        from areal_core.loop_cleanup import (
            register_loop_cleanup, run_loop_cleanup, unregister_loop_cleanup)

        make_loop = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop
        ran = []
        loop = make_loop()
        token = register_loop_cleanup(lambda: ran.append("parent's"), loop=loop)
        receiver, sender = os.pipe()
        read = lambda: (ran.append(os.read(receiver, 9)), loop.stop())
        loop.call_soon(loop.add_reader, receiver, read)
        loop.call_soon(loop.stop)
        loop.run_forever()

        child = os.fork()
        if child == 0:
            loop.close()
            loop.close()
            print(run_loop_cleanup(loop), unregister_loop_cleanup(token), ran)
            try:
                register_loop_cleanup(print, loop=loop)
            except RuntimeError as exc:
                print(exc)
            own = make_loop()
            register_loop_cleanup(lambda: ran.append("child's"), loop=own)
            own.close()
            print(own.is_closed(), ran, flush=True)
            del loop, own, read
            gc.collect()
            sys.exit()

        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os.write(sender, b"awake")
        timeout = loop.call_later(10, loop.stop)
        loop.run_forever()
        timeout.cancel()
        loop.close()
        print(loop.is_closed(), ran)
        """,
    )
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == [
        "None False []",
        "the loop belongs to the parent process; use one made in this process",
        """True ["child's"]""",
        "0",
        """True [b'awake', "parent's"]""",
    ]


def test_a_forked_child_waits_for_no_lock_of_its_parent(run_script: RunScript) -> None:
    ended = run_script(
        """
        import asyncio, importlib, os, threading
        from areal_core.loop_cleanup import register_loop_cleanup, unregister_loop_cleanup

        entered, go_on = threading.Event(), threading.Event()
        module = importlib.import_module(os.environ["AREAL_TEST_LOOP"])

        class Slow(getattr(module, "Loop", asyncio.SelectorEventLoop)):
            def is_closed(self):
                if threading.current_thread() is thread:
                    entered.set()
                    go_on.wait()
                return super().is_closed()

        thread = None
        loop = Slow()
        token = register_loop_cleanup(print, loop=loop)
        thread = threading.Thread(target=lambda: register_loop_cleanup(print, loop=loop))
        thread.start()
        entered.wait()  # inside the critical section
        child = os.fork()
        if child == 0:
            loop.close()
            print(unregister_loop_cleanup(token), unregister_loop_cleanup(print, loop=loop), flush=True)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        go_on.set()
        thread.join()
        print(unregister_loop_cleanup(print, loop=loop), unregister_loop_cleanup(token))
        loop.close()
        """,
        # From 3.12 on a fork beside other threads warns: it may deadlock the child. Here it must not.
        flags=("-X", "dev", "-W", "error", "-W", "ignore:This process:DeprecationWarning"),
    )
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["False False", "0", "True True"]
