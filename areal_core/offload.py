"""Make a blocking function awaitable: an accept filter or a reward that computes holds nobody up.

    score = offloaded(compute_score, to="process", time_limit=30.0)
    ...
    reward = await score(completion, answer)        # in a workflow

    to=          is for                               at the time limit      cancelled
    "loop"       what takes no time, or awaits        awaiting is cancelled  the same
    "thread"     I/O, and what releases the GIL       left to itself         left to itself
    "process"    what computes, or may never end      killed                 killed

Why not a library: on a loop that runs for ever, anyio's pool of processes is killed with the first task
that used it; an idle worker that dies breaks pebble's pool; loky and concurrent.futures can kill no call.

Calls are begun in the order in which they are made, as many at once on one loop as there are processors in
processes, and four more (32 at most) in threads; `configure_offload` sets both. The others wait for a worker,
and are said to: see ``offloaded`` in a snapshot. The time limit counts from a call's begin: neither the wait
for a worker is in it, nor the start of a worker process and its imports.

In a thread, a call has the caller's context variables. One that is over time, or whose caller is cancelled,
cannot be stopped: it is *abandoned*, and goes on with nobody waiting. It takes no turn away, and keeps
neither the loop nor the program from ending; `abandoned_threads` counts those that still run.

In a worker process, a call has a main thread of its own (so ``signal.alarm`` works), an empty stdin, and no
context variables; what it prints comes out where the program's own output does. Processes are started when
they are needed, kept for later calls, and end with the loop, or with the program however that ends. A worker
is killed with all that its calls started, unless that has left its process group. Function and arguments
are pickled with each call: keep what is large in the function's module. Nothing is forked: a worker imports
the function's module. Only where that is the program itself (``__main__``), the program is run again there
under the name ``__mp_main__``, as multiprocessing does, and must have its ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import pickle
from collections.abc import Callable, Coroutine
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, get_args, overload

from areal_core._checks import check_integer, check_seconds
from areal_core._offload.crew import Crew, Most, set_most
from areal_core._offload.lane import LimitExceededError, abandoned_threads
from areal_core._offload.stats import OffloadStats
from areal_core._offload.worker import main_can_be_imported, refuse_while_main_is_imported
from areal_core.errors import WorkerDiedError

__all__ = [
    "OffloadStats",
    "Place",
    "WorkerDiedError",
    "abandoned_threads",
    "configure_offload",
    "offloaded",
]

P = ParamSpec("P")
T = TypeVar("T")

Place = Literal["loop", "thread", "process"]
"""Where a call is made."""


@overload
def offloaded(
    fn: Callable[P, Coroutine[Any, Any, T]], *, to: Literal["loop"], time_limit: float | None = None
) -> Callable[P, Coroutine[Any, Any, T]]: ...


@overload
def offloaded(
    fn: Callable[P, T], *, to: Place = "thread", time_limit: float | None = None
) -> Callable[P, Coroutine[Any, Any, T]]: ...


def offloaded(
    fn: Callable[..., Any], *, to: Place = "thread", time_limit: float | None = None
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a coroutine function that calls *fn* in the place *to*, and gives what it returns or raises.

    *time_limit* is in seconds, None is no limit; a call that takes longer raises TimeoutError. On the loop,
    *fn* may return an awaitable, which is awaited; the limit is for that alone, as *fn* itself cannot be
    interrupted. The picture at the top of this module has the rest.

    Raises TypeError for what cannot be called there: ``async def`` anywhere but on the loop, and what cannot
    be pickled in a process. The calls raise TypeError for arguments that cannot be pickled, WorkerDiedError
    when the worker process ended, and what *fn* raised, with the traceback it had in the process below it;
    an error that cannot be pickled comes as a RuntimeError that has its name and text.
    """
    return offloaded_as(Names(), fn, to, time_limit)


def configure_offload(*, max_threads: int | None = None, max_processes: int | None = None) -> None:
    """Set how many offloaded calls are made at once on one loop, in threads and in worker processes.

    None is as many as is usual: processors in processes, and four more (32 at most) in threads. Loops on
    which a function was called already keep what they have, so a trainer calls this before its first rollout.
    Each worker process takes the memory of what its functions import.

    Raises TypeError and ValueError, and RuntimeError on a loop that has others; then nothing is set.
    """
    set_most(
        Most(
            None if max_threads is None else check_integer("max_threads", max_threads, least=1),
            None if max_processes is None else check_integer("max_processes", max_processes, least=1),
        )
    )


