"""Where a worker's episodes are played: a guest of its runner, with so many slots."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from typing import Any

from msgspec.structs import replace

from areal_core._distributed.outbox import Outbox
from areal_core._distributed.reading import Entry, Plans, Reader
from areal_core._distributed.wire import HELD, MOST_PLANS, EndedHere, Head, Orders, text_of
from areal_core._executor.desk import begun
from areal_core._executor.local_desk import EpisodeJob
from areal_core._executor.playing import Player
from areal_core._executor.rollout import Episode, Lane, Rollout
from areal_core._record import EpisodeRecord
from areal_core._runner.ending import Ending
from areal_core._runner.guest import Guest
from areal_core._runner.job import Job
from areal_core._runner.life import Life
from areal_core._runner.results import Status
from areal_core._watch.loop_watch import LoopWatch
from areal_core.errors import RemoteError

_ANY_CONTEXT = Context()
_JUDGE = -1
_NO_FIGURES = (0, None, 0.0, 0.0, 0.0)


class Floor(Guest):
    """Plays what it is given, *slots* episodes at once, in the order in which they came.

    Its lock is held for a moment at a time, and never while anything of the user's runs.
    """

    def __init__(
        self,
        life: Life,
        player: Player,
        slots: int,
        timeout_s: float | None,
        out: Outbox,
        loads: Callable[[bytes], Any],
    ) -> None:
        self._life = life
        self._player = player
        self._slots = slots
        self._timeout_s = timeout_s
        self._out = out
        self.reader = Reader(loads)
        """Unpickles what is given."""
        self._lock = threading.Lock()
        self._inbox: deque[tuple[Orders, Plans, list[Entry], int]] = deque()
        self._plans: Plans = {}
        self._rollouts: dict[int, Rollout] = {}  # by parcel; of a group until it is told to forget it
        # By parcel and place, with the number of the news that the engine has to know before.
        self._pending: OrderedDict[tuple[int, int], tuple[Episode, int]] = OrderedDict()
        self._known = 0  # the newest news that it knows
        self._to_cancel: deque[tuple[int, int]] = deque()
        self._jobs: dict[EpisodeJob, int] = {}  # the parcels of those that run
        self._said: dict[EpisodeJob, tuple[Any, ...]] = {}
        self._order = 0  # the last one that the pause was taken from
        self.turned_at = time.monotonic()
        """When the loop last turned, as far as anybody looked."""
        self._asked_to_turn = False
        self._is_held = False
        self.ending: Ending | None = None
        """Why nothing begins any more: the runner ends."""
        self.watch: LoopWatch | None = None
        """Told when episodes are played, and when none is; None: nobody watches."""
        self._launcher = life.host(self)

    # -- from any thread ---------------------------------------------------------------------------

    def give(self, orders: Orders, news: int = 0) -> None:
        """Have *orders* followed, as long as there is a loop. What of them cannot be read ends as failed.

        What is to be played begins when the engine knows the *news* of that number; see `knows`.
        """
        plans, entries = self.reader.read(orders)
        self._inbox.append((orders, plans, entries, news))
        self._post(self._work)

    def knows(self, news: int) -> None:
        """Take note that the engine knows the news up to that number."""
        self._known = news
        self._post(self._work)

    def _post(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed a moment ago
            self._life.thread.post(callback)

    def stalled_s(self) -> float:
        """Return for how long the loop has not turned; ask for a turn, for the next time."""
        if self._asked_to_turn:
            return time.monotonic() - self.turned_at
        self.turned_at = time.monotonic()
        self._asked_to_turn = True
        self._post(self._turned)
        return 0.0

    def returned(self) -> list[tuple[int, int]]:
        """Give back what has not begun, without the loop: it may hang."""
        with self._lock:
            self._follow()  # what the loop has not come to
            back = list(self._pending)
            self._pending.clear()
        return back

    def stages(self) -> list[tuple[int, int, tuple[Any, ...]]]:
        """Return the stages of those that run, where they are others than the last time."""
        news = []
        with self._lock:
            for job, number in self._jobs.items():
                record = job.episode.record
                said = record.stage, record.server, record.segments
                if self._said.get(job) == said:
                    continue
                self._said[job] = said
                age_s = time.monotonic() - record.since
                stage = record.stage, record.server, age_s, record.segments, record.newest_version
                news.append((number, job.episode.sample_idx, stage))
        return news

    # -- with the lock -----------------------------------------------------------------------------

    def _follow(self) -> None:
        """Do what has come; but what is to be cancelled is left for the loop."""
        while self._inbox:
            orders, plans, entries, news = self._inbox.popleft()
            self._plans.update(plans)
            for number, head, places in entries:
                self._take(number, head, places, news)
            self._to_cancel += orders.cancel
            for number in orders.forget:
                self._rollouts.pop(number, None)
            if orders.number > self._order:
                self._order, self._is_held = orders.number, orders.is_paused
            if plans:
                newest = max(plans)
                for number in [one for one in self._plans if one <= newest - MOST_PLANS]:
                    del self._plans[number]

    def _take(self, number: int, head: Head | BaseException | None, places: Sequence[int], news: int) -> None:
        if isinstance(head, tuple):
            plan_number, task_id, data_id, version, data = head
            plan = self._plans[plan_number]
            if isinstance(plan, BaseException):
                self._refuse(number, places, plan)
                return
            self._rollouts[number] = Rollout(
                task_id, plan, data, Lane.OPEN, _ANY_CONTEXT, data_id, start_version=version
            )
        rollout = self._rollouts.get(number)
        if rollout is None:  # it could not be read, now or with an earlier member
            self._refuse(number, places, head if isinstance(head, BaseException) else None)
            return
        for place in places:
            episode = Episode(rollout, place, EpisodeRecord(rollout.data_id))
            if place == _JUDGE:
                rollout.judge = episode
            else:
                rollout.episodes = _with_member(rollout.episodes, episode)
            self._pending[number, place] = episode, news

    def _refuse(self, number: int, places: Sequence[int], why: BaseException | None) -> None:
        reason = "nor could it before" if why is None else text_of(why)
        error = RemoteError(f"a worker cannot read what it was to play: {reason}")
        ended = [EndedHere(number, place, None, error, False, 0.0, _NO_FIGURES) for place in places]
        self._out.put(ended, is_last=self._is_idle())

    def _is_idle(self) -> bool:
        return not self._jobs and not self._pending

    # -- on the loop -------------------------------------------------------------------------------

    def _turned(self) -> None:
        self._asked_to_turn = False

    def _work(self) -> None:
        with self._lock:
            self._follow()
        while self._to_cancel:
            self._cancel(*self._to_cancel.popleft())
        self._launch(self._next())

    def _next(self) -> list[EpisodeJob]:
        """Return those that may begin."""
        jobs = []
        with self._lock:
            may_begin = not self._is_held and self.ending is None
            while may_begin and self._pending and len(self._jobs) < self._slots:
                (number, place), (episode, news) = next(iter(self._pending.items()))
                if news > self._known:
                    break
                del self._pending[number, place]
                episode.job = job = EpisodeJob(episode, self._player, self._timeout_s)
                self._jobs[job] = number
                jobs.append(job)
        return jobs

    def _launch(self, jobs: Sequence[EpisodeJob]) -> None:
        if jobs:
            self.watch = begun(self.watch)
            self._launcher.launch(jobs)

    def _cancel(self, number: int, place: int) -> None:
        with self._lock:
            waiting = self._pending.pop((number, place), None)
            rollout = self._rollouts.get(number)
        if waiting is not None:
            episode, _ = waiting
            never = EpisodeJob(episode, self._player, None)
            never.decision = "cancelled"
            never.end(time.monotonic_ns())
            never.fill_in()
            self._send([(number, episode)])
            return
        for episode in () if rollout is None else rollout.members():
            job = episode.job
            if episode.sample_idx == place and job is not None and job.is_open:
                job.decision = "cancelled"
                self._launcher.cancel(job)

    # -- what the runner tells ---------------------------------------------------------------------

    def publish(self, jobs: Sequence[Job]) -> None:
        """Send what has ended, and begin what waited for its slots."""
        ended = []
        for job in jobs:
            if isinstance(job, EpisodeJob) and job in self._jobs:
                with self._lock:
                    number = self._jobs.pop(job)
                    self._said.pop(job, None)
                job.fill_in()
                ended.append((number, job.episode))
        jobs = self._next()
        if ended:
            self._send(ended)
        if self.watch is not None and not self._jobs:
            self.watch.rest()
        self._launch(jobs)  # after it: from Python 3.12 on their first steps are taken here and now

    def decide(self, job: Job, decision: Status) -> bool:
        """Let *decision* be the outcome of *job*, and note what it is doing."""
        if isinstance(job, EpisodeJob):
            job.doing = f" ({job.episode.record})"
        return super().decide(job, decision)

    def _send(self, ended: Sequence[tuple[int, Episode]]) -> None:
        things = [_ended(number, episode) for number, episode in ended]
        with self._lock:
            for number, episode in ended:
                if episode.rollout.plan.group_size == 1:
                    self._rollouts.pop(number, None)
            is_last = self._is_idle()
        self._out.put(things, is_last=is_last)

    def begin_end(self, ending: Ending) -> None:
        """Begin nothing more."""
        self.ending = ending
        for job in self.jobs():
            if job.is_open:
                job.decision = "cancelled"

    def finish_end(self) -> None:
        """Let nobody wait for what does not come any more."""
        self._out.close()
        if self.watch is not None:
            self.watch.leave()

    def jobs(self) -> Iterable[EpisodeJob]:
        """Return those that run."""
        with self._lock:
            return list(self._jobs)


def _with_member(members: tuple[Episode, ...], episode: Episode) -> tuple[Episode, ...]:
    """Return *members* with *episode* in its place, also if it was handed back and comes again."""
    if not members or members[-1].sample_idx < episode.sample_idx:
        return (*members, episode)
    others = (one for one in members if one.sample_idx != episode.sample_idx)
    return tuple(sorted((*others, episode), key=_place))


def _place(episode: Episode) -> int:
    return episode.sample_idx


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
    return episode.rollout.plan.group_size > 1 and not episode.is_judge
