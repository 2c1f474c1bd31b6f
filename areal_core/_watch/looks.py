"""What looks at a thread find, and whom to accuse of it."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

from areal_core._frames import frames_of_threads
from areal_core._watch.blame import Blame
from areal_core._watch.lateness import Late, Lateness
from areal_core._watch.user_frames import frames_of_callback, name, users, where

REPORTED_EVERY_S = 60.0  # who blocks in each episode gets a line a minute, with a count
LONG_S = 10.0  # what blocks for longer may do so for ever: it is reported without waiting for its end
_LASTING = 1 / 3  # of the seconds, for a call to be blamed rather than the one that made it


@dataclass(frozen=True)
class Blocked:
    """One function that kept the loop from turning."""

    function: str
    """Module and qualified name of the innermost of the user's functions that was there most of the time."""

    where: str
    """File and line it was in."""

    seconds: float
    """For how long; up to half the threshold off, since it is heartbeats that are timed."""

    stack: str
    """What *workflow* was doing, as a traceback says it."""

    times: int
    """How often that function has blocked since it was last reported, this time included."""

    workflow: str
    """The outermost of the user's functions; the same as *function* where there was one."""

    ended: bool = True
    """False: it is blocking still, and will be reported again at its end."""

    def fields(self) -> dict[str, Any]:
        """Return what a log line says of it."""
        fields: dict[str, Any] = {
            "function": self.function,
            "where": self.where,
            "seconds": round(self.seconds, 3),
            "times": self.times,
        }
        if self.workflow != self.function:
            fields["workflow"] = self.workflow
        fields["remedy"] = "await offloaded(function, to='thread')(...), or to='process' if it computes"
        if not self.ended:
            fields |= {"ended": False, "stack": f"\n{self.stack}"}
        return fields


class _Call(NamedTuple):
    """One of the user's frames, and the first look at which it was there."""

    frame: FrameType
    look: int
    at: float


@dataclass
class _Sighting:
    """A callback of the loop that was there at all looks since *since* (monotonic seconds)."""

    since: float
    seen: float
    calls: list[_Call]
    """Innermost first."""
    sure: bool
    """The first look says enough: until then the thread held the GIL."""
    look: int = 0
    """The number of the last one."""
    told: bool = False
    said: tuple[str, str, str, str] = ("", "", "", "")
    """Function, where, stack and workflow."""

    @property
    def seconds(self) -> float:
        """For how long it has been seen."""
        return self.seen - self.since

    def go_on(self, found: list[FrameType], now: float) -> bool:
        """Return whether it is still there among *found*, and note that it is."""
        before = {call.frame: call for call in self.calls}
        if not any(frame in before for frame in found):
            return False
        self.look += 1
        self.seen = now
        self.calls = [before.get(frame) or _Call(frame, self.look, now) for frame in found]
        return True

    def describe(self, callback: list[FrameType]) -> None:
        """Note what to say of it: later it may be elsewhere."""
        accused = next(filter(self._lasts, self.calls), self.calls[-1]).frame
        workflow = self.calls[-1].frame
        stack = [(frame, frame.f_lineno) for frame in callback[callback.index(workflow) :: -1]]
        place = where(accused)  # first: the extraction reads files, and the thread goes on meanwhile
        lines = traceback.StackSummary.extract(iter(stack))
        self.said = (name(accused), place, "".join(lines.format()), name(workflow))

    def _lasts(self, call: _Call) -> bool:
        """Tell a call that takes the time from one of many that it makes."""
        if self.look == 0:
            return True
        seen_s = self.seconds if call.look == 0 else self.seen - call.at
        return call.look < self.look and seen_s >= _LASTING * self.seconds


