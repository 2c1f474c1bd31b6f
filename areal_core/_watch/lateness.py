"""What keeps a loop late though no call blocks it for long: many short ones, seen again and again.

::

    a heartbeat has no answer for half the threshold:   a look is made, as for one that blocks
      each look                                         says whose code the loop thread is in
    late for half of the last ten seconds or more,      the functions are named that were seen most,
      and mostly in the user's code                     once a minute at most

    each time when a heartbeat is posted:               a glance: in whose code is the loop thread?
    in the user's at three of ten glances, of those     the same
      of twenty seconds, and late at least a little

The second finds what is too short for the first: a few rollouts whose rewards take 30 ms each wait for one
another, though a heartbeat never waits for long. Glances are for who is awake anyway: 8 a second at the usual
threshold, for less than a thousandth of a processor.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

from areal_core._watch.blame import Blame
from areal_core._watch.user_frames import is_nobodys, name, users, where

WINDOW_S = 10.0  # long enough for a batch that is cut, or an import, to be over
REPORTED_EVERY_S = 60.0
_SHARE = 0.5  # of the window that the loop is late, and of that time in the user's code
_FEWEST_LOOKS = 5
_NAMED = 3
_GLANCED_S = 20.0  # 160 glances at the usual threshold, which tell a share within 4 % or so
_FEWEST_GLANCES = 80  # where heartbeats are rarer, more time is judged at once
_GLANCED_SHARE = 0.3
_FELT_S = 0.02  # a loop that is never so late keeps nobody waiting, whatever it does
_LONGEST_S = 1.0  # that a look stands for: they are as frequent, unless the watching thread is held up


@dataclass(frozen=True)
class Late:
    """A loop that was late for most of a while, with the functions that it was seen in."""

    function: str
    """Module and qualified name of the user's function that was seen most, the innermost where it was."""

    where: str
    """File and line it was seen in last."""

    functions: tuple[tuple[str, float], ...]
    """Those that were seen most, three at most, and their shares of the time in which the loop was late.

    Of all of the time where it is *busy* that is told.
    """

    lag_s: float
    """How late the loop came to a callback, at worst."""

    late: float
    """For which share of the time."""

    seconds: float
    """How long it was looked at."""

    busy: float | None = None
    """For which share of the time it was in the user's code; None: it was late for most of the time."""

    def fields(self) -> dict[str, Any]:
        """Return what a log line says of it."""
        busy = {} if self.busy is None else {"busy": f"{self.busy:.0%} of {self.seconds:g} s"}
        return {
            "lag_s": round(self.lag_s, 3),
            "late": f"{self.late:.0%} of {self.seconds:g} s",
            **busy,
            "functions": ", ".join(f"{function} {share:.0%}" for function, share in self.functions),
            "where": self.where,
            "remedy": "each call is short, but they are many: await offloaded(function, to='process')(...)",
        }


class _Look(NamedTuple):
    at: float
    seconds: float
    """For how long it stands."""
    function: str | None
    """The user's; None: the loop was in nobody's, or in the library's own."""
    where: str


class _Glance(NamedTuple):
    at: float
    function: str | None
    where: str


class _Delay(NamedTuple):
    begun: float
    ended: float

    def within(self, since: float) -> float:
        """Return how much of it was after *since*."""
        return max(0.0, self.ended - max(self.begun, since))


