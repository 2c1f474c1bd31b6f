"""Look at an executor: `Observer`."""

from __future__ import annotations

import os
import statistics
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from areal_core._engine.stats import EngineStats
from areal_core._executor.aside import aside
from areal_core._executor.books import RolloutLedger
from areal_core._executor.capacity import capacity_of, wish_of
from areal_core._executor.core import Core
from areal_core._executor.desk import Desk
from areal_core._executor.explaining import oldest_episode, short_name
from areal_core._executor.explanation import CapacityExplanation
from areal_core._executor.report import StalenessReport
from areal_core._executor.requests import Request, Want
from areal_core._executor.rollout import Rollout
from areal_core._executor.rules import Rules
from areal_core._executor.snapshot import (
    AGES_S,
    Journal,
    LoopBlame,
    Reason,
    Snapshot,
    Straggler,
    Wait,
)
from areal_core._executor.stuck import StuckWatch
from areal_core._offload.crew import stats_of as offload_stats
from areal_core._runner.life import Life
from areal_core._watch.blame import Blame
from areal_core.errors import ArealError

if TYPE_CHECKING:
    from areal_core._executor.journaling import Journaling

_PATIENCE_S = 0.2  # with the loop's thread, whose work takes milliseconds unless somebody's code blocks it
_MOST_SHOWN = 20
_BLAMED_S = 60.0
_LEAST_INTEGER = -(2**63)  # of those that msgspec writes; the largest are no problem to it

_WANTS: dict[Want, Literal["batch", "claimed", "any"]] = {
    Want.BATCH: "batch",
    Want.CLAIMED: "claimed",
    Want.ENDED: "any",
}


class _Facts(NamedTuple):
    """What the core says, between two events or nearly so."""

    capacity: CapacityExplanation
    ledgers: tuple[RolloutLedger, RolloutLedger]
    report: StalenessReport
    is_paused: bool
    callers: tuple[str, ...]
    waits: tuple[Wait, ...]
    running: list[Rollout]


class Observer:
    """Takes snapshots of one life of an executor. Any thread may; none of it runs on the loop."""

    def __init__(
        self,
        desk: Desk,
        rules: Rules,
        engine: Any,
        life: Life,
        stuck: StuckWatch,
        journaling: Journaling | None,
    ) -> None:
        self._desk = desk
        self._rules = rules
        self._engine = engine
        self._life = life
        self._stuck = stuck
        self._journaling = journaling
        self._began = time.monotonic()

    def snapshot(self) -> Snapshot:
        """Return what goes on now."""
        return aside(self._life.thread, self.look)

    def look(self) -> Snapshot:
        """Return what goes on now. Only for threads where no Ctrl-C comes, and no signal handler."""
        facts: _Facts = self._desk.glimpse(self._facts, _PATIENCE_S)
        now = self._desk.time()
        ages = [now - one.started_at for one in facts.running]
        stages = [*map(_stage_of, facts.running)]
        watch, capacity = self._desk.watch, facts.capacity
        return Snapshot(
            taken_at=time.time(),
            pid=os.getpid(),
            program=_program(),
            uptime_s=now - self._began,
            has_ended=self._life.ending is not None,
            training=facts.ledgers[0],
            evaluation=facts.ledgers[1],
            version=capacity.version,
            is_paused=facts.is_paused,
            reasons=tuple(Reason(kind, text) for kind, text in capacity.reasons),
            samples=capacity.samples,
            most_samples=capacity.most_samples,
            units_running=capacity.units_running,
            units_waiting=capacity.units_waiting,
            units_consumed=capacity.units_consumed,
            most_units=capacity.most_units,
            callers=facts.callers,
            waits=facts.waits,
            batch=self._rules.batch,
            max_staleness=self._rules.max_staleness,
            stages=dict(Counter(stages)),
            ages=_ages_by_stage(stages, ages),
            lags=_lags(facts.running, capacity.version),
            age_p50_s=statistics.median(ages) if ages else None,
            age_max_s=max(ages, default=None),
            stragglers=tuple(_straggler(one, now) for one in facts.running[:_MOST_SHOWN]),
            since_end_s=self._stuck.seconds,
            offloaded=offload_stats(self._life.thread.loop),
            loop_lag_s=None if watch is None else watch.lag_s,
            loop_blame=None if watch is None else _blame(watch.blamed),
            staleness=facts.report,
            engine=self._of_engine(),
            journal=self._of_journal(),
        )

    def _facts(self, core: Core) -> _Facts:
        books = core.books
        training, evaluation = self._desk.left()
        return _Facts(
            capacity_of(core, self._rules, (training, evaluation)),
            (
                books.training.snapshot().with_pending(training),
                books.evaluation.snapshot().with_pending(evaluation),
            ),
            core.tally.report(),
            core.scheduler.is_paused,
            tuple(map(wish_of, islice(core.requests, _MOST_SHOWN))),
            tuple(map(_wait_of, islice(core.requests, _MOST_SHOWN))),
            list(core.scheduler.running.values()),  # in the order of their starts
        )

    def _of_engine(self) -> EngineStats | None:
        stats = getattr(self._engine, "stats", None)
        try:
            found = stats() if callable(stats) else None
        except (ArealError, TypeError):  # it was destroyed; or is somebody's own, whose stats are others
            return None
        return found if isinstance(found, EngineStats) else None

    def _of_journal(self) -> Journal | None:
        if self._journaling is None:
            return None
        writer = self._journaling.writer
        return Journal(
            step=self._journaling.step,
            waiting_bytes=writer.waiting_bytes,
            left_out=writer.left_out,
            failed=writer.failed,
        )


