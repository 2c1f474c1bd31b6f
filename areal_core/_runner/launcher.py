"""Start jobs on the loop, and hand each outcome to a sink, once per loop turn."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from time import monotonic_ns
from typing import Any

from areal_core._frames import traceback_of
from areal_core._runner.events import Events
from areal_core._runner.job import NO_CONTEXT, Job, WithKeywords
from areal_core._runner.loop_thread import LoopThread
from areal_core._runner.sink import Sink

_Maker = Callable[[Coroutine[Any, Any, None], contextvars.Context], "asyncio.Task[None]"]


class Launcher:
    """Starts jobs, keeps their deadlines, cancels them, and publishes each exactly once.

    Everything here happens on the loop thread, ``abandoned`` excepted. A job ends in one of three ways:
    its coroutine ends; it was cancelled before its first step, so that it never ran; or its grace ends
    before it does, and it is abandoned. *events* is None where somebody else tells of the outcomes.

    What ends in its first step is published a turn later, when what was posted to the loop meanwhile has been
    heard; with *publish_at_once* before that, which spares whoever waits for it the turn.
    """

    def __init__(
        self,
        thread: LoopThread,
        sink: Sink,
        events: Events | None,
        cancel_grace_s: float,
        tracing: bool = False,
        *,
        publish_at_once: bool = False,
    ) -> None:
        self._thread = thread
        self._sink = sink
        self._events = events
        self._cancel_grace_s = cancel_grace_s
        self._tracing = tracing
        self._publish_at_once = publish_at_once
        self._on_deadline = self._expire  # made once, like the thread's: every timer holds it
        self._ended: list[Job] = []
        self.skipped: list[Job] = []
        """Launched, but a pause was faster. Until they are put back nothing starts that came after them."""
        self.abandoned: dict[asyncio.Task[None], str] = {}
        """Tasks that outlived their outcome and go on, and what to call them."""

    def launch(self, jobs: Sequence[Job]) -> None:
        """Start *jobs* in this order, each in its own context.

        At once, where the Python can do that and nobody wants other tasks: it saves a loop turn for each, and
        a task that ends at once is freed at once. On a loop that was stopped, and is about to be closed, none
        can.
        """
        loop = self._thread.loop
        if sys.version_info >= (3, 12) and loop.is_running() and loop.get_task_factory() is None:
            self._start_eagerly(jobs, loop)
        else:
            self._start_soon(jobs, _maker(loop))

    def _start_eagerly(self, jobs: Sequence[Job], loop: asyncio.AbstractEventLoop) -> None:
        make: Any = asyncio.Task  # as it is from 3.12 on
        unstarted = []
        for job in jobs:
            if job.decision is None:
                playing = self._play(job)
                try:
                    task = make(playing, loop=loop, context=job.context, eager_start=True)
                except BaseException as error:
                    self._not_started(job, playing, error)
                    continue
                if not job.finish_time or not task.done():
                    job.task = task
                    if not job.create_time:
                        unstarted.append(job)
            elif not job.finish_time:
                self._end_unstarted(job)
        self._see_first_steps(unstarted)

    def _start_soon(self, jobs: Sequence[Job], make: _Maker) -> None:
        for job in jobs:
            if job.decision is None:
                playing = self._play(job)
                try:
                    job.task = make(playing, job.context)
                except BaseException as error:  # by a task factory that somebody set on the loop
                    self._not_started(job, playing, error)
        # First steps run in the order of creation, so this comes after all of them.
        self._thread.call_soon(self._see_first_steps, jobs)

    def _not_started(self, job: Job, playing: Coroutine[Any, Any, None], error: BaseException) -> None:
        playing.close()
        if not job.finish_time:
            job.error = error
            self._end(job)

    def cancel(self, job: Job) -> None:
        """Cancel a job whose outcome is decided, and publish that when the grace ends, at the latest."""
        task = job.task
        if task is None:
            if job.create_time and not job.finish_time:  # its first step, begun at once, is not over yet
                self._thread.call_soon(self.cancel, job)
        elif not task.done():
            if job.timer is not None:
                job.timer.cancel()
            with contextlib.suppress(BaseException):  # a task class of somebody's may refuse in its own way
                task.cancel()
            # After it: uvloop turns a delay of 0 into call_soon, and the task's turn has to come first.
            job.timer = self._thread.call_later(self._cancel_grace_s, self._abandon, job)

    async def _play(self, job: Job) -> None:
        if job.decision is not None or self.skipped or self._sink.paused:
            self._skip(job)  # since the burst was launched
            return
        error = data = None
        fn, args = job.fn, job.args
        job.args, job.context = (), NO_CONTEXT  # or the outcome would keep them alive
        if type(fn) is WithKeywords:
            job.fn = fn.func
        job.create_time = monotonic_ns()
        if self._tracing and self._events is not None:
            self._events.task_started(job)
        try:
            if job.timeout is not None:
                job.timer = self._thread.call_later(job.timeout, self._on_deadline, job)
            data = await fn(*args)
        except BaseException as raised:  # SystemExit and KeyboardInterrupt too: only this task fails
            # Without our own frame the traceback is the task's alone, and keeps no job alive.
            error = _without_first_frame(raised)
        if not job.finish_time:
            job.data = data
            job.error = error
            self._end(job)
        del job, error  # from 3.12 on the error's traceback leads back to this frame

    def _end(self, job: Job) -> None:
        job.finish_time = monotonic_ns()
        job.create_time = job.create_time or job.finish_time
        if job.timer is not None:
            job.timer.cancel()
            job.timer = None
        if not self._ended:
            self._thread.call_soon(self.flush)
        self._ended.append(job)

    def _see_first_steps(self, jobs: Sequence[Job]) -> None:
        """Of a burst, end what was cancelled before its first step; publish, if that is to be at once."""
        for job in jobs:
            task = job.task
            if job.create_time or (task is not None and not task.done()):
                continue
            if job.decision is not None or (task is not None and task.cancelled()):
                self._end_unstarted(job)
        if self._publish_at_once:
            self.flush()

    def _end_unstarted(self, job: Job) -> None:
        job.error = asyncio.CancelledError(f"{job.noun} {job.task_id} was cancelled before it started")
        self._end(job)

    def _skip(self, job: Job) -> None:
        if job.decision is None:  # else see _see_first_steps
            if not self.skipped:
                self._thread.call_soon(self._put_back)  # after the first steps of all that is launched by now
            self.skipped.append(job)

    def _put_back(self) -> None:
        skipped, self.skipped = self.skipped, []
        unstarted = [job for job in skipped if not job.finish_time]
        for job in unstarted:
            job.task = None
        for job in self._sink.put_back(unstarted):
            self._end_unstarted(job)

    def _expire(self, job: Job) -> None:
        if self._sink.decide(job, "timed_out"):
            self.cancel(job)

    def _abandon(self, job: Job) -> None:
        self.watch(labels_of([job]))
        self._end(job)

    def watch(self, labels: dict[asyncio.Task[None], str]) -> None:
        """Count the tasks in *labels* as abandoned until they end."""
        self.abandoned.update(labels)
        for task in labels:
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self.abandoned.pop(task, None)

    def flush(self) -> None:
        """Publish what has ended since the last time."""
        if not self._ended:
            return
        jobs, self._ended = self._ended, []
        self._sink.publish(jobs)
        if self._events is not None:
            for job in jobs:
                if job.error is not None:
                    self._events.task_ended_badly(job)
                elif self._tracing:
                    self._events.task_completed(job)


def _without_first_frame(error: BaseException) -> BaseException:
    # Not error.with_traceback(): its class may have one of its own, that raises.
    traceback = traceback_of(error)
    return BaseException.with_traceback(error, traceback and traceback.tb_next)


def task_of(job: Job, loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any] | None:
    """Return the task of *job*, also when it blocks *loop* in a first step that began at once.

    From any thread. None: it has none.
    """
    if job.task is None and job.create_time and not job.finish_time:
        return asyncio.current_task(loop)
    return job.task


def labels_of(jobs: Iterable[Job]) -> dict[asyncio.Task[None], str]:
    """Return what to call the tasks of *jobs*, those that have one."""
    return {job.task: job.label for job in jobs if job.task is not None}


def _maker(loop: asyncio.AbstractEventLoop) -> _Maker:
    if loop.get_task_factory() is not None:
        return lambda coroutine, context: loop.create_task(coroutine, context=context)
    # A name given is one not made up for each task, which takes a tenth of its start.
    return lambda coroutine, context: asyncio.Task(coroutine, loop=loop, context=context, name="task")
