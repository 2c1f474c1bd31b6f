"""The stack of what a task awaits: through whatever can be awaited, without a step of the user's code."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from typing import Any

import pytest

from areal_core._watch.awaited import LINES, stack_of
from areal_core._watch.offloaded_calls import NOTES
from areal_core.offload import offloaded

Loop = Callable[[], asyncio.AbstractEventLoop]


class Stage:
    """Tasks that have come to where they wait, and what is said of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def stack(self, coroutine: Coroutine[Any, Any, Any]) -> str:
        """Return the stack of a task that plays *coroutine*, when it waits."""

        async def look() -> str:
            task = asyncio.ensure_future(coroutine)
            for _ in range(5):
                await asyncio.sleep(0)
            assert not task.done(), task
            told = stack_of(task, NOTES)
            await _end(task)
            return told

        return self._loop.run_until_complete(look())

    def functions(self, coroutine: Coroutine[Any, Any, Any]) -> list[str]:
        """Return the last word of each line."""
        return [line.split()[-1].rpartition(".")[2] for line in self.stack(coroutine).splitlines()]


async def _end(task: asyncio.Future[Any]) -> None:
    task.cancel()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for other in others:
        other.cancel()
    await asyncio.wait({task, *others})


@pytest.fixture
def stage(loop_factory: Loop) -> Iterator[Stage]:
    loop = loop_factory()
    yield Stage(loop)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


async def park() -> None:
    await asyncio.get_running_loop().create_future()


async def within(awaitable: Any) -> Any:
    return await awaitable


def test_coroutines_are_followed_to_the_innermost(stage: Stage) -> None:
    told = stage.stack(within(within(park())))
    assert [line.split()[-1] for line in told.splitlines()[:3]] == ["within", "within", "park"]
    assert told.splitlines()[0].startswith(f"{__file__}:")
    assert told.splitlines()[3].startswith("a future that is not done (")


def test_the_files_of_libraries_are_shown_in_short(stage: Stage) -> None:
    assert "asyncio/locks.py:" in stage.stack(asyncio.Event().wait())
    assert "/asyncio/locks.py" not in stage.stack(asyncio.Event().wait())


async def _values() -> AsyncIterator[None]:
    await park()
    yield


async def _iterate() -> None:
    async for _ in _values():
        pass


async def _next_or_none() -> None:
    await anext(_values(), None)


async def _in_a_block() -> None:
    async with _Guarded():
        pass


class _Guarded:
    async def __aenter__(self) -> None:
        await park()

    async def __aexit__(self, *_: object) -> None: ...


@types.coroutine
def _old_style() -> Generator[Any, Any, None]:
    yield from asyncio.get_running_loop().create_future()


class _Custom:
    def __await__(self) -> Generator[Any, Any, None]:
        yield from park().__await__()


class _Iterator:
    """An awaitable that is its own iterator, in Python."""

    def __init__(self) -> None:
        self._inner = park().__await__()

    def __await__(self) -> _Iterator:
        return self

    def __iter__(self) -> _Iterator:
        return self

    def __next__(self) -> Any:
        return next(self._inner)

    def send(self, value: Any) -> Any:
        return self._inner.send(value)

    def throw(self, *error: Any) -> Any:
        return self._inner.throw(*error)

    def close(self) -> None:
        self._inner.close()


async def _gather() -> None:
    await asyncio.gather(asyncio.sleep(0), park(), park())


async def _wait() -> None:
    await asyncio.wait([asyncio.ensure_future(park())])


async def _group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(park())


async def _shield() -> None:
    await asyncio.shield(asyncio.ensure_future(park()))


async def _task() -> None:
    await asyncio.create_task(park())


async def _wait_for() -> None:
    await asyncio.wait_for(park(), 100)


@pytest.mark.parametrize(
    "play",
    [
        _iterate,
        _next_or_none,
        _in_a_block,
        lambda: within(_Custom()),
        lambda: within(_Iterator()),
        _gather,
        _wait,
        _group,
        _shield,
        _task,
        _wait_for,
    ],
    ids=[
        "async for",
        "anext",
        "async with",
        "custom",
        "iterator",
        "gather",
        "wait",
        "TaskGroup",
        "shield",
        "task",
        "wait_for",
    ],
)
def test_whatever_is_awaited_is_seen_through(stage: Stage, play: Any) -> None:
    assert "park" in stage.functions(play())


def test_a_generator_that_is_a_coroutine_is_followed(stage: Stage) -> None:
    assert "_old_style" in stage.functions(within(_old_style()))


def test_of_many_branches_three_are_followed_and_the_rest_is_counted(stage: Stage) -> None:
    async def many() -> None:
        await asyncio.gather(*(park() for _ in range(100)))

    told = stage.stack(many())
    assert told.count(" park") == 3
    assert "and 97 more beside them" in told


