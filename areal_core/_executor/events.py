"""What the executor tells others: the log, and a `StalenessManager` that counts."""

from __future__ import annotations

import atexit
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from areal_core import _log
from areal_core._executor.bundle import Bundle
from areal_core._executor.port import Witness
from areal_core._executor.rollout import Episode, Lane, Plan, Rollout
from areal_core._executor.stuck import StuckWatch
from areal_core._log import describe, get_logger, log
from areal_core._runner import exit_hook
from areal_core._watch.lateness import Late
from areal_core._watch.looks import Blocked
from areal_core.staleness_manager import StalenessManager

_PATIENT = ("debug", "info")

_Fields = dict[str, Any]


class Log:
    """Every line the executor logs. A logger that raises costs the line, never the executor.

    Lines are kept until `write`, which is called without a lock: a handler may wait for a thread that waits
    for the executor, if only to say how that is doing. Those that ask nothing of anybody may wait for others
    then, a tenth of a second at most while the loop turns, so that a line for each rollout costs little.
    """

    def __init__(self, logger: Any = None) -> None:
        self._logger = get_logger(logger)
        self._lines: Bundle[tuple[float, str, str, Callable[[], _Fields]]] = Bundle(self._hand_on)
        _logs.add(self)

    def line(self, level: str, event: str, **fields: Any) -> None:
        """Log one event, soon."""
        self.line_of(level, event, lambda: fields)

    def line_of(self, level: str, event: str, fields: Callable[[], _Fields]) -> None:
        """Log one event with what *fields* gives when it is written."""
        self._lines.put((time.time(), level, event, fields), hurries=level not in _PATIENT)

    def write(self) -> None:
        """Hand on what was logged since the last time."""
        self._lines.hand_on()

    def flush(self) -> None:
        """Hand on all that was logged, now; from any thread."""
        self._lines.flush()

    def end(self) -> None:
        """Let no line wait from now on: the loop may never come to it."""
        self._lines.end()

    def _hand_on(self, line: tuple[float, str, str, Callable[[], _Fields]]) -> None:
        at_s, level, event, fields = line
        log(self._logger, level, event, fields(), at_s)


_logs: weakref.WeakSet[Log] = weakref.WeakSet()


def _flush_all() -> None:
    for one in list(_logs):  # of a loop that never came to it, and is left behind
        one.flush()


atexit.register(_flush_all)  # before the hook of logging, which was registered before


