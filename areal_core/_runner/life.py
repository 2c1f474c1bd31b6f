"""One life of a runner, from ``initialize`` to the end of its thread: the parts, wired together."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from areal_core import _process
from areal_core._runner import exit_hook, shutdown
from areal_core._runner.calls import Call, Calls
from areal_core._runner.ending import Ending
from areal_core._runner.events import Events
from areal_core._runner.gate import Gate, GateEvent
from areal_core._runner.guest import Guest
from areal_core._runner.job import Job
from areal_core._runner.late_pool import LatePool
from areal_core._runner.launcher import Launcher, labels_of, task_of
from areal_core._runner.ledger import Ledger
from areal_core._runner.loop_thread import LoopFactory, LoopThread

DESTROY_TIMEOUT_S = 30.0
_RESERVE_S = 1.0  # of destroy's timeout, or a fifth of it, for the loop's own close
_GIVE_UP_S = 5.0  # it takes no time, unless what blocks the loop holds a lock that it needs
_JOIN_S = 1.0  # from the thread's last line to its end, which takes microseconds

_STOPPED = Ending("the runner was destroyed; initialize() starts it again")


@dataclass(frozen=True, slots=True)
class LifeSettings:
    """What a runner's lives have in common; checked by the runner."""

    max_queue_size: int
    cancel_grace_s: float
    tracing: bool
    loop_factory: LoopFactory | None


