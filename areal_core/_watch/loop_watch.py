"""Say which function keeps an event loop from turning, and for how long.

::

    watching thread                            loop thread
    post a heartbeat ----------------------->  answers when its turn comes ---> next one, half a threshold on
    no answer for half the threshold:          is in a callback
      look where the loop thread is
    still none, at the threshold: look again   is in the same call
      ...                                      comes to the heartbeat
    report what was there at all looks  <---

A function is accused when two looks find the very same call of it while one heartbeat is on its way. A loop
that is busy with many short callbacks is in another call each time. One look is enough where no second was
possible: C code that holds the GIL, as `re` does, keeps the watching thread from looking until it is over.
The first look then comes right after it, with the caller still in that line. Whether it was the loop thread
that computed meanwhile is for the system to tell, and only Linux does; what is in doubt is not reported.

What blocks for less than the threshold is never reported as that, what blocks for half as long again always
is. Many that are shorter are named together when they keep the loop late for most of the time. At
rest the thread waits for a lock, and nothing is posted.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Literal, NamedTuple

from areal_core._log import get_logger
from areal_core._runner.gate import Gate, thread_of_gates
from areal_core._watch.blame import Blame
from areal_core._watch.lateness import Late
from areal_core._watch.looks import Blocked, Looks
from areal_core._watch.processor_time import ProcessorTime, processor_time
from areal_core._watch.user_frames import depth

__all__ = ["Blocked", "Late", "LoopWatch"]

_LONGEST_PAUSE_S = 1.0  # between looks at what goes on for long
_LAGS = 16  # of the last second or two, at the usual threshold
_STOPPED_S = 5.0  # the thread ends at once, unless *report* blocks


class LoopWatch:
    """Watches *loop*, which runs in the thread *thread_id*, from `begin` to `rest`.

    *report* is called in the watching thread for what blocks the loop for *threshold_s* seconds or more, and
    for what is shorter but keeps it late for most of the time (see `lateness`). The first error that it
    raises is logged. The thread is started by the first `begin` and ends with `stop`, with this object, or
    with the loop. It keeps neither this object nor the interpreter alive.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        thread_id: int,
        threshold_s: float,
        report: Callable[[Blocked | Late], None],
    ) -> None:
        self.loop = loop
        self.report = report
        self._watcher = _Watcher(weakref.ref(self), thread_id, threshold_s)
        self._thread: threading.Thread | None = None
        self._watcher.post(self)  # its answer is known when the first block comes
        weakref.finalize(self, self._watcher.stop).atexit = False

    def begin(self) -> None:
        """Watch from now on; from any thread. Cheap, and nothing happens where it does, or after `stop`."""
        if self._thread is None:
            thread = thread_of_gates(self._watcher.run, "areal-core-watch", daemon=True)
            thread.start()
            self._thread = thread
        self._watcher.begin()

    @property
    def lag_s(self) -> float | None:
        """How late the loop came, or still is, to the latest heartbeats, at worst.

        None before the first, and at rest.
        """
        watcher = self._watcher
        if not watcher.active:
            return None
        asked = watcher.asked
        waits_s = 0.0 if asked is None else time.monotonic() - asked
        # A block that goes on has had no answer yet. A heartbeat that is on its way says nothing else.
        unanswered = [waits_s] if waits_s >= watcher.half_s else []
        return max([*tuple(watcher.lags), *unanswered], default=None)

    @property
    def blamed(self) -> Blame | None:
        """Who was last found to keep the loop late, reported or not; None: nobody was. From any thread."""
        return self._watcher.looks.blamed

    def rest(self) -> None:
        """Watch no more until the next `begin`; from any thread. What blocks just now is still reported."""
        self._watcher.active = False

    def leave(self) -> None:
        """End the thread soon, without waiting for it; from any thread, any number of times."""
        self._watcher.stop()

    def stop(self) -> None:
        """End the thread, and return when it has ended; from any thread, any number of times.

        What blocks the loop just now is reported as it is.
        """
        self._watcher.stop()
        thread = self._thread
        # Not join alone: it misses the end after a Ctrl-C on 3.11.
        if (
            thread is not None
            and thread is not threading.current_thread()
            and self._watcher.finished.wait(_STOPPED_S)
        ):
            thread.join(_STOPPED_S)


class Answer(NamedTuple):
    """What the loop says to a heartbeat."""

    number: int
    at: float
    """Monotonic seconds."""
    base: int
    """How many frames run the loop: what is above them belongs to a callback."""
    native_id: int
    """The loop thread's."""


_Times = tuple[ProcessorTime | None, ProcessorTime | None]
_Message = Answer | Literal["begin", "stop"]


def _answer(inbox: SimpleQueue[_Message], number: int) -> None:
    inbox.put(Answer(number, time.monotonic(), depth(sys._getframe(1)), threading.get_native_id()))


