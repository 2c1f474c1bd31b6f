"""Where a worker's episodes are played: a guest of its runner, with so many slots."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextvars import Context
from typing import Any

from msgspec.structs import replace

from areal_core._distributed.outbox import Outbox
from areal_core._distributed.wire import HELD, EndedHere, Head, Orders
from areal_core._executor.local_desk import EpisodeJob
from areal_core._executor.playing import Player
from areal_core._executor.rollout import Episode, Lane, Rollout, Work
from areal_core._executor.work import Plan
from areal_core._record import EpisodeRecord
from areal_core._runner.ending import Ending
from areal_core._runner.guest import Guest
from areal_core._runner.job import Job
from areal_core._runner.life import Life

_ANY_CONTEXT = Context()
_JUDGE = -1


class Floor(Guest):
    """Plays what it is given, *slots* episodes at once, in the order in which they came."""

    def __init__(self, life: Life, player: Player, slots: int, timeout_s: float | None, out: Outbox) -> None:
        self._life = life
        self._player = player
        self._slots = slots
        self._timeout_s = timeout_s
        self._out = out
        self._inbox: deque[Orders] = deque()
        self._plans: dict[int, Plan] = {}
        self._rollouts: dict[int, Rollout] = {}  # by parcel; of a group until it is told to forget it
        self._numbers: dict[Rollout, int] = {}
        self._pending: deque[Episode] = deque()
        self._jobs: set[EpisodeJob] = set()
        self._said: dict[EpisodeJob, tuple[Any, ...]] = {}
        self._order = 0  # the last one that version and pause were taken from
        self.turned_at = time.monotonic()
        """When the loop last turned, as far as anybody looked."""
        self._asked_to_turn = False
        self._is_held = False
        self._launcher = life.host(self)

    # -- from any thread ---------------------------------------------------------------------------

    def give(self, orders: Orders) -> None:
        """Have *orders* followed."""
        self._inbox.append(orders)
        self._life.thread.post(self._work)

    def stalled_s(self) -> float:
        """Return for how long the loop has not turned; ask for a turn, for the next time."""
        if self._asked_to_turn:
            return time.monotonic() - self.turned_at
        self.turned_at = time.monotonic()
        self._asked_to_turn = True
        self._life.thread.post(self._turned)
        return 0.0

    def returned(self) -> list[tuple[int, int]]:
        """Give back what has not begun, without the loop: it may hang."""
        back: list[tuple[int, int]] = []
        while True:
            try:
                episode = self._pending.pop()
            except IndexError:
                return back
            back.append((self._numbers[episode.rollout], episode.sample_idx))

    def stages(self) -> list[tuple[int, int, tuple[Any, ...]]]:
        """Return the stages of those that run, where they are others than the last time."""
        news = []
        for job in list(self._jobs):
            record = job.episode.record
            said = record.stage, record.server, record.segments
            number = self._numbers.get(job.episode.rollout)
            if self._said.get(job) == said or number is None:
                continue
            self._said[job] = said
            age_s = time.monotonic() - record.since
            news.append(
                (
                    number,
                    job.episode.sample_idx,
                    (record.stage, record.server, age_s, record.segments, record.newest_version),
                )
            )
        return news

    # -- on the loop -------------------------------------------------------------------------------

    def _turned(self) -> None:
        self._asked_to_turn = False

    def _work(self) -> None:
        while self._inbox:
            orders = self._inbox.popleft()
            self._plans.update(orders.plans)
            for number, head, places in orders.give:
                self._take(number, head, places)
            for number, place in orders.cancel:
                self._cancel(number, place)
            for number in orders.forget:
                self._forget(number)
            if orders.number > self._order:
                self._order, self._is_held = orders.number, orders.is_paused
                for plan in orders.dropped_plans:
                    self._plans.pop(plan, None)
        self._start()

    def _take(self, number: int, head: Head | None, places: Sequence[int]) -> None:
        if head is not None:
            plan_number, task_id, data_id, version, data = head
            plan = self._plans[plan_number]
            work = Work(
                data,
                plan.workflow,
                plan.accept,
                plan.group_size,
                plan.keep_rest,
                _ANY_CONTEXT,
                plan.is_eval,
                data_id,
            )
            rollout = Rollout(task_id, work, Lane.OPEN, start_version=version)
            self._rollouts[number] = rollout
            self._numbers[rollout] = number
        rollout = self._rollouts[number]
        for place in places:
            episode = Episode(rollout, place, EpisodeRecord(rollout.work.data_id))
            if place == _JUDGE:
                rollout.judge = episode
            else:
                rollout.episodes.append(episode)
            self._pending.append(episode)

    def _start(self) -> None:
        room = self._slots - len(self._jobs)
        if self._is_held or room <= 0 or not self._pending:
            return
        jobs = []
        for _ in range(room):
            try:
                episode = self._pending.popleft()
            except IndexError:  # none is left, or it was given back a moment ago
                break
            episode.job = job = EpisodeJob(episode, self._player, self._timeout_s)
            self._jobs.add(job)
            jobs.append(job)
        self._launcher.launch(jobs)

    def _cancel(self, number: int, place: int) -> None:
        rollout = self._rollouts.get(number)
        for episode in () if rollout is None else rollout.members():
            if episode.sample_idx != place:
                continue
            job = episode.job
            if job is not None and job.is_open:
                job.decision = "cancelled"
                self._launcher.cancel(job)
            elif job is None and episode in self._pending:
                self._pending.remove(episode)
                never = EpisodeJob(episode, self._player, None)
                never.decision = "cancelled"
                never.end(time.monotonic_ns())
                never.fill_in()
                self._send([episode])

    def _forget(self, number: int) -> None:
        rollout = self._rollouts.pop(number, None)
        if rollout is not None:
            del self._numbers[rollout]

    # -- what the runner tells ---------------------------------------------------------------------

    def publish(self, jobs: Sequence[Job]) -> None:
        """Send what has ended, and begin what waited for its slots."""
        ended = []
        for job in jobs:
            if isinstance(job, EpisodeJob) and job in self._jobs:
                self._jobs.discard(job)
                self._said.pop(job, None)
                job.fill_in()
                ended.append(job.episode)
        self._start()
        if ended:
            self._send(ended)

    def _send(self, episodes: Sequence[Episode]) -> None:
        things = []
        for episode in episodes:
            rollout = episode.rollout
            number = self._numbers.get(rollout)
            if number is None:
                continue
            things.append(_ended(number, episode))
            if rollout.work.group_size == 1:
                self._forget(number)
        self._out.put(things, is_last=not self._jobs and not self._pending)

    def begin_end(self, ending: Ending) -> None:
        """Begin nothing more."""
        self._is_held = True
        for job in self.jobs():
            if job.is_open:
                job.decision = "cancelled"

    def finish_end(self) -> None:
        """Let nobody wait for what does not come any more."""
        self._out.close()

    def jobs(self) -> Iterable[EpisodeJob]:
        """Return those that run."""
        return list(self._jobs)


def _ended(number: int, episode: Episode) -> EndedHere:
    record, verdict = episode.record, episode.verdict
    if verdict is not None and verdict.trajectory is not None and _is_member(episode):
        # It stays here, for the judge: nobody else needs it.
        verdict = replace(verdict, trajectory=HELD)
    return EndedHere(
        number,
        episode.sample_idx,
        verdict,
        episode.error,
        episode.timed_out,
        episode.seconds,
        (record.segments, record.newest_version, record.generate_s, record.reward_s, record.accept_s),
    )


def _is_member(episode: Episode) -> bool:
    return episode.rollout.work.group_size > 1 and not episode.is_judge