def _program() -> str:
    path = Path(sys.argv[0] if sys.argv else "")
    return path.parent.name if path.name == "__main__.py" else path.name


def _blame(found: Blame | None) -> LoopBlame | None:
    """Return who kept the loop late, unless that is over for a minute."""
    ago_s = 0.0 if found is None else max(0.0, time.monotonic() - found.at)
    if found is None or ago_s > _BLAMED_S:
        return None
    return LoopBlame(
        function=found.function, where=found.where, seconds=found.seconds, share=found.share, ago_s=ago_s
    )


def _wait_of(request: Request) -> Wait:
    return Wait(
        want=_WANTS[request.want],
        is_eval=request.is_eval,
        count=request.count,
        there=request.there,
        is_held=request.held_until is not None,
    )


def _ages_by_stage(stages: Sequence[str], ages: Sequence[float]) -> dict[str, tuple[int, ...]]:
    """Count by stage and class of age."""
    counts = {stage: [0] * (len(AGES_S) + 1) for stage in stages}
    for stage, age in zip(stages, ages, strict=True):
        counts[stage][bisect_right(AGES_S, age)] += 1
    return {stage: tuple(counted) for stage, counted in counts.items()}


def _lags(running: Iterable[Rollout], version: int) -> dict[int, int]:
    lags = Counter(version - one.start_version for one in running if not one.plan.is_eval)
    return dict(sorted(lags.items()))


def _stage_of(rollout: Rollout) -> str:
    episode = oldest_episode(rollout)
    if episode is None:
        return "waiting for slots for the rest of its group"
    return "generating" if episode.record.server is not None else episode.record.stage


def _data_id(rollout: Rollout) -> int | float | bool | str | None:
    """Return what names its item, as JSON can have it."""
    name: int | float | bool | str | None = short_name(rollout.data_id)
    return str(name) if type(name) is int and name < _LEAST_INTEGER else name


def _straggler(rollout: Rollout, now: float) -> Straggler:
    episode = oldest_episode(rollout)
    record = None if episode is None else episode.record
    return Straggler(
        task_id=rollout.task_id,
        data_id=_data_id(rollout),
        workflow=type(rollout.plan.workflow).__qualname__,
        is_eval=rollout.plan.is_eval,
        age_s=now - rollout.started_at,
        stage=_stage_of(rollout) if record is None else record.stage,
        stage_s=now - (rollout.started_at if record is None else record.since),
        server=None if record is None else record.server,
        segments=0 if record is None else record.segments,
    )