class _Watcher:
    """What the watching thread runs. It refers to its owner weakly."""

    def __init__(self, owner: weakref.ref[LoopWatch], thread_id: int, threshold_s: float) -> None:
        self.active = False
        self.finished = Gate()
        self._owner = owner
        self._threshold_s = threshold_s
        self.half_s = threshold_s / 2
        self.looks = Looks(thread_id, threshold_s, self._report)
        # A queue in C: a Ctrl-C in who puts something leaves no lock held.
        self._inbox: SimpleQueue[_Message] = SimpleQueue()
        self._asleep = False
        self._stopping = False
        self._number = 0
        self.lags: deque[float] = deque(maxlen=_LAGS)
        """How late the latest heartbeats were, in seconds."""
        self.asked: float | None = None
        """Since when a heartbeat has had no answer; None: none is on its way."""
        self._last: Answer | None = None
        self._held_gil = False
        self._has_looked = False
        self._failed = False
        self._running = threading.Lock()

    def begin(self) -> None:
        self.active = True  # first: the thread says that it is asleep before it looks at this
        if self._asleep:
            self._inbox.put("begin")

    def stop(self) -> None:
        self._stopping = True
        self._inbox.put("stop")

    def run(self) -> None:
        if not self._running.acquire(blocking=False):
            return  # a Ctrl-C kept begin() from noting that it had started one
        try:
            while not self._stopping:
                self._sleep()
                self._watch()
        finally:
            self.finished.open()

    def _sleep(self) -> None:
        self._asleep = True
        while not self.active and not self._stopping:
            self._received(self._inbox.get())
        self._asleep = False

    def _watch(self) -> None:
        begun = time.monotonic()
        while self.active and not self._stopping:
            self._number += 1
            self._glance()
            if not self.post(self._owner()):
                self.stop()
                return
            answered = self._wait_for_answer(begun)
            # A pause also where there is nothing to watch any more: that may change in no time.
            begun = self._pause(max(begun + self.half_s, answered))

    def _glance(self) -> None:
        owner, last = self._owner(), self._last
        if owner is not None and last is not None and owner.loop.is_running():
            self.looks.glance(last.base)

    def post(self, owner: LoopWatch | None) -> bool:
        """Post a heartbeat and return whether that could be done."""
        if owner is None:
            return False
        context = contextvars.Context()
        try:
            owner.loop.call_soon_threadsafe(_answer, self._inbox, self._number, context=context)
        except RuntimeError:
            return False  # the loop is closed
        return True

    def _wait_for_answer(self, begun: float) -> float:
        """Look again and again until the heartbeat is answered, and return when that was."""
        pause_s = self.half_s
        due = time.monotonic() + pause_s
        answer = None
        self.asked = begun
        while answer is None and not self._stopping:
            message = self._next_message(due, begun)
            if isinstance(message, Answer):
                answer = message if message.number == self._number else None
            elif message is None:
                if not self._took_look():
                    self._look(begun)
                # Again: a Ctrl-C can lose what a loop in the main thread was about to run.
                if not self.post(self._owner()):
                    self.stop()
                due = time.monotonic() + pause_s
                pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
        ended = time.monotonic() if answer is None else answer.at
        self.asked = None
        self.lags.append(max(0.0, ended - begun))
        self.looks.end(begun, ended, answer is not None)
        self._let_go()
        return ended

    def _pause(self, until: float) -> float:
        """Wait *until* then, and return from when on the next heartbeat is late."""
        while not self._stopping and self._next_message(until, until) is not None:
            pass
        has_looked = self._took_look()
        if not self._held_gil:
            self.looks.forget()
            return time.monotonic()
        if not has_looked:
            self._look(until)
        self._held_gil = False
        return until

    def _took_look(self) -> bool:
        """Return whether the last wait ended so late that a look was made at once."""
        has_looked, self._has_looked = self._has_looked, False
        return has_looked

    def _next_message(self, until: float, since: float) -> _Message | None:
        """Return what comes until then; None when nothing does. Note whether the loop thread held that up.

        The loop has answered nothing *since*.
        """
        begun, before = time.monotonic(), self._times()
        try:
            message = self._received(self._inbox.get(timeout=max(0.0, until - begun)))
        except Empty:
            message = None
        expected = message.at if isinstance(message, Answer) else until
        if time.monotonic() - expected >= self._threshold_s:
            if message is None:
                self._look(since, True)  # reading the times lets the loop thread go on
                self._has_looked = True
            held = self._was_held_up(before, expected - begun)
            self._held_gil |= held
            if held and message is None:
                self.looks.be_sure()
        return message

    def _received(self, message: _Message) -> _Message:
        if isinstance(message, Answer):
            self._last = message
        return message

    def _times(self) -> _Times:
        """Return those of the loop thread and of this one."""
        loop_id = None if self._last is None else self._last.native_id
        return processor_time(loop_id), processor_time(threading.get_native_id())

    def _was_held_up(self, before: _Times, expected_s: float) -> bool:
        """Tell whether this thread waited for the GIL while the loop thread computed.

        That has computed for longer than this one was to wait, and had to wait for a processor. Python code
        would have given the GIL away after 5 ms.
        """
        (loop_before, own_before), (loop_now, own_now) = before, self._times()
        if loop_before is None or loop_now is None or own_before is None or own_now is None:
            return False
        computed_s = loop_now.running - loop_before.running
        return computed_s - max(0.0, expected_s) - (own_now.waiting - own_before.waiting) >= self.half_s

    def _look(self, begun: float, at_once: bool = False) -> None:
        held_gil = self._held_gil and not at_once
        if not at_once:
            self._held_gil = False
        owner, last = self._owner(), self._last
        # Before the first answer nobody can tell what runs the loop from what is run by it.
        if owner is not None and last is not None and owner.loop.is_running():
            self.looks.look(last.base, begun, held_gil, at_once)

    def _let_go(self) -> None:
        """Have the frames dropped in the loop thread: they may be the last to hold what was in them."""
        frames = self.looks.frames()
        owner = self._owner()
        if frames and owner is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                owner.loop.call_soon_threadsafe(frames.clear)

    def _report(self, blocked: Blocked | Late) -> None:
        owner = self._owner()
        if owner is None:
            return
        try:
            owner.report(blocked)
        except Exception as error:
            self._note_failed(blocked, error)

    def _note_failed(self, blocked: Blocked | Late, error: Exception) -> None:
        if self._failed:
            return
        self._failed = True
        with contextlib.suppress(Exception):  # a handler's: the loop is to be watched whatever they do
            get_logger().error("loop_watch_report_failed", function=blocked.function, exc_info=error)
