"""Make explanations: look at the core between two events, then at tasks and at the engine.

::

    any thread                             a short-lived thread                    the loop's thread
    explain()  ------------------------->  facts of the core, between two events   goes on
               waits                       or, after a second, in the middle
               <-------------------------  stacks of tasks; servers; where the     is in the user's code?
                                           loop is

A thread of its own, since the caller's may be interrupted, or be in a signal handler that came while it
looked at the core itself. The loop's own thread looks where it is: it is never interrupted.
"""

from __future__ import annotations

import reprlib
import weakref
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from areal_core import _process, _record
from areal_core._executor.aside import aside
from areal_core._executor.capacity import capacity_of, wish_of
from areal_core._executor.core import Core
from areal_core._executor.desk import Desk, Whereabouts
from areal_core._executor.events import Log
from areal_core._executor.explanation import (
    MOST_ROLLOUTS,
    CapacityExplanation,
    Explanation,
    Reason,
    StuckRollout,
    more_lines,
)
from areal_core._executor.playing import Player
from areal_core._executor.rollout import Episode, Rollout
from areal_core._executor.rules import Rules
from areal_core._executor.stuck import StuckWatch
from areal_core._frames import frames_of_threads
from areal_core._json import writable
from areal_core._log import describe
from areal_core._offload.crew import stats_of
from areal_core._runner.launcher import Launcher
from areal_core._runner.life import Life
from areal_core._watch.awaited import stack_of
from areal_core._watch.user_frames import frames_of_callback, is_users, short_place
from areal_core.errors import EngineStoppedError

_PATIENCE_S = 1.0  # with the loop's thread, whose work takes milliseconds unless somebody's code blocks it
_LONGEST_NAME = 80
_LARGEST_NUMBER = 2**64  # Python refuses to print one of 5000 digits
_NEARLY = 0.9  # rollouts start a moment after they were submitted

_NOT_SHOWN = dict.fromkeys((Launcher._play.__code__, Player.play.__code__))  # they are in every stack

T = TypeVar("T")

_live: weakref.WeakValueDictionary[int, Explainer] = weakref.WeakValueDictionary()


class _Seen(NamedTuple):
    """One rollout, as it was between two events."""

    rollout: Rollout
    episode: Episode | None
    """The one that has been in its stage for longest; None: no member runs just now."""
    whereabouts: Whereabouts
    age_s: float
    stage_s: float


class _Facts(NamedTuple):
    """What the core says."""

    seen: list[_Seen]
    more: int
    paused: int
    """How many wait for generation to be continued."""
    capacity: CapacityExplanation
    stuck_for_s: float
    callers: tuple[str, ...]