class Names(NamedTuple):
    """What messages call the parameters of `offloaded`."""

    fn: str = "fn"
    place: str = "to"
    limit: str = "time_limit"


def offloaded_as(
    names: Names, fn: Callable[..., Any], place: Place, time_limit: float | None
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Do what `offloaded` does, for those whose own callers know its parameters by other *names*."""
    if not callable(fn):
        raise TypeError(f"{names.fn}={fn!r} cannot be called; give a function")
    if place not in get_args(Place):
        places = ", ".join(map(repr, get_args(Place)))
        raise ValueError(f"{names.place}={place!r} is no place; give one of {places}")
    limit_s = None if time_limit is None else check_seconds(names.limit, time_limit)
    what = _What(_name(fn), limit_s, names)
    if place != "loop" and _is_async(fn):
        raise TypeError(f"{what.name} is async: only an event loop can run it; use {what.at('loop')}")
    if place == "process":
        _check_pickles(fn, what)
    call = {"loop": _on_loop, "thread": _in_thread, "process": _in_process}[place]

    async def make_call(*args: Any, **kwargs: Any) -> Any:
        return await call(what, (fn, args, kwargs))

    return functools.update_wrapper(make_call, fn, updated=())


_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class _What(NamedTuple):
    """What is offloaded."""

    name: str
    limit_s: float | None
    names: Names

    def at(self, place: Place) -> str:
        """Say what to give to have it called in *place*."""
        return f"{self.names.place}={place!r}"

    def over_time(self, outcome: str) -> TimeoutError:
        return TimeoutError(f"{self.name} took longer than {self.names.limit}={self.limit_s:g} s: {outcome}")


async def _on_loop(what: _What, call: _Call) -> Any:
    value = _called(call)
    if not inspect.isawaitable(value):
        return value
    clock = asyncio.timeout(what.limit_s)
    try:
        async with clock:
            return await value
    except TimeoutError:
        if clock.expired():
            raise what.over_time("it was cancelled") from None
        raise


async def _in_thread(what: _What, call: _Call) -> Any:
    try:
        return await Crew.here().in_thread(functools.partial(_called_in_thread, what, call), what.limit_s)
    except LimitExceededError:
        outcome = f"its thread goes on, one of {abandoned_threads()}; {what.at('process')} can stop it"
        raise what.over_time(outcome) from None


async def _in_process(what: _What, call: _Call) -> Any:
    refuse_while_main_is_imported()
    try:
        return await Crew.here().in_process(what.name, call, what.limit_s)
    except LimitExceededError:
        raise what.over_time("its process was killed") from None


def _called(call: _Call) -> Any:
    fn, args, kwargs = call
    return fn(*args, **kwargs)


def _called_in_thread(what: _What, call: _Call) -> Any:
    value = _called(call)
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError(
            f"{what.name} returned a coroutine, which only an event loop can run; use {what.at('loop')}"
        )
    return value


def _is_async(fn: Callable[..., Any]) -> bool:
    inner = _inner(fn)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)


def _check_pickles(fn: Callable[..., Any], what: _What) -> None:
    try:
        pickle.dumps(fn, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise TypeError(
            f"{what.name} cannot be sent to a worker process: {error}; define it with def at the top level "
            f"of a module, give what is returned here another name, or use {what.at('thread')}"
        ) from error
    if _inner(fn).__module__ == "__main__" and not main_can_be_imported():
        raise TypeError(
            f"{what.name} is defined in a program that is no file, or a __main__.py, which no worker process "
            f"can import; put it in a module, or use {what.at('thread')}"
        )


def _name(fn: Callable[..., Any]) -> str:
    """Return module and name of *fn*, never its repr: a partial's shows the arguments."""
    inner = _inner(fn)
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{named.__module__}.{named.__qualname__}"


def _inner(fn: Any) -> Any:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn
