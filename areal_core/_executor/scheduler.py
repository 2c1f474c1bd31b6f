"""Which rollout starts next, and when one has ended: the queues, the budget, the groups. No I/O.

submit -> pending -> admit() -> episodes of a group, as slots allow -> all have ended -> judged -> ended
            ^                                                                                        |
            '----------------------- again, when it was too old and is to be -----------------------'
"""

from __future__ import annotations

from collections.abc import Callable

from areal_core._executor.budget import Budget
from areal_core._executor.line import Line
from areal_core._executor.port import Clock, Port
from areal_core._executor.rollout import Episode, Lane, Rollout, State
from areal_core._record import EpisodeRecord

_JUDGE = -1


class Scheduler:
    """Starts rollouts when they may start.

    Each is handed to *on_began* then, and to *on_ended* when nothing of it runs any more; each member that
    fails, of a group that goes on without it, to *on_member_failed*.
    """

    def __init__(
        self,
        budget: Budget,
        port: Port,
        clock: Clock,
        on_began: Callable[[Rollout], None],
        on_ended: Callable[[Rollout], None],
        on_member_failed: Callable[[Episode], None],
    ) -> None:
        self._budget = budget
        self._port = port
        self._clock = clock
        self._on_began = on_began
        self._on_ended = on_ended
        self._on_member_failed = on_member_failed
        self.is_paused = False
        self.training = Line()
        self.evaluation = Line()
        self.running: dict[int, Rollout] = {}
        """Those that have begun and not ended, of training and of evaluation, by id."""
        self._starts = 0
        self._to_start: list[Episode] = []

    def line_of(self, rollout: Rollout) -> Line:
        """Return where *rollout* waits."""
        return self.evaluation if rollout.plan.is_eval else self.training

    def enqueue(self, rollout: Rollout, *, first: bool) -> None:
        """Let *rollout* wait for its start."""
        self.line_of(rollout).add(rollout, first=first)

    def admit(self, training_too: bool) -> None:
        """Start what may start; evaluation only, unless *training_too*."""
        if self.is_paused:
            return
        while training_too and self._budget.has_slot(is_eval=False):
            rollout = self.training.next(has_unit=self._budget.units > 0)
            if rollout is None:
                break
            self._start_member(rollout)
        while self._budget.has_slot(is_eval=True):
            rollout = self.evaluation.next(has_unit=True)
            if rollout is None:
                break
            self._start_member(rollout)
        if self._to_start:
            episodes, self._to_start = self._to_start, []
            self._port.start(episodes)

    def episode_ended(self, episode: Episode) -> None:
        """Take note that *episode* has ended, with its fields filled in."""
        rollout = episode.rollout
        if episode.is_over:
            return
        episode.is_over = True
        rollout.alive -= 1
        self._budget.free_slot(rollout.plan.is_eval)
        if episode.error is not None and not episode.told_to_end:
            if episode.is_judge or not rollout.plan.keep_rest:
                rollout.failure = episode
                self._end_members(rollout)
            elif rollout.plan.group_size > 1:
                self._on_member_failed(episode)
        self._see_end(rollout)

    def lose(self, rollout: Rollout) -> bool:
        """Let what runs of *rollout* be over without an end; return whether it ran."""
        if self.running.pop(rollout.task_id, None) is None:
            return False
        self.line_of(rollout).begun.pop(rollout.task_id, None)
        for episode in rollout.members():
            if not episode.is_over:
                episode.is_over = True
                self._budget.free_slot(rollout.plan.is_eval)
        rollout.alive = 0
        return True

    def cancel(self, rollout: Rollout) -> None:
        """Have a rollout that is not finished end as cancelled, unless it has failed and cleans up."""
        if rollout.failure is not None:
            return
        rollout.is_cancelled = True
        if rollout.state is State.PENDING:
            self.line_of(rollout).remove(rollout)
            self._on_ended(rollout)
        else:
            self._end_members(rollout)
            self._see_end(rollout)

    def doom(self, rollout: Rollout, why: str) -> None:
        """End one that can bring nothing but what is too old. Its unit is free at once, its slots later."""
        rollout.doom = why
        self.uncharge(rollout)
        self._end_members(rollout)
        self._see_end(rollout)

    def uncharge(self, rollout: Rollout) -> None:
        """Free the unit of a rollout that runs."""
        if rollout.is_charged:
            rollout.is_charged = False
            self._budget.running -= 1

    def settle(self, rollout: Rollout, keeps_unit: bool) -> None:
        """Turn the unit of a rollout that ran into one that waits, or free it."""
        if rollout.is_charged:
            self.uncharge(rollout)
            if keeps_unit:
                rollout.is_charged = True
                self._budget.waiting += 1

    def _start_member(self, rollout: Rollout) -> None:
        if not rollout.episodes:
            self._begin(rollout)
        episode = self._new_episode(rollout, len(rollout.episodes))
        rollout.episodes += (episode,)
        if not rollout.has_more_members:
            self.line_of(rollout).begun.pop(rollout.task_id, None)
        self._to_start.append(episode)

    def _begin(self, rollout: Rollout) -> None:
        line = self.line_of(rollout)
        line.remove(rollout)
        rollout.state = State.RUNNING
        rollout.start_order = self._starts
        self._starts += 1
        rollout.start_version = self._budget.version
        rollout.started_at = self._clock.time()
        self.running[rollout.task_id] = rollout
        if rollout.plan.group_size > 1:
            line.begun[rollout.task_id] = rollout
        if rollout.lane is not Lane.ROW and not rollout.plan.is_eval:
            rollout.is_charged = True
            self._budget.running += 1
        self._on_began(rollout)

    def _new_episode(self, rollout: Rollout, sample_idx: int) -> Episode:
        rollout.alive += 1
        self._budget.take_slot(rollout.plan.is_eval)
        return Episode(rollout, sample_idx, EpisodeRecord(rollout.data_id))

    def _end_members(self, rollout: Rollout) -> None:
        self.line_of(rollout).begun.pop(rollout.task_id, None)
        for episode in rollout.members():
            if not episode.is_over and not episode.told_to_end:
                episode.told_to_end = True
                self._port.cancel(episode)

    def _see_end(self, rollout: Rollout) -> None:
        if rollout.alive or rollout.has_more_members or rollout.task_id not in self.running:
            return
        if _is_to_be_judged(rollout):
            rollout.judge = self._new_episode(rollout, _JUDGE)
            self._port.start([rollout.judge])
        else:
            del self.running[rollout.task_id]
            self._on_ended(rollout)


def _is_to_be_judged(rollout: Rollout) -> bool:
    """Return whether members of a group brought something that is to be joined, filtered and checked."""
    return (
        rollout.plan.group_size > 1
        and rollout.judge is None
        and not rollout.is_ending
        and any(
            member.verdict is not None and member.verdict.trajectory is not None
            for member in rollout.episodes
        )
    )