class Explainer:
    """Explains what the executor does whose *desk* this is. Any thread may ask."""

    def __init__(self, desk: Desk, rules: Rules, engine: object, life: Life, stuck: StuckWatch) -> None:
        self._desk = desk
        self._rules = rules
        self._engine = engine
        self._life = life
        self._stuck = stuck
        _live[id(self)] = self

    @property
    def is_live(self) -> bool:
        """Whether rollouts run, or may."""
        return self._life.ending is None and self._life.home is _process.home()

    def explain(self) -> Explanation:
        """Return what runs and for what it waits, and why nothing more starts."""
        return aside(self._life.thread, self._explain)

    def capacity(self) -> CapacityExplanation:
        """Return why nothing more starts."""
        return aside(self._life.thread, lambda: self._completed(self._desk.glimpse(self._facts, _PATIENCE_S)))

    def log_stuck(self, log: Log, warning_s: float) -> None:
        """Log each rollout that has run for *warning_s*, and why nothing starts. Never raises."""
        try:
            self._log_stuck(self._explain(), log, warning_s)
        except BaseException as error:  # on the loop thread, where it would be a fault of the runner's
            log.line("error", "explaining_failed", error=describe(error), exc_info=error)
        log.write()

    def _log_stuck(self, found: Explanation, log: Log, warning_s: float) -> None:
        stuck = [rollout for rollout in found.rollouts if rollout.age_s >= warning_s * _NEARLY]
        for rollout in stuck:
            log.line("warning", "rollout_stuck", **rollout.fields())
        if stuck and found.more:
            log.line("warning", "more_rollouts_stuck", text=" ".join(more_lines(found.more)))
        if stuck or found.capacity.pending or found.capacity.eval_pending:
            capacity = found.capacity.fields()
            log.line("warning", "nothing_starts", stuck_for_s=round(found.stuck_for_s, 1), **capacity)

    def _explain(self) -> Explanation:
        facts: _Facts = self._desk.glimpse(self._facts, _PATIENCE_S)
        return Explanation(
            rollouts=tuple(map(_describe, facts.seen)),
            more=facts.more,
            capacity=self._completed(facts),
            stuck_for_s=facts.stuck_for_s,
            callers=facts.callers,
            loop_is_in=self._user_code_on_the_loop(),
            offloaded=stats_of(self._life.thread.loop),
        )

    def _facts(self, core: Core) -> _Facts:
        running, now = core.scheduler.running, self._desk.time()
        paused = sum(
            one.record.stage == _record.PAUSED and not one.is_over
            for rollout in running.values()
            for one in rollout.members()
        )
        return _Facts(
            [_seen(rollout, self._desk, now) for rollout in islice(running.values(), MOST_ROLLOUTS)],
            max(0, len(running) - MOST_ROLLOUTS),
            paused,
            capacity_of(core, self._rules, self._desk.left()),
            self._stuck.seconds,
            tuple(map(wish_of, islice(core.requests, MOST_ROLLOUTS))),
        )

    def _completed(self, facts: _Facts) -> CapacityExplanation:
        """Return the capacity with what the engine says to it, which is asked after the look."""
        reasons = list(facts.capacity.reasons)
        if facts.paused:
            text = f"{facts.paused} generations wait; continue_generation() lets them go on"
            reasons.append(Reason("generation paused", text))
        out = self._why_no_server()
        if out is not None:
            reasons.append(Reason("no server in rotation", out))
        fields = {name: getattr(facts.capacity, name) for name in CapacityExplanation.__slots__}
        return CapacityExplanation(**{**fields, "reasons": tuple(reasons)})

    def _why_no_server(self) -> str | None:
        try:
            servers = getattr(self._engine, "servers", None)
        except EngineStoppedError as error:
            return str(error)
        except Exception:  # an engine of somebody's, which need not have any
            return None
        if not isinstance(servers, Mapping) or not servers or None in servers.values():
            return None
        shown = [f"{name} is out: {why}" for name, why in islice(servers.items(), MOST_ROLLOUTS)]
        return "; ".join(shown)

    def _user_code_on_the_loop(self) -> str | None:
        """Return the stack of the loop's thread, if it is in the user's code just now."""
        thread = self._life.thread
        if thread.is_current():
            return None
        frames = frames_of_callback(frames_of_threads().get(thread.thread.ident or 0), 0)
        while frames and not is_users(frames[-1]):
            frames.pop()
        return "\n".join(map(short_place, reversed(frames))) or None


def explainers() -> list[Explainer]:
    """Return those of all executors of this process that run."""
    found = [reference() for reference in _live.valuerefs()]  # a list at once: others may come and go
    return [one for one in found if one is not None and one.is_live]


# -- rollouts --------------------------------------------------------------------------------------


def oldest_episode(rollout: Rollout) -> Episode | None:
    """Return the one that has been in its stage for longest; None: no member runs just now."""
    alive = [one for one in rollout.members() if not one.is_over]
    return min(alive, key=lambda one: one.record.since, default=None)


def _seen(rollout: Rollout, desk: Desk, now: float) -> _Seen:
    episode = oldest_episode(rollout)
    return _Seen(
        rollout,
        episode,
        Whereabouts() if episode is None else desk.whereabouts(episode),
        now - rollout.started_at,
        now - (rollout.started_at if episode is None else episode.record.since),
    )


def _describe(seen: _Seen) -> StuckRollout:
    rollout, record = seen.rollout, seen.episode.record if seen.episode is not None else None
    stage = "waiting for slots for the rest of its group" if record is None else record.stage
    if seen.whereabouts.decision is not None:
        stage += f", though it was told to end ({seen.whereabouts.decision})"
    size = rollout.plan.group_size
    return StuckRollout(
        task_id=rollout.task_id,
        data_id=short_name(rollout.data_id),
        workflow=type(rollout.plan.workflow).__qualname__,
        is_eval=rollout.plan.is_eval,
        age_s=seen.age_s,
        stage=stage,
        stage_s=seen.stage_s,
        server=None if record is None else record.server,
        segments=0 if record is None else record.segments,
        members=None if size == 1 else f"{rollout.alive} of a group of {size} run",
        stack=_stack(seen.whereabouts),
    )


def _stack(whereabouts: Whereabouts) -> str:
    from areal_core._watch.offloaded_calls import NOTES  # not before somebody asks

    if whereabouts.place is not None:
        return f"({whereabouts.place} has it, and alone knows where in its workflow it is)"
    return "(no task)" if whereabouts.task is None else stack_of(whereabouts.task, {**NOTES, **_NOT_SHOWN})


def short_name(data_id: Any) -> Any:
    """Return *data_id* where it is a number or a short text; else a short text for it. Never raises."""
    if data_id is None or type(data_id) in (float, bool):
        return data_id
    if type(data_id) is int and abs(data_id) < _LARGEST_NUMBER:
        return data_id
    try:
        text = data_id if type(data_id) is str else reprlib.repr(data_id)
    except Exception:
        text = f"<{type(data_id).__qualname__}>"
    return writable(text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}...")
