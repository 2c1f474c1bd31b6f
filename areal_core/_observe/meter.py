"""What is measured of one executor: snapshots, what is counted as it happens, counters that never fall."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from areal_core import _process
from areal_core._engine.stats import EngineStats
from areal_core._executor.core import Core
from areal_core._executor.desk import Desk
from areal_core._executor.port import Witness
from areal_core._executor.report import Trained
from areal_core._executor.rollout import Rollout
from areal_core._executor.snapshot import Snapshot
from areal_core._observe.figures import (
    FIGURES,
    HISTOGRAMS,
    KINDS,
    ROLLOUT_SECONDS,
    STALENESS,
    STATUSES,
    Figure,
    HistogramFigure,
    Labels,
    Seen,
)
from areal_core.errors import RunnerStoppedError

if TYPE_CHECKING:
    from areal_core._observe.tracing import Tracing
    from areal_core.workflow_executor import WorkflowExecutor

Observed = Callable[[HistogramFigure, Labels, float], None]


class Buckets:
    """One series of a histogram: how much was in each bucket, the last of which has no bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count *value*."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Reading(NamedTuple):
    """All figures at one moment."""

    figures: Mapping[Figure, Mapping[Labels, float]]
    histograms: Mapping[HistogramFigure, Mapping[Labels, tuple[list[int], float]]]
    """Counts of buckets, and the sum."""


NOTHING = Reading({}, {})


class Meter(Witness):
    """Measures one executor through all its lives, without keeping it alive.

    The thread that owns the core counts; any thread reads.
    """

    def __init__(self, executor: WorkflowExecutor) -> None:
        self._executor = weakref.ref(executor)
        self._home = _process.home()
        self._lock = threading.Lock()  # one reading at a time: an older one must not look like a new life
        self._core: Core | None = None
        self._ended: Counter[Labels] = Counter()
        self._expired: Counter[str] = Counter()
        self._histograms: dict[HistogramFigure, dict[Labels, Buckets]] = {one: {} for one in HISTOGRAMS}
        self._engine = _EngineLives()
        self._rising: dict[tuple[str, Labels], _Rising] = {}
        self.listeners: list[Observed] = []
        """Told of what histograms count, on the thread that owns the core. They do not raise."""
        self.tracing: Tracing | None = None
        """Follows episodes; call `see` after a change."""

    @property
    def is_in_use(self) -> bool:
        """Whether its executor exists, and has not ended."""
        executor = self._executor()
        return executor is not None and executor.runner.stats().state not in ("stopped", "died")

    def see(self) -> None:
        """Follow the life that the executor is in, if it has begun one. Never blocks."""
        executor = self._executor()
        shift = None if executor is None else executor._shift
        if shift is not None:
            shift.desk.post(self.follow, shift.desk)

    def follow(self, desk: Desk) -> None:
        """Count what happens in one life, from now on; as the thread that owns its core."""
        tracing = self.tracing  # which another thread may take away
        core, desk.tracer = desk.core, tracing
        if tracing is not None and core.has_ended:
            tracing.told.end()
        elif tracing is not None:
            tracing.told.begin()
        if self._core is core:
            return
        if self._core is None:
            for kind, books in zip(KINDS, (core.books.training, core.books.evaluation), strict=True):
                ledger = books.snapshot()
                self._ended.update({(kind, status): getattr(ledger, status) for status in STATUSES})
        self._core = core
        core.tell_also(self)
        core.tally.on_delivered = self._delivered

    def read(self) -> Reading:
        """Return all figures now; from any thread, whatever blocks the loop. Nothing: there are none."""
        if self._home is not _process.home():
            return NOTHING  # a forked child's executor is its parent's
        with self._lock:
            executor = self._executor()
            if executor is None:
                return NOTHING
            try:
                snapshot = executor.snapshot()
            except RunnerStoppedError:  # it has not begun
                return NOTHING
            return self._read(self._engine.joined(snapshot, _life_of(executor._engine)))

    def _read(self, snapshot: Snapshot) -> Reading:
        seen = Seen(snapshot, self._ended.copy(), self._expired.copy())
        figures = {figure: dict(figure.read(seen)) for figure in FIGURES}
        for figure, samples in figures.items():
            if figure.is_counter:
                for labels, value in samples.items():
                    samples[labels] = self._risen(figure, labels, value)
        histograms = {
            one: {labels: (list(made.counts), made.sum) for labels, made in list(series.items())}
            for one, series in self._histograms.items()
        }
        return Reading(figures, histograms)

    def _risen(self, figure: Figure, labels: Labels, value: float) -> float:
        rising = self._rising.setdefault((figure.name, labels), _Rising())
        return rising.next(value, begins_anew=figure.life == "alone" and value < rising.last)

    # -- what happens ------------------------------------------------------------------------------

    def enqueued(self, rollout: Rollout) -> None:
        tracing = self.tracing
        if tracing is not None:
            tracing.enqueued(rollout)

    def ended(self, rollout: Rollout) -> None:
        outcome = rollout.outcome
        assert outcome is not None
        tracing = self.tracing
        if tracing is not None:
            tracing.ended(rollout)
        labels = (_kind_of(rollout), outcome.status)
        self._ended[labels] += 1
        if outcome.start_version is not None:
            self._observe(ROLLOUT_SECONDS, labels, outcome.seconds)

    def went_stale(self, rollout: Rollout, runs_again: bool) -> None:
        self._expired[_kind_of(rollout)] += 1
        if not runs_again:
            self._ended[_kind_of(rollout), "stale"] += 1

    def recovered(self, rollout: Rollout, is_young: bool) -> None:
        if is_young:
            self._ended[_kind_of(rollout), "accepted"] += 1

    def ending(self) -> None:
        tracing = self.tracing
        if tracing is not None:
            tracing.told.end()
            tracing.told.flush()

    def _delivered(self, trained: Trained) -> None:
        self._observe(STALENESS, (), float(trained.staleness))

    def _observe(self, figure: HistogramFigure, labels: Labels, value: float) -> None:
        series = self._histograms[figure]
        if labels not in series:
            series[labels] = Buckets(figure.bounds)
        series[labels].add(value)
        for listener in self.listeners:
            listener(figure, labels, value)