class Reporter(Witness):
    """Logs how rollouts end, and reports training to a manager in AReaL's terms."""

    def __init__(
        self, log: Log, manager: StalenessManager, traces: bool, stuck: StuckWatch | None = None
    ) -> None:
        self._log = log
        self._manager = manager
        self._traces = traces
        self._stuck = stuck
        self._queued: dict[int, float] = {}  # since when what is to have a line waits, in monotonic seconds
        self._uncollected = {False: 0, True: 0}  # trajectories of evaluation: True

    def enqueued(self, rollout: Rollout) -> None:
        if self._stuck is not None:
            self._stuck.began_to_wait()
        if _log.each_rollout is not None or self._traces:
            self._queued[rollout.task_id] = time.monotonic()
        self._count(rollout, self._manager.on_rollout_enqueued)

    def began(self, rollout: Rollout) -> None:
        self._count(rollout, self._manager.on_rollout_submitted)
        if self._traces:
            self._log.line("debug", "rollout_started", **_names(rollout), version=rollout.start_version)

    def member_failed(self, member: Episode) -> None:
        rollout, error = member.rollout, member.error
        known = {"member": member.sample_idx, "version": rollout.start_version}
        told = {"error": describe(error)} if member.timed_out else {"exc_info": error}
        spent = (member.seconds,)
        fields = partial(_of_its_end, rollout.task_id, rollout.plan, rollout.data_id, spent, known, **told)
        self._log.line_of("warning", "rollout_member_failed", fields)

    def ended(self, rollout: Rollout) -> None:
        outcome = rollout.outcome
        assert outcome is not None
        if self._stuck is not None:
            self._stuck.ended()
        self._keep([rollout], 1)
        if outcome.start_version is None:
            self._count(rollout, self._manager.on_rollout_submitted)  # AReaL knows no ending of what waits
        accepted = outcome.status == "accepted"
        manager = self._manager
        self._count(rollout, manager.on_rollout_accepted if accepted else manager.on_rollout_rejected)
        queued_at = self._queued.pop(rollout.task_id, None) if self._queued else None
        level = _log.each_rollout or ("debug" if self._traces else None)
        if accepted and level is None:
            return
        queue_s = rollout.started_at - queued_at if queued_at is not None and rollout.started_at else 0.0
        known = {"version": outcome.start_version, "origin": outcome.origin, "reason": outcome.reason}
        spent = outcome.seconds, queue_s, *(rollout.phases or ())
        fields = partial(_of_its_end, rollout.task_id, rollout.plan, rollout.data_id, spent, known)
        if outcome.status == "failed":
            self._log.line_of("error", "rollout_failed", partial(fields, exc_info=outcome.error))
        elif outcome.status == "cancelled" and not rollout.is_cancelled:
            fields = partial(fields, exc_info=outcome.error)
            self._log.line_of("warning", "rollout_cancelled_itself", fields)
        elif outcome.status == "timed_out":
            fields = partial(fields, error=describe(outcome.error))
            self._log.line_of("warning", "rollout_timed_out", fields)
        elif level is not None:
            self._log.line_of(level, f"rollout_{outcome.status}", fields)

    def ran_in_vain(self, rollout: Rollout) -> None:
        if self._stuck is not None:
            self._stuck.ended()
        self._count(rollout, self._manager.on_rollout_rejected)

    def was_lost(self, rollout: Rollout) -> None:
        self.ran_in_vain(rollout)

    def delivered(self, rollouts: Iterable[Rollout]) -> None:
        self._keep(rollouts, -1)

    def came_back(self, rollouts: Iterable[Rollout]) -> None:
        self._keep(rollouts, 1)

    def ending(self) -> None:
        """Say what nobody has collected. Not of what `prepare_batch` had fetched ahead, as it always does."""
        self._log.end()
        counts = {"training": self._uncollected[False], "evaluation": self._uncollected[True]}
        if any(counts.values()) and not exit_hook.is_over():
            self._log.line(
                "warning",
                "trajectories_not_collected",
                training=counts["training"],
                evaluation=counts["evaluation"],
                remedy="wait() and its kin give them still, until initialize() or the end of the program",
            )

    def _keep(self, rollouts: Iterable[Rollout], change: int) -> None:
        for rollout in rollouts:
            if rollout.is_accepted and rollout.lane is not Lane.BATCH:
                self._uncollected[rollout.plan.is_eval] += change

    def went_stale(self, rollout: Rollout, runs_again: bool) -> None:
        self._keep([rollout], -1)
        self._count(rollout, self._manager.on_rollout_released)
        if self._traces:
            self._log.line("debug", "rollout_went_stale", **_names(rollout), runs_again=runs_again)

    def recovered(self, rollout: Rollout, is_young: bool) -> None:
        if is_young:
            for count in (
                self._manager.on_rollout_enqueued,
                self._manager.on_rollout_submitted,
                self._manager.on_rollout_accepted,
            ):
                self._count(rollout, count)

    def stalled(self, why: str) -> None:
        self._log.line("warning", "admission_stalled", why=why)

    def unfair(self, t10: float) -> None:
        self._log.line(
            "warning",
            "long_rollouts_hardly_trained",
            t10=round(t10, 3),
            remedy="raise max_head_offpolicyness, or set straggler_wait: batches wait for long rollouts then",
        )

    def blocked(self, found: Blocked | Late) -> None:
        """Say which function, or functions, kept the loop, and so every rollout, from going on."""
        if isinstance(found, Late):
            self._log.line("warning", "loop_is_late", **found.fields())
        else:
            self._log.line("warning", "loop_blocked", **found.fields())
        self._log.flush()  # here: the loop may never come to it

    def _count(self, rollout: Rollout, count: Callable[[], None]) -> None:
        if rollout.plan.is_eval:
            return
        try:
            count()
        except BaseException as error:  # a manager of the user's own; the books do not depend on it
            self._log.line("error", "staleness_manager_raised", error=describe(error), exc_info=error)


_SPENT = ("seconds", "queue_s", "generate_s", "reward_s", "accept_s")


def _of_its_end(
    task_id: int, plan: Plan, data_id: Any, spent: Sequence[float], known: _Fields, **more: Any
) -> _Fields:
    """Return what its line says; *spent* are the seconds of `_SPENT`, where phases may be missing."""
    if plan.group_size > 1:
        known["group_size"] = plan.group_size
    times = dict(zip(_SPENT, spent, strict=False))
    return {
        **_named(task_id, plan, data_id),
        **{name: round(spent_s, 6) for name, spent_s in times.items() if spent_s > 0.0 or name == "seconds"},
        **{name: value for name, value in known.items() if value is not None},
        **more,
    }


def _names(rollout: Rollout) -> _Fields:
    return _named(rollout.task_id, rollout.plan, rollout.data_id)


def _named(task_id: int, plan: Plan, data_id: Any) -> _Fields:
    names = {"rollout": task_id, "workflow": type(plan.workflow).__qualname__}
    if data_id is not None:
        names["data_id"] = data_id
    if plan.is_eval:
        names["is_eval"] = True
    return names
