"""An inference server: how fast it generates for how many, and what becomes of that when it stops.

All requests of a server have the same speed at a time, so that one number, its progress, says how far each
of them is: one ends when the progress is what it was at its beginning plus its work. Nothing happens for each
token.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable

from areal_core._simulation.clock import VirtualClock

Spans = list[tuple[int, int]]
"""Versions and how many tokens each made, in the order in which they came."""


class Request:
    """So many tokens that are asked for; *on_end* is called when all have come."""

    __slots__ = ("_token_s", "began", "is_gone", "on_end", "spans", "tokens", "until", "version")

    def __init__(self, tokens: int, token_s: float, on_end: Callable[[], None]) -> None:
        self.tokens = tokens
        """How many are still to come, as of its beginning at a server."""
        self._token_s = token_s
        self.on_end = on_end
        self.is_gone = False
        self.began = 0.0
        """The progress of its server when its first token was begun."""
        self.until = 0.0
        """That at which it ends."""
        self.version = 0
        """That of its server when it came there."""
        self.spans: Spans = []

    def begin(self, progress: float, before_s: float) -> None:
        """Begin at a server that is at *progress*, with its first token *before_s* seconds of work later."""
        self.began = progress + before_s
        self.until = self.began + self.tokens * self._token_s

    def made_by(self, progress: float) -> int:
        """Return how many have come of this server by then."""
        if progress >= self.until or not self._token_s:
            return self.tokens if progress >= self.began else 0
        return min(self.tokens, max(0, int((progress - self.began) / self._token_s)))


class InferenceServer:
    """Generates for many at once.

    A token takes *token_s* seconds times the pace of its request; each further request makes all slower, so
    that no more than *tokens_per_s* come in all. *slots* are worked on at once. None is no limit.
    *interrupts* is whether a new version makes the next token of what is under way, or only of what comes
    later.
    """

    def __init__(
        self,
        clock: VirtualClock,
        token_s: float,
        tokens_per_s: float | None = None,
        slots: int | None = None,
        request_s: float = 0.0,
        interrupts: bool = True,
    ) -> None:
        self._clock = clock
        self._interrupts = interrupts
        self._slowing = 0.0 if tokens_per_s is None else 1.0 / (tokens_per_s * token_s)
        self._slots = math.inf if slots is None else slots
        self._request_s = request_s
        self._running: dict[Request, None] = {}
        self._waiting: deque[Request] = deque()
        self._ends: list[tuple[float, int, Request]] = []  # those that are gone are dropped late
        self._order = 0
        self._progress, self._seen_at, self._speed = 0.0, 0.0, 1.0
        self._rings_at, self._alarm = math.inf, 0
        self._marks: list[float] = [-math.inf]  # the progress at which each version began
        self._versions: list[int] = [0]
        self._is_paused = False
        self.is_up = True
        self.tokens = 0
        """How many it has made."""
        self.request_seconds = 0.0
        """How long it worked on requests, one after the other; `look` brings it up to date."""

    def begin(self, request: Request) -> None:
        """Take *request* on."""
        request.version = self._versions[-1]
        if len(self._running) >= self._slots:
            self._waiting.append(request)
            return
        self.look()
        self._admit(request)
        self._set_speed()

    def cancel(self, request: Request) -> None:
        """End *request*, whose client is gone."""
        request.is_gone = True
        if request in self._running:
            self.look()
            self.tokens += request.made_by(self._progress)
            del self._running[request]
            self._refill()

    def pause(self) -> None:
        """Generate nothing until `go_on`."""
        self.look()
        self._is_paused = True
        self._set_speed()

    def go_on(self, version: int) -> None:
        """Generate again, with the weights of *version*."""
        self.look()
        self._is_paused = False
        self._marks.append(self._progress)
        self._versions.append(version)
        self._set_speed()

    def die(self) -> list[Request]:
        """Stop; return what it had, with what has come of it at its spans and the rest still to come."""
        self.look()
        left = [*self._running, *(one for one in self._waiting if not one.is_gone)]
        for request in self._running:
            made = request.made_by(self._progress)
            self._tell(request, made, self._progress)
            request.tokens -= made
        self._running.clear()
        self._waiting.clear()
        self._ends.clear()
        self.is_up = False
        self._set_speed()
        return left

    def come_back(self) -> None:
        """Work again, with nothing to do."""
        self.look()
        self.is_up = True

    def look(self) -> None:
        """Bring its progress up to date."""
        now = self._clock.time()
        passed_s, self._seen_at = now - self._seen_at, now
        self._progress += passed_s * self._speed
        self.request_seconds += passed_s * len(self._running)

    def _admit(self, request: Request) -> None:
        request.begin(self._progress, self._request_s)
        self._order += 1
        heapq.heappush(self._ends, (request.until, self._order, request))
        self._running[request] = None

    def _refill(self) -> None:
        while self._waiting and len(self._running) < self._slots:
            request = self._waiting.popleft()
            if not request.is_gone:
                self._admit(request)
        self._set_speed()

    def _set_speed(self) -> None:
        """Say how fast it is with what it has now, and when the next one ends then."""
        others = max(0, len(self._running) - 1)
        self._speed = 0.0 if self._is_paused or not self.is_up else 1.0 / (1.0 + others * self._slowing)
        while self._ends and self._ends[0][2].is_gone:
            heapq.heappop(self._ends)
        if not self._ends or not self._speed:
            return
        when = self._clock.time() + max(0.0, self._ends[0][0] - self._progress) / self._speed
        if when < self._rings_at:
            self._rings_at = when
            self._alarm += 1
            self._clock.at(when, self._ring, self._alarm)

    def _ring(self, alarm: int) -> None:
        if alarm != self._alarm:
            return
        self._rings_at = math.inf
        self.look()
        ended = []
        while self._ends and (self._ends[0][2].is_gone or self._is_over(self._ends[0][0])):
            request = heapq.heappop(self._ends)[2]
            if not request.is_gone:
                del self._running[request]
                self._tell(request, request.tokens, request.until)
                ended.append(request)
        self._refill()
        for request in ended:
            request.on_end()

    def _is_over(self, until: float) -> bool:
        """Return whether a request ends by now: what is added up is never quite what it should be."""
        return until <= self._progress * (1.0 + 1e-12) + 1e-9

    def _tell(self, request: Request, made: int, progress: float) -> None:
        """Note which versions made the tokens that have come of *request*."""
        self.tokens += made
        if not made:
            return
        if not self._interrupts:
            _add(request.spans, request.version, made)
            return
        mark = bisect_right(self._marks, request.began) - 1
        before = 0
        for place in range(mark, len(self._marks)):
            is_last = place + 1 == len(self._marks) or self._marks[place + 1] >= progress
            upto = made if is_last else min(made, request.made_by(self._marks[place + 1]))
            if upto > before:
                _add(request.spans, self._versions[place], upto - before)
            before = upto
            if is_last:
                return


def _add(spans: Spans, version: int, tokens: int) -> None:
    if spans and spans[-1][0] == version:
        spans[-1] = version, spans[-1][1] + tokens
    else:
        spans.append((version, tokens))


def tokens_of(spans: Iterable[tuple[int, int]]) -> int:
    """Return how many tokens there are."""
    return sum(tokens for _, tokens in spans)