def test_branches_of_branches_come_to_an_end(stage: Stage) -> None:
    async def branching(depth: int) -> None:
        await (park() if depth == 0 else asyncio.gather(branching(depth - 1), branching(depth - 1)))

    told = stage.stack(branching(6)).splitlines()
    assert len(told) <= LINES
    assert max(len(line) - len(line.lstrip()) for line in told) == 8


def test_of_a_deep_chain_both_ends_are_shown(stage: Stage) -> None:
    async def nest(depth: int) -> None:
        await (park() if depth == 0 else nest(depth - 1))

    told = stage.stack(nest(200)).splitlines()
    assert len(told) == LINES
    assert told[0].endswith("nest")
    assert told[-2].endswith(" park")
    assert [line for line in told if line.startswith("...")] == ["... 164 lines ..."]


def test_tasks_that_wait_for_each_other_end_it(stage: Stage) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def wait_for_other(number: int) -> None:
        await asyncio.sleep(0)
        await asyncio.wait([tasks[1 - number]])

    async def both() -> None:
        tasks.extend(asyncio.create_task(wait_for_other(number)) for number in (0, 1))
        await tasks[0]

    told = stage.stack(both())
    assert told.count("wait_for_other") == 2
    assert "as above" in told


class Raising:
    """Raises whatever is asked of it, a chain breaker for whoever looks too closely."""

    def __init__(self) -> None:
        self.asked: list[str]
        object.__setattr__(self, "asked", [])
        object.__setattr__(self, "inner", None)

    def __getattribute__(self, name: str) -> Any:
        if name in ("__await__", "__next__", "__iter__", "send", "throw"):
            return object.__getattribute__(self, name)
        object.__getattribute__(self, "__dict__")["asked"].append(name)
        raise SystemExit

    @property
    def cr_await(self) -> Any:
        raise SystemExit

    cr_frame = gi_frame = ag_frame = cr_await

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise SystemExit

    def __repr__(self) -> str:
        raise SystemExit

    def __await__(self) -> Raising:
        return self

    def __iter__(self) -> Raising:
        return self

    def __next__(self) -> Any:
        return None  # as `sleep(0)` does: its task goes on with each turn of the loop


def test_no_code_of_an_awaitable_is_run(stage: Stage) -> None:
    raising = Raising()
    told = stage.stack(within(raising))
    assert told.splitlines()[-1] == f"an awaitable of {__name__}.Raising"
    assert object.__getattribute__(raising, "asked") == []


def test_a_task_class_of_the_users_own_is_not_asked(loop_factory: Loop) -> None:
    class Odd(asyncio.Task[Any]):
        def get_coro(self) -> Any:
            raise SystemExit

        def done(self) -> bool:
            raise SystemExit

    loop = loop_factory()
    try:
        task = Odd(park(), loop=loop)
        assert stack_of(task, NOTES).endswith(" park")
        asyncio.Task.cancel(task)
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(_result_of(task))
    finally:
        loop.close()


async def _result_of(task: asyncio.Task[Any]) -> None:
    done = asyncio.get_running_loop().create_future()
    task.add_done_callback(lambda _: done.cancel())
    await done


@pytest.mark.parametrize("make", [object, int, asyncio.Event, Raising])
def test_what_is_no_task_has_no_stack(make: Callable[[], object]) -> None:
    assert stack_of(make(), NOTES) == ""


def test_a_task_that_has_ended_has_no_stack(loop_factory: Loop) -> None:
    loop = loop_factory()
    task = loop.create_task(asyncio.sleep(0))
    loop.run_until_complete(task)
    loop.close()
    assert stack_of(task, NOTES) == ""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no task begins before it is scheduled")
def test_a_task_that_ended_in_its_first_step_has_no_stack(loop_factory: Loop) -> None:
    async def begin() -> str:
        loop = asyncio.get_running_loop()
        eager: Any = asyncio.Task(give(), loop=loop, eager_start=True)  # type: ignore[call-arg]
        assert eager.done()
        return stack_of(eager, NOTES)

    async def give() -> int:
        return 1

    loop = loop_factory()
    assert loop.run_until_complete(begin()) == ""
    loop.close()


def test_a_call_that_waits_for_a_thread_is_told_apart(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    from areal_core._offload import crew

    monkeypatch.setattr(crew, "_THREADS", 0)
    told = stage.stack(offloaded(len, to="thread")("abc"))
    assert "in builtins.len, which waits its turn for a thread" in told
    assert "Semaphore.acquire" in told


def test_a_call_that_waits_for_a_process_is_told_apart(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    from areal_core._offload import crew

    monkeypatch.setattr(crew, "_PROCESSES", 0)
    told = stage.stack(offloaded(len, to="process")("abc"))
    assert "in builtins.len, in a worker process" in told
    assert "which waits its turn" in told
