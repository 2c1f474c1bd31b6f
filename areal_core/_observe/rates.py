"""How fast things go, from one snapshot to the next: `Rates`."""

from __future__ import annotations

from collections import deque
from itertools import takewhile
from statistics import fmean
from typing import NamedTuple

from areal_core._engine.speeds import Speed, Speeds
from areal_core._executor.snapshot import Snapshot, Wait
from areal_core._observe.asking import Asking
from areal_core._observe.lately import Lately

HISTORY_S = 120
"""How many seconds of the past are remembered, a number for each."""

_TOKENS_S = 10.0  # tokens come all the time
_ENDS_S = 60.0  # rollouts end in crowds


class _Sample(NamedTuple):
    at: float
    tokens: int
    accepted: int
    ended: int
    running: tuple[int, int]
    """Rollouts of training, and all of them. No counters."""

    def counters(self) -> tuple[int, int, int]:
        return self.tokens, self.accepted, self.ended


class Rates:
    """Tokens and rollouts per second, of the snapshots that were `add`-ed. Not for several threads."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        self._history: deque[float] = deque(maxlen=HISTORY_S)
        self._marked: _Sample | None = None
        self._speeds = Speeds()
        self.asking = Asking()
        """Whether the trainer waits."""
        self.lately = Lately()
        """What held rollouts up."""
        self._latest: Snapshot | None = None

    def add(self, snapshot: Snapshot) -> None:
        """Take note of a *snapshot*, which is later than those before. Counters that fell begin anew."""
        sample = _sample_of(snapshot)
        last = self._samples[-1] if self._samples else sample
        if sample.at < last.at or any(
            now < then for now, then in zip(sample.counters(), last.counters(), strict=True)
        ):
            self._samples.clear()
            self._marked = None
        self._samples.append(sample)
        while sample.at - self._samples[0].at > _ENDS_S and len(self._samples) > 2:
            self._samples.popleft()
        self._mark(sample)
        self._speeds.add(snapshot.uptime_s, snapshot.servers)
        self.asking.add(snapshot)
        self.lately.add(snapshot)
        self._latest = snapshot

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

    @property
    def servers(self) -> dict[str, Speed]:
        """How fast each server has been in the last minute, by name."""
        return self._speeds.now()

    def left_s(self, wait: Wait) -> float | None:
        """Return in how many seconds *wait* has all it waits for; None: nothing lets that be told.

        Where nothing more will start, fewer rollouts run than did lately, and less comes in a second.
        """
        rate = self._rate("accepted" if wait.want == "batch" else "ended", _ENDS_S)
        missing = wait.count - wait.there
        if missing <= 0:
            return None if wait.is_held else 0.0
        last = None if self._latest is None else last_ones(self._latest, wait)
        if last is not None:
            usual = fmean(one.running[wait.want != "batch"] for one in self._samples)
            rate = None if last < missing or rate is None else rate * min(1.0, last / max(1.0, usual))
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


def last_ones(snapshot: Snapshot, wait: Wait) -> int | None:
    """Return how many rollouts run that *wait* may get, where no more are to start; None: some are."""
    ledgers = [snapshot.training, *([] if wait.want == "batch" else [snapshot.evaluation])]
    if any(one.pending for one in ledgers):
        return None
    return sum(one.running for one in ledgers)


def _sample_of(snapshot: Snapshot) -> _Sample:
    done, judged = snapshot.training, snapshot.evaluation
    generations = snapshot.engine
    return _Sample(
        snapshot.uptime_s,
        0 if generations is None else generations.tokens,
        done.accepted,
        sum(one.finished + one.collected + one.discarded for one in (done, judged)),
        (done.running, done.running + judged.running),
    )