def _kind_of(rollout: Rollout) -> str:
    return KINDS[rollout.plan.is_eval]


def _life_of(engine: object) -> object:
    """Return what there is one of for each life of *engine*; None: it has ended, or is somebody's own."""
    life = getattr(engine, "_state", None)
    return life if hasattr(life, "generations") else None


class _Rising:
    """A counter that begins anew now and then, as one that does not. Else it may fall for a moment only."""

    def __init__(self) -> None:
        self._before: float = 0
        self.last: float = 0

    def next(self, value: float, begins_anew: bool) -> float:
        """Return the sum over all lives, given what this one has come to."""
        if begins_anew:
            self._before += self.last
            self.last = value
        self.last = max(self.last, value)
        return self._before + self.last


class _EngineLives:
    """Adds up the counters of an engine over its lives, each of which begins at 0."""

    def __init__(self) -> None:
        self._before = EngineStats()
        self._last: EngineStats | None = None
        self._life: Callable[[], object] = lambda: None

    def joined(self, snapshot: Snapshot, life: object) -> Snapshot:
        """Return *snapshot* with the sums. Of an engine that has ended, what it said last stays.

        *life* is an object that each life has one of; None: it is not known, or it has ended.
        """
        now, last = snapshot.engine, self._last
        if now is None:
            if last is None:
                return snapshot
            now = EngineStats(**{name: getattr(last, name) for name in _SUMMED})
        elif last is not None and self._begins_anew(now, last, life):
            self._before = self._sum(last)
        self._last = now
        if life is not None:
            self._life = weakref.ref(life)
        return replace(snapshot, engine=self._sum(now))

    def _begins_anew(self, now: EngineStats, last: EngineStats, life: object) -> bool:
        fell = any(getattr(now, name) < getattr(last, name) for name in _NEVER_FALL)
        return fell or (life is not None and self._life() is not life)

    def _sum(self, now: EngineStats) -> EngineStats:
        sums = {name: getattr(self._before, name) + getattr(now, name) for name in _SUMMED}
        return dataclasses.replace(now, **sums)


_NEVER_FALL = ("ended", "failed", "cancelled", "attempts")
"""Of one life. Its tokens may, for the moment in which one that runs becomes one that has ended."""

_SUMMED = (*_NEVER_FALL, "tokens")

_meters: weakref.WeakKeyDictionary[WorkflowExecutor, Meter] = weakref.WeakKeyDictionary()
_meters_lock = threading.Lock()


def meter_of(executor: WorkflowExecutor) -> Meter:
    """Return the meter of *executor*, made and set to work if there was none. Never blocks.

    Raises TypeError, and RunnerStoppedError in a forked child.
    """
    if not callable(getattr(executor, "snapshot", None)) or not hasattr(executor, "_observers"):
        raise TypeError(f"executor is a {type(executor).__name__}; pass a WorkflowExecutor")
    shift = executor._shift
    if shift is not None:
        shift.raise_if_abroad()
    with _meters_lock:
        if executor not in _meters:
            _meters[executor] = meter = Meter(executor)
            executor._observers.append(meter.follow)
            meter.see()
        return _meters[executor]