class Looks:
    """Looks at the thread *thread_id*, and calls *report* for who keeps it for *threshold_s* or longer.

    And for those who keep it for less, but are many.
    """

    def __init__(self, thread_id: int, threshold_s: float, report: Callable[[Blocked | Late], None]) -> None:
        self._lateness = Lateness(threshold_s / 2, self._tell_late)
        self._thread_id = thread_id
        self._threshold_s = threshold_s
        self._report = report
        self._sighting: _Sighting | None = None
        self._blamed: Blame | None = None
        self._held: dict[int, FrameType] = {}
        self._unreported: dict[str, int] = {}
        self._reported: dict[str, float] = {}

    @property
    def blamed(self) -> Blame | None:
        """Who was found last, reported or not, also while it goes on; None: nobody. From any thread."""
        found = [one for one in (self._blamed, self._lateness.blamed) if one is not None]
        return max(found, key=lambda one: one.at, default=None)

    def look(self, base: int, since: float, held_gil: bool, at_once: bool) -> None:
        """Look above the outermost *base* frames, which run the loop; it has answered nothing *since*.

        *held_gil*: its thread has kept this look from being made before. *at_once*: whether it has is known
        later, and the thread will be elsewhere then.
        """
        callback = frames_of_callback(frames_of_threads().get(self._thread_id), base)
        now = time.monotonic()
        # As long as they are held, no later call can have one of these frames.
        self._held.update((id(frame), frame) for frame in callback)
        found = users(callback)
        sighting = self._sighting
        if sighting is None or not sighting.go_on(found, now):
            self._conclude()
            begun = since if sighting is None else now
            calls = [_Call(frame, 0, now) for frame in found]
            self._sighting = _Sighting(begun, now, calls, held_gil) if found else None
        self._note(callback, at_once)
        self._lateness.look(callback, since, now)

    def glance(self, base: int) -> None:
        """See in whose code the thread is, with nothing known to be late."""
        callback = frames_of_callback(frames_of_threads().get(self._thread_id), base)
        # A frame that ends in this thread would have what is in it end here as well.
        self._held.update((id(frame), frame) for frame in callback)
        self._lateness.glance(callback, time.monotonic())

    def be_sure(self) -> None:
        """Take the last look as enough: the thread has kept it from being made before."""
        if self._sighting is not None:
            self._sighting.sure = True

    def forget(self) -> None:
        """Accuse nobody of what was seen last."""
        self._sighting = None

    def end(self, since: float, at: float, answered: bool) -> None:
        """Conclude: the loop, asked *since* then, has answered at *at*; or nobody waits for that any more."""
        if self._sighting is not None:
            self._sighting.seen = at
        self._conclude(ended=answered)
        self._lateness.end(since, at)

    def frames(self) -> dict[int, FrameType]:
        """Hand over the frames that were held, when the looks have ended."""
        held, self._held = self._held, {}
        return held

    def _note(self, callback: list[FrameType], at_once: bool) -> None:
        sighting = self._sighting
        if sighting is None:
            return
        if sighting.look > 0 or sighting.sure or at_once:
            sighting.describe(callback)
        if sighting.look > 0 and sighting.seconds >= self._threshold_s:
            self._blame(sighting)
        if sighting.look > 0 and not sighting.told and sighting.seconds > LONG_S:
            sighting.told = True
            self._tell(sighting, ended=False)

    def _conclude(self, ended: bool = True) -> None:
        """Report what was there, if that is sure."""
        sighting, self._sighting = self._sighting, None
        if sighting is None or sighting.seconds < self._threshold_s or (sighting.told and not ended):
            return
        if sighting.look > 0 or sighting.sure:
            self._tell(sighting, ended)

    def _tell_late(self, late: Late) -> None:
        """Report it, unless calls of that function are reported one by one."""
        if time.monotonic() - self._reported.get(late.function, -math.inf) >= REPORTED_EVERY_S:
            self._report(late)

    def _blame(self, sighting: _Sighting) -> None:
        function, where, _, _ = sighting.said
        self._blamed = Blame(function, where, sighting.seconds, 1.0, sighting.seen)

    def _tell(self, sighting: _Sighting, ended: bool) -> None:
        self._blame(sighting)
        function, where, stack, workflow = sighting.said
        times = self._unreported.pop(function, 0) + 1
        since_report_s = sighting.seen - self._reported.get(function, -math.inf)
        if ended and not sighting.told and since_report_s < REPORTED_EVERY_S:
            self._unreported[function] = times
            return
        self._reported[function] = sighting.seen
        self._report(Blocked(function, where, sighting.seconds, stack, times, workflow, ended))
