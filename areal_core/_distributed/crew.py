"""The actors of Ray that are the workers: how they start, are tried again, answer calls, and end."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import ray
import ray.cloudpickle
from msgspec import Struct, field

from areal_core._distributed.letters import Letter
from areal_core._distributed.pace import Beats
from areal_core._distributed.ray_calls import ask, in_turn, in_words, kill, result_of
from areal_core._distributed.wire import InTurn, load_error
from areal_core._distributed.worker import TAKES, Setup, Worker
from areal_core._runner.life import Life
from areal_core.errors import RunnerStoppedError, WorkerLostError

_GROUPS = {"give": 1, "take": TAKES, "run": 8, "end": 1, "stop": 1}
_NEEDS = ("num_cpus", "num_gpus", "memory", "resources", "accelerator_type")
_MOST_DOUBLINGS = 10
_RETRY_S = (1.0, 30.0)  # from the first to the longest wait before a worker that failed is started again
_SETTLED_S = 60.0  # whoever dies later than that, or has brought something, has not failed
_LOOK_S = 10.0
_PATIENCE_S = 60.0  # how long a worker may take to start before that is said
_SAY_AGAIN_S = 600.0
_STOP_S = 1.0

dumps: Callable[[Any], bytes] = ray.cloudpickle.dumps
loads: Callable[[bytes], Any] = ray.cloudpickle.loads


class Actor(Struct, eq=False):
    """A worker, as it is known here, from when it is wanted."""

    number: int
    wanted_at: float
    letter: Letter
    """What is to be sent to it."""
    handle: Any = None
    """None: it was not tried to start it so far."""
    failures: int = 0
    """How often it, and those in whose place it is, failed one after the other."""
    joined_at: float | None = None
    """When it had started; None: it has not."""
    has_brought: bool = False
    """Whether an episode has ended there."""
    is_leaving: bool = False
    """Whether it is to go, and nobody is to take its place."""
    is_ending: bool = False
    """Whether it has nothing any more, and is about to end."""
    reports: InTurn = field(default_factory=InTurn)
    beats: Beats = field(default_factory=Beats)
    takes: int = 0
    """How many calls that fetch from it are under way."""
    failed: str | None = None
    """Why it is taken for lost as soon as none is; None: it is not."""

    @property
    def pause_s(self) -> float:
        """How long to wait before it, or who takes its place, is started again."""
        least, most = _RETRY_S
        return min(most, least * 2.0 ** min(self.failures, _MOST_DOUBLINGS))


class Crew:
    """Has as many workers as are wanted. All but what callers' threads do happens on the loop thread.

    *options* are those of `ray.remote` for each actor. *on_start* is called with each that has started later
    than the first. *log* is called with an event and its fields.
    """

    def __init__(
        self,
        setup: Setup,
        options: Mapping[str, Any],
        life: Life,
        on_start: Callable[[Actor], None],
        log: Callable[..., None],
    ) -> None:
        self._setup = dumps(setup)
        needs = {"num_cpus": 1, **options}  # where none is named, Ray wants one for the start
        self._needs = ", ".join(f"{name}={needs[name]!r}" for name in _NEEDS if name in needs)
        self._life = life
        self._on_start = on_start
        self._log = log
        self._remote = ray.remote(max_restarts=0, concurrency_groups=_GROUPS, **options)(Worker)
        self._numbers = itertools.count(1)
        self._calls = itertools.count(1)
        self.actors: dict[int, Actor] = {}
        """Those that are wanted, and those that leave and are not gone yet."""
        self._said_at = -math.inf
        self.is_closed = False

    # -- from callers' threads ---------------------------------------------------------------------

    @property
    def starting(self) -> list[Actor]:
        """Those that are wanted and not there so far."""
        return [actor for actor in list(self.actors.values()) if actor.joined_at is None]

    @property
    def wanted(self) -> int:
        """How many are to be there."""
        return sum(not actor.is_leaving for actor in list(self.actors.values()))

    def begin(self, count: int, timeout_s: float) -> list[Actor]:
        """Start *count* workers and wait for them.

        Raises what making an engine raises; TimeoutError after *timeout_s* seconds; RuntimeError where Ray
        keeps one from starting.
        """
        began = time.monotonic()
        actors = [self._new() for _ in range(count)]
        self.post(self._look_at_starts)
        asked = {self._start(actor): actor for actor in actors}
        for ref in in_turn(asked, timeout_s):
            _raise_what_failed(asked[ref], ref, time.monotonic() - began)
            asked[ref].joined_at = time.monotonic()
        late = [ref for ref, actor in asked.items() if actor.joined_at is None]
        if late:
            raise TimeoutError(
                f"{_names([asked[ref] for ref in late])} did not start within {timeout_s:g} s: Ray has no "
                f"room for {self._needs}, or make_engine() takes longer; free processors, ask for fewer "
                "(num_cpus in ray_options), or begin with fewer workers and add_workers() later"
            ) from _timeout_of(late[0])
        return actors

    def call_all(
        self, async_fn: Callable[..., Any], args: tuple[Any, ...], timeout_s: float | None
    ) -> list[Any]:
        """Run a coroutine function on each worker's loop, and return the values. Raises what one raises.

        TimeoutError where some gave no answer in *timeout_s* seconds, WorkerLostError where one died or was
        removed, or none is there. Whatever it raises, or is interrupted by, it ends the calls that are left.
        """
        call, number = dumps((async_fn, args)), next(self._calls)
        there = [actor for actor in list(self.actors.values()) if actor.joined_at is not None]
        if not there:
            raise WorkerLostError(
                f"no worker is there to run {async_fn!r}, {len(self.starting)} are starting; wait until "
                "workers() has some"
            )
        asked: dict[Any, Actor] = {}
        values: dict[Any, Any] = {}
        try:
            for actor in there:
                asked[ask(actor.handle.run, "run", call, number, timeout_s)] = actor
            for ref in in_turn(asked, timeout_s):
                values[ref] = self._answer(asked[ref], ref, async_fn)
        finally:
            late = [actor for ref, actor in asked.items() if ref not in values]
            for actor in late:
                with contextlib.suppress(Exception):  # it may be gone
                    ask(actor.handle.end_call, "end", number)
        if late:
            raise TimeoutError(
                f"{_names(late)} did not answer {async_fn!r} within {timeout_s:g} s; give it longer, or see "
                "workers() for whose loop does not turn"
            )
        return [values[ref] for ref in asked]

    def _answer(self, actor: Actor, ref: Any, async_fn: Callable[..., Any]) -> Any:
        try:
            went_well, value = result_of(ref)
        except ray.exceptions.RayError as error:
            why = "it was removed" if actor.is_ending else in_words(error)
        else:
            if went_well:
                return loads(value)
            raised = load_error(value, loads)
            if not (actor.is_ending and isinstance(raised, RunnerStoppedError)):
                raise raised
            why = "it was removed"
        raise WorkerLostError(f"worker {actor.number} was lost while it ran {async_fn!r}: {why}")

    def add(self, count: int) -> None:
        """Have *count* workers more. Raises RuntimeError past the loop's end."""
        self._life.thread.post(self._add, count)

    def close(self, timeout_s: float) -> None:
        """End all workers, in *timeout_s* seconds, or kill them."""
        self.is_closed = True
        actors = list(self.actors.values())
        self.actors.clear()
        stops = []
        try:
            for actor in actors:
                if actor.joined_at is not None:
                    with contextlib.suppress(Exception):  # of one that is gone
                        stops.append(ask(actor.handle.stop, "stop", timeout_s))
            with contextlib.suppress(Exception):  # of Ray, which may be gone, or going
                for _ in in_turn(stops, timeout_s):
                    pass
        finally:
            for actor in actors:
                kill(actor.handle)

    # -- on the loop thread ------------------------------------------------------------------------

    def _add(self, count: int) -> None:
        for _ in range(count):
            self._try(self._new())

    def drop(self, count: int) -> list[int]:
        """Give up *count* of those that have not started, or as many as there are; return their numbers."""
        actors = self.starting[::-1][:count]
        for actor in actors:
            del self.actors[actor.number]
            self.post(kill, actor.handle)
        return [actor.number for actor in actors]

    def gone(self, number: int, *, has_died: bool) -> None:
        """Take one out, and start another in the place of one that died and was to stay."""
        actor = self.actors.pop(number, None)
        if actor is None or self.is_closed or actor.is_leaving or not has_died:
            return
        heir = self._new()
        if actor.has_brought or time.monotonic() - (actor.joined_at or 0.0) >= _SETTLED_S:
            self.post(self._try, heir)
        else:
            heir.failures = actor.failures + 1
            self.post(self._life.thread.call_later, actor.pause_s, self._try, heir)

    def retire(self, actor: Actor) -> None:
        """Let one end that has nothing any more."""
        with contextlib.suppress(Exception):
            ask(actor.handle.stop, "stop", _STOP_S)
        self._life.thread.call_later(2 * _STOP_S, kill, actor.handle)

    def post(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call *callback* on the loop thread, if there is one; from any thread."""
        try:
            self._life.thread.post(callback, *args)
        except RuntimeError:  # the loop was closed a moment ago
            pass

    # -- starts ------------------------------------------------------------------------------------

    def _new(self) -> Actor:
        actor = Actor(next(self._numbers), time.monotonic(), Letter())
        self.actors[actor.number] = actor
        return actor

    def _start(self, actor: Actor) -> Any:
        """Begin to start *actor*; return what is there when it has started."""
        actor.handle = ask(self._remote, None, self._setup, loads, dumps)
        return ask(actor.handle.begin, None, True)

    def _try(self, actor: Actor) -> None:
        if self._is_given_up(actor):
            return
        try:
            future: Future[Any] = self._start(actor).future()
        except Exception as error:  # of Ray, which goes down
            self._try_again(actor, error)
            return
        future.add_done_callback(functools.partial(self.post, self._started, actor))

    def _started(self, actor: Actor, future: Future[Any]) -> None:
        if self._is_given_up(actor):
            return
        error = future.exception()
        if error is None and future.result() is not None:
            error = load_error(future.result(), loads)
        if error is None:
            self._on_start(actor)
        else:
            kill(actor.handle)
            self._try_again(actor, error)

    def _try_again(self, actor: Actor, error: BaseException) -> None:
        wait_s = actor.pause_s
        actor.failures += 1
        self._log("error", "worker_did_not_start", worker=actor.number, retry_in_s=wait_s, exc_info=error)
        self._life.thread.call_later(wait_s, self._try, actor)

    def _is_given_up(self, actor: Actor) -> bool:
        return self.is_closed or actor.number not in self.actors

    def _look_at_starts(self) -> None:
        """Say, after a while and then rarely, that workers do not start."""
        if self.is_closed:
            return
        now = time.monotonic()
        late = [actor for actor in self.starting if now - actor.wanted_at >= _PATIENCE_S]
        if late and now - self._said_at >= _SAY_AGAIN_S:
            self._said_at = now
            self._log(
                "warning",
                "workers_not_started",
                workers=[actor.number for actor in late],
                waited_s=round(now - late[0].wanted_at, 1),
                needs=self._needs,
            )
        self._life.thread.call_later(_LOOK_S, self._look_at_starts)


def _raise_what_failed(actor: Actor, ref: Any, passed_s: float) -> None:
    try:
        dumped = result_of(ref)
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"worker {actor.number} did not start: after {passed_s:.1f} s {in_words(error)}; see Ray's log "
            "of it, whether what it imports is there (runtime_env in ray_options), and whether it has memory"
        ) from error
    if dumped is not None:
        raise load_error(dumped, loads)


def _timeout_of(ref: Any) -> BaseException | None:
    said: BaseException | None = None
    try:
        result_of(ref, timeout_s=0)
    except (ray.exceptions.RayError, RuntimeError) as error:
        said = error
    return said


def _names(actors: Sequence[Actor]) -> str:
    numbers = ", ".join(str(actor.number) for actor in actors)
    return f"{'worker' if len(actors) == 1 else 'workers'} {numbers}"
