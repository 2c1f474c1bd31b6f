"""What the runner's tests stand tasks and threads at, so that none of them has to sleep."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Generic, TypeVar

from areal_core._runner.gate import Gate
from areal_core.async_task_runner import AsyncTaskRunner, TimedResult
from conftest import MakeRunner

T = TypeVar("T")

LONG_S = 10.0
"""Longer than anything takes: a test that waits so long fails."""


class Door:
    """Tasks wait at it until a thread opens it, or are turned away by a cancellation."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrivals = threading.Semaphore(0)
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.is_open = False

    async def walk_through(self, value: Any = None) -> Any:
        """Say that the task is there, wait until the door is open, and return *value*."""
        loop = asyncio.get_running_loop()
        opened = loop.create_future()
        with self._lock:
            if self.is_open:
                opened.set_result(None)
            else:
                self._waiting.append((loop, opened))
        self._arrivals.release()
        await opened
        return value

    async def insist(self, value: Any = None) -> Any:
        """Do the same, and ignore every cancellation."""
        while not self.is_open:
            try:
                await self.walk_through()
            except asyncio.CancelledError:
                continue
        return value

    def wait_for(self, count: int = 1) -> None:
        """Wait until *count* more tasks are there."""
        for _ in range(count):
            assert self._arrivals.acquire(timeout=LONG_S), "no task came to the door"

    def open(self) -> None:
        """Let everybody through, from any thread."""
        with self._lock:
            self.is_open = True
            waiting, self._waiting = self._waiting, []
        for loop, opened in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_let_through, opened)


def _let_through(opened: asyncio.Future[None]) -> None:
    if not opened.done():
        opened.set_result(None)


class Caller(Generic[T]):
    """A thread that makes one call, and tells each time it blocks in the runner."""

    def __init__(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> None:
        self._call = (function, args, kwargs)
        self._outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._blocks = threading.Semaphore(0)
        self._is_about_to_block = False
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def wait_until_blocked(self) -> None:
        """Wait until the call blocks once more."""
        assert self._blocks.acquire(timeout=LONG_S), "the call did not block"
        assert not self._outcome.done(), f"the call did not block: {self._outcome}"

    def is_done(self) -> bool:
        """Tell whether the call has returned or raised."""
        return self._outcome.done()

    def result(self) -> T:
        """Wait for the call's end; return its value or raise its exception."""
        try:
            return self._outcome.result(LONG_S)
        finally:
            self._thread.join(LONG_S)

    def error(self) -> BaseException | None:
        """Wait for the call's end; return its exception."""
        error = self._outcome.exception(LONG_S)
        self._thread.join(LONG_S)
        return error

    def _main(self) -> None:
        function, args, kwargs = self._call
        _profile_with(self._notice)
        try:
            value = function(*args, **kwargs)
        except BaseException as error:
            _profile_with(None)
            self._outcome.set_exception(error)
        else:
            _profile_with(None)
            self._outcome.set_result(value)
        self._blocks.release()

    def _notice(self, frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code is not Gate.wait.__code__:
            return
        if event == "call":
            self._is_about_to_block = True
        elif event == "c_call" and argument.__name__ == "acquire" and self._is_about_to_block:
            self._is_about_to_block = False  # in one wait it blocks again and again
            self._blocks.release()


_setting_profile = threading.Lock()


def _profile_with(function: Callable[[FrameType, str, Any], None] | None) -> None:
    with _setting_profile:  # 3.11 refuses to do it in two threads at once, where an audit hook runs meanwhile
        sys.setprofile(function)


def start_blocked(function: Callable[..., T], *args: Any, **kwargs: Any) -> Caller[T]:
    """Make a call in a thread of its own, and return when it blocks in the runner."""
    caller = Caller(function, *args, **kwargs)
    caller.wait_until_blocked()
    return caller


def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Make a call in a thread of its own; return its value or raise its exception."""
    return Caller(function, *args, **kwargs).result()


async def give(value: Any = None) -> Any:
    """Return *value*."""
    return value


async def fail(error: BaseException) -> None:
    """Raise *error*."""
    raise error


async def use_task_class(task_class: Any) -> None:
    """Have the loop make its tasks of this class; None: of its own."""

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        return task_class(coroutine, loop=loop, **options)

    asyncio.get_running_loop().set_task_factory(None if task_class is None else make)


def begun_at_once(coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """Make a task whose first step is taken here and now, where the Python can do that."""
    if sys.version_info >= (3, 12):
        options["eager_start"] = True
    return asyncio.Task(coroutine, **options)


async def running_loop() -> asyncio.AbstractEventLoop:
    """Return the loop that runs this."""
    return asyncio.get_running_loop()


def outcomes(runner: AsyncTaskRunner[Any]) -> dict[int, tuple[str, Any]]:
    """Collect status and value of each task by its id."""
    return {result.task_id: (result.status, result.data) for result in runner.as_completed(timeout=10)}


async def work(door: Door, cleaning: Door, done: list[str]) -> str:
    """Wait at *door*; told to end, clean up at *cleaning*."""
    try:
        await door.walk_through()
    finally:
        await cleaning.walk_through()
        done.append("cleaned")
    return "value"


def with_tasks_around(make_runner: MakeRunner) -> Iterator[AsyncTaskRunner[Any]]:
    """Make a runner with one task running and one pending, and see that both and a third are unharmed."""
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, "running", task_id=100)
    door.wait_for()
    thread = runner.thread
    yield runner
    door.open()
    runner.submit(give, "later", task_id=101)
    assert runner.wait_for_task(100, timeout=10).data == "running"
    assert runner.wait_for_task(101, timeout=10).data == "later"
    assert not runner.exiting.is_set()
    assert runner.thread is thread
    assert runner.stats().state == "running"


def outcome_of(
    runner: AsyncTaskRunner[Any], fn: Callable[..., Any], *args: Any, **kwargs: Any
) -> TimedResult[Any]:
    """Run a task and return what became of it."""
    return runner.wait_for_task(runner.submit(fn, *args, task_id=1, **kwargs), timeout=10)


def turn_loop(runner: AsyncTaskRunner[Any], turns: int = 10) -> None:
    """Let the runner's loop do what is due, and what follows from that."""

    async def turn() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    runner.run(turn)


def break_down(runner: AsyncTaskRunner[Any], fault: BaseException) -> None:
    """Kill *runner* by a fault of the library's own, and wait until its thread has ended."""
    assert runner._life is not None
    assert runner.thread is not None
    runner._life.thread.post(_raise, fault)
    runner.thread.join(LONG_S)
    assert not runner.thread.is_alive()


def _raise(error: BaseException) -> None:
    raise error


class Blockade:
    """A task that blocks the loop's thread itself, until it is lifted."""

    def __init__(self) -> None:
        self._entered = threading.Event()
        self._lifted = threading.Event()

    async def block(self, value: Any = None) -> Any:
        """Block the thread."""
        self.enter()
        return value

    def enter(self) -> None:
        """Do the same from a plain function."""
        self._entered.set()
        assert self._lifted.wait(LONG_S)

    def wait_until_entered(self) -> None:
        """Wait until the thread is blocked."""
        assert self._entered.wait(LONG_S)

    def lift(self) -> None:
        """Let the thread go on."""
        self._lifted.set()


@contextlib.contextmanager
def interrupt_when(
    function: Callable[..., Any], event: str = "return", meanwhile: Callable[[], object] = bool
) -> Iterator[None]:
    """Raise KeyboardInterrupt in this thread when *function* is called ("call") or about to return.

    *meanwhile* is called just before. An interrupt that never comes fails the test.
    """
    code = function.__code__
    came = False

    def interrupt(frame: FrameType, happened: str, argument: Any) -> None:
        nonlocal came
        if happened == event and frame.f_code is code:
            sys.setprofile(None)
            came = True
            meanwhile()
            raise KeyboardInterrupt

    sys.setprofile(interrupt)
    try:
        yield
    finally:
        sys.setprofile(None)
        assert came, f"{function} did not {event}"
