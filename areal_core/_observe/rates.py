"""How fast things go, from one snapshot to the next: `Rates`."""

from __future__ import annotations

from collections import deque
from itertools import takewhile
from typing import NamedTuple

from areal_core._observe.snapshot import Snapshot, Wait

HISTORY_S = 120
"""How many seconds of the past are remembered, a number for each."""

_TOKENS_S = 10.0  # tokens come all the time
_ENDS_S = 60.0  # rollouts end in crowds


class _Sample(NamedTuple):
    at: float
    tokens: int
    accepted: int
    ended: int


class Rates:
    """Tokens and rollouts per second, of the snapshots that were `add`-ed. Not for several threads."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        self._history: deque[float] = deque(maxlen=HISTORY_S)
        self._marked: _Sample | None = None

    def add(self, snapshot: Snapshot) -> None:
        """Take note of a *snapshot*, which is later than those before. Counters that fell begin anew."""
        sample = _sample_of(snapshot)
        last = self._samples[-1] if self._samples else sample
        if sample.at < last.at or any(now < then for now, then in zip(sample[1:], last[1:], strict=True)):
            self._samples.clear()
            self._marked = None
        self._samples.append(sample)
        while sample.at - self._samples[0].at > _ENDS_S and len(self._samples) > 2:
            self._samples.popleft()
        self._mark(sample)

    def _mark(self, sample: _Sample) -> None:
        """Add to the history what came in each second since its last one."""
        if self._marked is None:
            self._marked = sample
        seconds = sample.at - self._marked.at
        if seconds >= 1:
            rate = (sample.tokens - self._marked.tokens) / seconds
            self._history.extend([rate] * min(HISTORY_S, int(seconds + 0.5)))
            self._marked = sample

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens that came per second lately; None before there are two snapshots."""
        return self._rate("tokens", _TOKENS_S)

    @property
    def accepted_per_s(self) -> float | None:
        """Training rollouts accepted per second in the last minute; None before there are two snapshots."""
        return self._rate("accepted", _ENDS_S)

    @property
    def tokens_history(self) -> tuple[float, ...]:
        """Tokens per second, for each of the last `HISTORY_S` seconds or fewer, the newest last."""
        return tuple(self._history)

    def left_s(self, wait: Wait) -> float | None:
        """Return in how many seconds *wait* has all it waits for; None: nothing lets that be told."""
        rate = self._rate("accepted" if wait.want == "batch" else "ended", _ENDS_S)
        missing = wait.count - wait.there
        if missing <= 0:
            return None if wait.is_held else 0.0
        return missing / rate if rate else None

    def _rate(self, name: str, window_s: float) -> float | None:
        if len(self._samples) < 2:
            return None
        newest = self._samples[-1]
        recent = list(takewhile(lambda one: newest.at - one.at <= window_s, reversed(self._samples)))
        oldest = recent[-1] if len(recent) > 1 else self._samples[-2]
        seconds = newest.at - oldest.at
        gained: int = getattr(newest, name) - getattr(oldest, name)
        return gained / seconds if seconds > 0 else None


def _sample_of(snapshot: Snapshot) -> _Sample:
    done, judged = snapshot.training, snapshot.evaluation
    generations = snapshot.engine
    return _Sample(
        snapshot.uptime_s,
        0 if generations is None else generations.tokens,
        done.accepted,
        sum(one.finished + one.collected + one.discarded for one in (done, judged)),
    )