class Lateness:
    """Judges over `WINDOW_S` seconds for how much of the time a loop is late, and calls *report*.

    All times are monotonic seconds. A delay counts from *least_s* on.
    """

    def __init__(self, least_s: float, report: Callable[[Late], None]) -> None:
        self._least_s = least_s
        self._report = report
        self._looks: deque[_Look] = deque()
        self._delays: deque[_Delay] = deque()
        self._reported = -math.inf
        self.blamed: Blame | None = None
        """Who was accused last, whether that was reported or not."""
        self._glances: deque[_Glance] = deque()
        self._lags: deque[_Delay] = deque()  # of all heartbeats
        # A heartbeat is posted as often as one may be late, or less often.
        self._glanced_s = max(_GLANCED_S, 2 * _FEWEST_GLANCES * least_s)

    def look(self, callback: Sequence[FrameType], since: float, now: float) -> None:
        """Note where the loop thread is, above what runs the loop, which has been late *since* then."""
        last = self._looks[-1].at if self._looks else since
        seconds = max(0.0, min(now - max(last, since), _LONGEST_S))
        self._looks.append(_Look(now, seconds, *_seen_in(callback)))
        self._judge(_Delay(since, now), now)

    def glance(self, callback: Sequence[FrameType], now: float) -> None:
        """Note where the loop thread is at a moment that has nothing to do with what it does."""
        self._glances.append(_Glance(now, *_seen_in(callback)))
        begun = now - self._glanced_s
        while self._glances[0].at <= begun:
            self._glances.popleft()
        while self._lags and self._lags[0].ended <= begun:
            self._lags.popleft()
        self._judge_glances(now)

    def end(self, since: float, now: float) -> None:
        """Note that the loop has answered *now* what it was asked *since* then."""
        self._lags.append(_Delay(since, now))
        if now - since < self._least_s:
            return
        self._delays.append(_Delay(since, now))
        self._judge(None, now)

    def _judge(self, delay: _Delay | None, now: float) -> None:
        begun = now - WINDOW_S
        while self._delays and self._delays[0].ended <= begun:
            self._delays.popleft()
        while self._looks and self._looks[0].at <= begun:
            self._looks.popleft()
        delays = [*self._delays, *([] if delay is None else [delay])]
        late_s = sum(one.within(begun) for one in delays)
        if late_s < _SHARE * WINDOW_S or len(self._looks) < _FEWEST_LOOKS:
            return
        late = self._accused(max(one.ended - one.begun for one in delays), late_s / WINDOW_S)
        if late is None:
            return
        self.blamed = Blame(late.function, late.where, late.lag_s, late.functions[0][1], now)
        self._tell(late, now)

    def _tell(self, late: Late, now: float) -> None:
        if now - self._reported >= REPORTED_EVERY_S:
            self._reported = now
            self._report(late)

    def _accused(self, lag_s: float, late: float) -> Late | None:
        seconds: Counter[str | None] = Counter()
        for look in self._looks:
            seconds[look.function] += look.seconds  # type: ignore[assignment]
        total = sum(seconds.values())
        del seconds[None]
        if not total or sum(seconds.values()) < _SHARE * total:
            return None
        seen = tuple((str(one), spent / total) for one, spent in seconds.most_common(_NAMED))
        first = next(look for look in reversed(self._looks) if look.function == seen[0][0])
        return Late(seen[0][0], first.where, seen, lag_s, min(1.0, late), WINDOW_S)

    def _judge_glances(self, now: float) -> None:
        count = len(self._glances)
        seen = Counter(glance.function for glance in self._glances if glance.function is not None)
        if count < _FEWEST_GLANCES or seen.total() < _GLANCED_SHARE * count:
            return
        lag_s = max((lag.ended - lag.begun for lag in self._lags), default=0.0)
        if lag_s < _FELT_S:
            return
        most = tuple((function, times / count) for function, times in seen.most_common(_NAMED))
        last = next(glance for glance in reversed(self._glances) if glance.function == most[0][0])
        begun = self._glances[0].at
        delays = [lag for lag in self._lags if lag.ended - lag.begun >= self._least_s]
        late = sum(delay.within(begun) for delay in delays) / (now - begun)
        share = seen.total() / count
        seconds = round(now - begun, 1)
        self._tell(Late(last.function or "", last.where, most, lag_s, min(1.0, late), seconds, share), now)


def _seen_in(callback: Sequence[FrameType]) -> tuple[str | None, str]:
    """Return which of the user's functions *callback* is in, and where; None: it is nobody's."""
    found = users(callback)
    if not found or is_nobodys(found[-1]):
        return None, ""
    return name(found[0]), where(found[0])