class Life:
    """One loop thread, with the ledger and the calls it serves. It does not know its runner."""

    def __init__(self, settings: LifeSettings, exiting: GateEvent, logger: Any) -> None:
        self.home = _process.home()
        self._cancel_grace_s = settings.cancel_grace_s
        self._exiting = exiting
        self._events = Events(logger)
        self._deadline: float | None = None
        self._patient: list[float] = []  # until when the calls of end() that are under way wait
        self._left_behind = False
        self._leaving = threading.Lock()
        self.thread = LoopThread(settings.loop_factory, self._events, self._on_fault, self._on_end)
        self.ledger = Ledger(settings.max_queue_size, self._request_start, self._request_cancel)
        self._calls = Calls(self._events.task_ended_badly)
        self._task_launcher = Launcher(
            self.thread,
            self.ledger,
            self._events,
            settings.cancel_grace_s,
            settings.tracing,
            publish_at_once=True,
        )
        self._call_launcher = Launcher(
            self.thread, self._calls, None, settings.cancel_grace_s, publish_at_once=True
        )
        self._guests: list[tuple[Guest, Launcher]] = []
        # Ours, because the loop's own cannot be waited for with a limit.
        self._executor = LatePool("areal-core")

    @property
    def ending(self) -> Ending | None:
        """Why nothing more starts; None while the life goes on."""
        return self.ledger.shelf.ending

    @property
    def abandoned(self) -> int:
        """How many tasks outlived their outcome and go on."""
        return sum(len(launcher.abandoned) for launcher in self._launchers())

    def _launchers(self) -> list[Launcher]:
        return [self._task_launcher, *(launcher for _, launcher in self._guests)]

    def start(self) -> None:
        """Start the thread and its loop. Raises what failed there; the caller then requests its end."""
        try:
            exit_hook.add(self)
            self.thread.start()
            self.thread.loop.set_default_executor(self._executor)
        except BaseException:
            exit_hook.discard(self)
            raise

    def succeed(self, predecessor: Life) -> None:
        """Carry on the counters of *predecessor*, and drop, with a warning, what was never collected."""
        dropped = self.ledger.succeed(predecessor.ledger)
        if dropped:
            self._tell(self._events.results_discarded, dropped)

    # -- work --------------------------------------------------------------------------------------

    def cancel(self, task_id: int) -> bool:
        """Decide that a task is cancelled; return whether that stands."""
        stands, ended = self.ledger.cancel(task_id)
        if ended is not None:
            self._tell(self._events.task_ended_badly, ended)
        return stands

    def call(self, call: Call) -> None:
        """Run a coroutine outside the ledger. Raises the ending; one that comes later arrives."""
        self._calls.add(call)
        self._post(self._call_launcher.launch, [call])

    def host(self, guest: Guest) -> Launcher:
        """Return what starts the jobs of *guest*, on the loop thread only. Raises the ending."""
        launcher = Launcher(self.thread, guest, None, self._cancel_grace_s)
        self._guests.append((guest, launcher))  # first: an ending that comes now is told to it
        self.ledger.shelf.raise_if_ended()
        return launcher

    def cancel_call(self, call: Call) -> None:
        """Cancel the coroutine of a call whose caller has gone, if it came so far as to be started."""
        self._calls.forget(call)
        self._post(_cancel_task, call)

    def _tell(self, log: Callable[..., None], *args: Any) -> None:
        # On the loop thread: a Ctrl-C in a log handler would leave the handler's lock held for good.
        self._post(log, *args)

    def _post(self, callback: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed a moment ago: all calls have arrived
            self.thread.post(callback, *args)

    def _request_start(self) -> None:
        self.thread.post(self._start_pending)

    def _start_pending(self) -> None:
        if not self._task_launcher.skipped:  # else it is asked for again when they are pending too
            self._task_launcher.launch(self.ledger.take_pending())

    def _request_cancel(self) -> None:
        self.thread.post(self._cancel_decided)

    def _cancel_decided(self) -> None:
        for job in self.ledger.take_cancelled():
            self._task_launcher.cancel(job)

    # -- ending, from any thread -------------------------------------------------------------------

    def end(self, timeout: float | None) -> None:
        """Stop everything and wait for the thread, *timeout* seconds at most, then leave it behind."""
        mine = math.inf if timeout is None else time.monotonic() + timeout
        if self._deadline is None:
            self._deadline = mine - (0.0 if timeout is None else min(_RESERVE_S, timeout / 5))
        self.request_end()
        if self._left_behind:
            return
        try:
            self._patient.append(mine)  # in here, or a Ctrl-C could leave it there for good
            if self.thread.finished.wait(timeout):
                self.thread.thread.join(_JOIN_S)
            elif max(self._patient) <= mine:  # else another call waits longer, and it ends well perhaps
                self._leave_behind()
        finally:
            self._patient.remove(mine)

    def request_end(self) -> None:
        """Begin to stop everything, without blocking."""
        self._end_with(_STOPPED)
        self.thread.request_stop()

    def leave(self, deadline: float) -> None:
        """Begin to stop everything, silently, and be done at *deadline*: the interpreter exits."""
        self._events.silent = True
        self._deadline = deadline
        self.request_end()

    def join(self, deadline: float) -> None:
        """Wait for the thread until *deadline*, and then for nothing of its life any more."""
        if not self.thread.finished.wait(deadline - time.monotonic()):
            shutdown.shut_down_executor(self._executor, deadline)

    def _end_with(self, ending: Ending) -> None:
        self.ledger.end(ending, self._exiting)
        self._calls.end(ending)

    def _leave_behind(self) -> None:
        # In a thread of its own: a Ctrl-C here would leave the lock of a log handler held for good.
        given_up = Gate()
        exit_hook.run_aside(partial(self._give_up_once, given_up))
        given_up.wait(_GIVE_UP_S)

    def _give_up_once(self, given_up: Gate) -> None:
        try:
            with self._leaving:  # several may have waited in vain
                if not self._left_behind:
                    self._give_up_thread()
                self._left_behind = True
        finally:
            given_up.open()

    def _give_up_thread(self) -> None:
        self._events.thread_left_behind(self.thread.stack())
        self.ledger.decide_all()
        stuck = self.ledger.still_running()
        self._give_up_tasks(self._task_launcher, stuck)
        self.ledger.abandon(stuck)
        for guest, launcher in self._guests:
            guest.begin_end(_STOPPED)
            theirs = list(guest.jobs())
            self._give_up_tasks(launcher, theirs)
            guest.finish_end()
            stuck += theirs
        if stuck:
            self._events.tasks_abandoned([job.label for job in stuck])

    def _give_up_tasks(self, launcher: Launcher, stuck: Sequence[Job]) -> None:
        for job in stuck:
            job.task = task_of(job, self.thread.loop)
        labels = labels_of(stuck)
        launcher.abandoned.update(labels)
        self._post(launcher.watch, labels)

    # -- ending, on the loop thread ----------------------------------------------------------------

    def _on_fault(self, fault: BaseException) -> None:
        self._end_with(Ending("the runner died", fault))
        self._events.runner_died(fault)

    def _on_end(self) -> None:
        self._events.ending = True
        deadline = self._deadline or time.monotonic() + DESTROY_TIMEOUT_S
        loop = self.thread.loop
        for guest, launcher in self._guests:
            launcher.flush()
            guest.begin_end(self.ending or _STOPPED)
        decided = self.ledger.decide_all()
        patience_s = min(self._cancel_grace_s, (deadline - time.monotonic()) / 2)
        closing = shutdown.Closing(loop, self._events)
        closing.cancel_tasks(patience_s)
        for launcher in (self._call_launcher, *self._launchers()):
            launcher.flush()
        ended = len({*decided}.difference(self._abandon_the_rest(loop)))
        if ended:
            self._events.tasks_cancelled(ended)
        closing.close(self._executor, deadline, self._cancel_grace_s)
        exit_hook.discard(self)

    def _abandon_the_rest(self, loop: asyncio.AbstractEventLoop) -> Sequence[Job]:
        """Give up what did not end; return those that were tasks of the ledger's."""
        stuck = self.ledger.still_running()
        labels = labels_of(stuck)
        known = labels_of(self._calls.ended)
        for launcher in self._launchers():
            known |= launcher.abandoned
        self._task_launcher.watch(labels)
        self.ledger.abandon(stuck)
        for guest, launcher in self._guests:
            theirs = labels_of(guest.jobs())
            launcher.watch(theirs)
            guest.finish_end()
            labels |= theirs
        others = [known.get(task) or _name_of(task) for task in asyncio.all_tasks(loop) - labels.keys()]
        if labels or others:
            self._events.tasks_abandoned([*labels.values(), *others])
        return stuck


def _name_of(task: asyncio.Task[Any]) -> str:
    try:
        return task.get_name()
    except BaseException:  # a task class may have none, or refuse
        return type(task).__qualname__


def _cancel_task(job: Job) -> None:
    if job.task is not None:
        job.task.cancel()
