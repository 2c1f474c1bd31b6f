"""Where callers' threads and the loop thread meet.

The core belongs to whoever holds the lock, and that is the loop thread, which a Ctrl-C never interrupts.
Callers leave on the desk what is to be done, and wake it; what they wait for has a gate of its own. Once the
runner has ended there is no such thread: then a short-lived one does what is left here. A caller's own thread
takes no lock, and looks again when something changed meanwhile.

So nothing a caller's thread is interrupted in can leave the core half changed; and a signal handler, or a
finalizer, may call the executor in the middle of any call of the executor's: nobody waits for the thread that
it interrupts. Not so in the middle of a call of its runner's: a caller holds the lock of the runner's ledger
while it submits a task, and the loop thread takes that lock, too.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from areal_core._executor.books import RolloutLedger
from areal_core._executor.core import Core
from areal_core._executor.port import Timer, Tracer
from areal_core._executor.requests import Request
from areal_core._executor.rollout import Episode, Rollout
from areal_core._runner import exit_hook
from areal_core._runner.answer import Answer
from areal_core._runner.ending import Ending
from areal_core._runner.guest import Guest
from areal_core._runner.launcher import Launcher
from areal_core._runner.life import Life
from areal_core._watch.loop_watch import LoopWatch

R = TypeVar("R")

_Op = tuple[Callable[..., object], tuple[Any, ...]]

_LOOK_AGAIN_S = 0.05  # when whoever works may have come to what blocks him
_GLIMPSES = 5
_AT_A_TIME = 500  # things that are done before the loop turns: some milliseconds


class Whereabouts(NamedTuple):
    """What a desk knows of an episode beside its record."""

    task: object = None
    """What plays it on this loop; None: nothing does."""
    place: str | None = None
    """Who plays it elsewhere, in words; None: nobody does."""
    decision: str | None = None
    """What its end will be, where that is decided though it runs on."""


class Desk(Guest):
    """The core of one life of an executor, and its clock. Who runs the episodes is for subclasses to say."""

    connects_here = True
    """Whether what is played connects to servers from this process."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._lock = threading.RLock()
        self._ops: deque[_Op | Rollout] = deque()
        self._found: deque[_Op] = deque()  # by the loop thread
        self._looks: deque[Answer[Any]] = deque()
        self.returned: deque[Request] = deque()
        """Requests whose callers do not want, or did not get, what they were given."""
        self._works = 0  # pieces of work that have begun
        self._woken_after = -1  # how many had, when it was posted that there is more to do
        self._is_closed = False
        self._worker = 0  # the thread that works just now, if one does
        self._turn = 0  # odd while one does, and never the same again
        self._launcher: Launcher | None = None
        self._core: Core | None = None
        self.watch: LoopWatch | None = None
        """Told when rollouts run, and when none does; None: nobody watches."""
        self.tracer: Tracer | None = None
        """Told of each episode before it starts; None: nobody traces."""
        self.on_end: Callable[[], None] | None = None
        """Called when the runner has ended."""
        self.on_worked: Callable[[], None] | None = None
        """Called after each piece of work, without the lock."""

    def open(self, core: Core) -> None:
        """Begin to work on *core*."""
        self._core = core
        self._launcher = self._life.host(self)

    @property
    def core(self) -> Core:
        """The core: its methods are for `post` and `call`."""
        assert self._core is not None
        return self._core

    # -- from any thread ---------------------------------------------------------------------------

    def post(self, op: Callable[..., object], *args: Any) -> None:
        """Have ``op(*args)`` done, after all that was posted before. Never blocks."""
        self._ops.append((op, args))
        self.wake()

    def submit(self, rollout: Rollout) -> None:
        """Do what ``post(core.submit, [rollout])`` does, and make nothing that is to be collected later.

        Of what is made for each rollout there may be tens of thousands, and the garbage collector looks at
        all of it.
        """
        self._ops.append(rollout)
        self.wake()

    def wake(self) -> None:
        """Have what is on the desk looked at."""
        works = self._works
        if self._woken_after != works:
            self._have_it_done()
            # Last: nobody is to count on one who was interrupted before, or in whose middle a handler waits.
            self._woken_after = works

    def _have_it_done(self) -> None:
        if self._is_closed:
            exit_hook.run_aside(self._work)
            return
        try:
            self._life.thread.post(self._work_a_while)
        except RuntimeError:
            if not self._life.thread.loop.is_closed():  # it was a signal handler that raised
                raise
            exit_hook.run_aside(self._work)
        else:
            self._see_closed()

    def call(self, op: Callable[..., R], *args: Any) -> R:
        """Do ``op(*args)`` in its turn, wait for it, and return what it returns or raise what it raises."""
        if self._is_mine():
            raise RuntimeError(f"{op.__name__}() in a finalizer, in the middle of the executor's own work")
        answer = Answer(partial(op, *args))
        if self._life.thread.is_current():
            self._ops.append((answer.fill, ()))
            self._work()
        else:
            self.post(answer.fill)
        answer.gate.wait()
        exit_hook.stay_if_over()
        return answer.get()

    def read(self, look: Callable[[Core], R]) -> R:
        """Return what ``look(core)`` sees between two pieces of work; it changes nothing."""
        return self._look(look, math.inf)

    def glimpse(self, look: Callable[[Core], R], patience_s: float) -> R:
        """Do what `read` does, but look all the same if one piece of work takes *patience_s* seconds."""
        return self._look(look, patience_s)

    def _look(self, look: Callable[[Core], R], patience_s: float) -> R:
        # Here and now, if it can be: who waits for the loop waits for all that is ready to run on it. Once
        # only: what changes all the time is likely to change in the middle of the next look, too.
        answer: Answer[R] | None = None
        seen: list[R] = []
        deadline = time.monotonic() + patience_s
        try:
            while not self._has_seen(look, seen):
                if answer is None:
                    answer = Answer(partial(look, self.core))
                    self._looks.append(answer)
                    if self._life.thread.is_current():
                        self._work()
                    else:
                        self.wake()
                left = deadline - time.monotonic()
                if answer.gate.wait(min(left, _LOOK_AGAIN_S)):
                    exit_hook.stay_if_over()
                    return answer.get()
                if left <= 0:
                    return self._look_in_the_middle(look, answer)
            return seen[0]
        finally:
            if answer is not None:
                with contextlib.suppress(ValueError):  # it is being looked at just now, or has been
                    self._looks.remove(answer)

    def _has_seen(self, look: Callable[[Core], R], seen: list[R]) -> bool:
        """Look, unless another thread works, or does so meanwhile; return whether it was *seen*."""
        turn = self._turn
        if turn % 2 and not self._is_mine():
            return False
        try:
            found = look(self.core)
        except Exception:  # of any kind, where something changed while it was looked at
            if turn == self._turn:
                raise
            return False
        if turn == self._turn:
            seen.append(found)
            return True
        return False

    def _look_in_the_middle(self, look: Callable[[Core], R], answer: Answer[R]) -> R:
        """Look though somebody works, unless he gives *answer* meanwhile."""
        for more in reversed(range(_GLIMPSES)):
            turn = self._turn
            try:
                return look(self.core)
            except Exception:  # of any kind, as above
                if not more or (turn == self._turn and turn % 2 == 0):
                    raise
            if answer.gate.wait(_LOOK_AGAIN_S):
                exit_hook.stay_if_over()
                return answer.get()
        raise AssertionError

    def _is_mine(self) -> bool:
        """Return whether this thread is in the middle of a piece of work: in a finalizer, that is."""
        return self._worker == threading.get_ident()

    def ledgers(self) -> tuple[RolloutLedger, RolloutLedger]:
        """Return the books of training and of evaluation, what is still on the desk counted as pending."""
        return self.read(self._ledgers)

    def _ledgers(self, core: Core) -> tuple[RolloutLedger, RolloutLedger]:
        training, evaluation = self.left()
        books = core.books
        return (
            books.training.snapshot().with_pending(training),
            books.evaluation.snapshot().with_pending(evaluation),
        )

    def left(self) -> tuple[int, int]:
        """Return how many new rollouts, of training and of evaluation, are on the desk. For `read`."""
        core = self.core
        submits = core.submit, core.submit_and_ask
        left: set[Rollout] = set()
        for op in list(self._ops):
            if isinstance(op, Rollout):
                left.add(op)
            elif op[0] in submits:
                left.update(op[1][0])
        new = [one for one in left if not (one.is_submitted or one.is_abandoned)]
        is_eval = [rollout.plan.is_eval for rollout in new]
        return is_eval.count(False), is_eval.count(True)

    # -- the thread that owns the core -------------------------------------------------------------

    def _work_a_while(self) -> None:
        """Do part of what is there, and the rest when the loop has turned.

        A caller that posts without a pause would keep it from starting any episode, and from all else.
        """
        self._work(_AT_A_TIME)
        if self._found or self._ops:
            self.wake()

    def _work(self, most: int = sys.maxsize) -> None:
        with self._lock:
            self._works += 1  # before looking: who comes later wakes again
            if self._worker:  # a finalizer, in the middle of this thread's work past the exit's beginning
                return
            self._worker = threading.get_ident()
            self._turn += 1
            try:
                left = self._do(most)
                while (self._found or self._ops) and left > 0:
                    left = self._do(left)
                set_off = self._gathered()
            finally:
                self._turn += 1
                self._worker = 0
        if self.on_worked is not None:
            self.on_worked()
        if set_off is not None:
            set_off()
        if self._looks:
            with self._lock:
                self._answer_looks()

    def _answer_looks(self) -> None:
        while (answer := self._next_look()) is not None:
            for _ in range(_GLIMPSES):
                turn = self._turn
                answer.find()
                if turn == self._turn:
                    break  # else a finalizer had something done in the middle of it
            answer.gate.open()

    def _next_look(self) -> Answer[Any] | None:
        with contextlib.suppress(
            IndexError
        ):  # whoever has seen it himself takes his own back, without the lock
            return self._looks.popleft()
        return None

    def _do(self, most: int) -> int:
        """Do *most* things at most, what was found first; return how many there may be yet."""
        self._take_back()
        while most > 0 and (ops := self._found or self._ops):
            op = ops.popleft()
            self._take_back()  # what was returned before this was posted comes before it
            if isinstance(op, Rollout):
                self.core.submit((op,))
            else:
                op[0](*op[1])
            most -= 1
        self.core.go_on()
        return most

    def _take_back(self) -> None:
        while self.returned:
            self.core.take_back(self.returned.popleft())

    def _see_closed(self) -> None:
        if self._is_closed:  # while something was posted, which the loop may never get to
            exit_hook.run_aside(self._work)

    # -- port and clock ----------------------------------------------------------------------------

    @abstractmethod
    def start(self, episodes: Sequence[Episode]) -> None:
        """Begin to run *episodes*, when this piece of work is done."""

    @abstractmethod
    def cancel(self, episode: Episode) -> None:
        """Tell *episode* to end; it has the runner's grace to clean up."""

    @abstractmethod
    def whereabouts(self, episode: Episode) -> Whereabouts:
        """Return where *episode* is played, and whether its end is decided. For `glimpse`."""

    @abstractmethod
    def _gathered(self) -> Callable[[], None] | None:
        """Return what lets the episodes go that were started in this piece of work; None: there are none.

        It is called without the lock.
        """

    @abstractmethod
    def _leave_all(self) -> None:
        """Let everything that runs be over: the loop does not turn any more."""

    def time(self) -> float:
        """Return the time, also after the loop's end."""
        return time.monotonic()

    def _begin_watch(self) -> None:
        """Have the loop watched from now on, if it is to be."""
        self.watch = begun(self.watch)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call *callback* on the loop thread, as the core's owner."""
        return self._life.thread.call_later(delay_s, self._on_timer, callback)

    def _on_timer(self, callback: Callable[[], None]) -> None:
        self._found.append((callback, ()))
        self._work_a_while()

    # -- what the runner tells ---------------------------------------------------------------------

    def begin_end(self, ending: Ending) -> None:
        """Start nothing more, and decide that what runs is cancelled; not what has ended by itself."""
        self._note_ends()
        self._ops.append((self.core.end, (ending.error,)))
        self._work()

    def finish_end(self) -> None:
        """Let what still runs be over. From here on no loop works for this desk."""
        self._is_closed = True
        self._ops.append((self._leave_all, ()))
        self._work()
        if self.watch is not None:
            self.watch.leave()  # also after a death, or where nobody calls destroy()
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end()

    def _note_ends(self) -> None:
        """Put the ends of episodes on the desk that nobody has told of yet."""


def begun(watch: LoopWatch | None) -> LoopWatch | None:
    """Begin to watch, also again; return *watch*, or None where there is no thread to be had for it."""
    if watch is not None:
        try:
            watch.begin()
        except RuntimeError:  # who blocks the loop is not worth a rollout
            return None
    return watch
