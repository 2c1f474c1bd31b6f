"""Episodes as tasks of the loop that the core is on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from areal_core._executor.desk import Desk, Whereabouts
from areal_core._executor.playing import Player
from areal_core._executor.rollout import Episode
from areal_core._runner.job import Job
from areal_core._runner.launcher import task_of
from areal_core._runner.life import Life
from areal_core._runner.results import Status


class EpisodeJob(Job):
    """An episode, as the runner's launcher knows it."""

    __slots__ = ("doing", "episode")

    noun = "rollout"

    def __init__(self, episode: Episode, player: Player, timeout_s: float | None) -> None:
        rollout = episode.rollout
        # Each in its own copy of the caller's context variables.
        super().__init__(rollout.task_id, player.play, (episode,), {}, rollout.context.copy(), timeout_s)
        self.episode = episode
        self.doing = ""

    @property
    def label(self) -> str:
        """Name the episode for a log line."""
        rollout = self.episode.rollout
        member = f"[{self.episode.sample_idx}]" if rollout.plan.group_size > 1 else ""
        return f"rollout {rollout.task_id}{member} {type(rollout.plan.workflow).__qualname__}"

    def fill_in(self) -> None:
        """Note at the episode how it ended."""
        episode = self.episode
        if self.decision is None:
            episode.verdict, episode.error = self.data, self.error
        else:
            episode.verdict, episode.error = None, self.verdict(self.decision)
        episode.timed_out = self.status == "timed_out"
        episode.seconds = (self.finish_time - self.create_time) / 1e9
        episode.job = None  # or each would keep the other alive
        episode.record.enter("ended")


class LocalDesk(Desk):
    """A desk that is its core's port onto the runner's loop: each episode is a task there."""

    def __init__(self, life: Life, player: Player, episode_timeout_s: float | None) -> None:
        super().__init__(life)
        self._player = player
        self._episode_timeout_s = episode_timeout_s
        self._jobs: set[EpisodeJob] = set()
        self._to_launch: list[EpisodeJob] = []

    def start(self, episodes: Sequence[Episode]) -> None:
        """Begin to run *episodes*."""
        if not self._jobs:
            self._begin_watch()
        for episode in episodes:
            if self.tracer is not None:
                self.tracer.starting(episode)
            episode.job = job = EpisodeJob(episode, self._player, self._episode_timeout_s)
            self._jobs.add(job)
            self._to_launch.append(job)

    def cancel(self, episode: Episode) -> None:
        """Tell *episode* to end; it has the runner's grace to clean up."""
        job = episode.job
        if job is not None and job.is_open:
            job.decision = "cancelled"
            if self._launcher is not None and self._life.thread.is_current():
                self._launcher.cancel(job)  # else the loop is blocked, and left behind

    def whereabouts(self, episode: Episode) -> Whereabouts:
        """Return its task, as long as it has one, and whether its end is decided."""
        job: EpisodeJob | None = episode.job
        if job is None:
            return Whereabouts()
        return Whereabouts(task_of(job, self._life.thread.loop), decision=job.decision)

    def _gathered(self) -> Callable[[], None] | None:
        launcher, jobs = self._launcher, self._to_launch
        if not jobs or launcher is None:
            return None
        self._to_launch = []
        # Without the lock: from Python 3.12 on their first steps are taken here and now.
        return lambda: launcher.launch(jobs)

    def publish(self, jobs: Sequence[Job]) -> None:
        """Take note of episodes that have ended."""
        ended = [job for job in jobs if isinstance(job, EpisodeJob) and job in self._jobs]
        if ended:
            self._found.append((self._take, (ended,)))
            self._work_a_while()

    def decide(self, job: Job, decision: Status) -> bool:
        """Let *decision* be the outcome of *job*, and note what it is doing."""
        if isinstance(job, EpisodeJob):
            job.doing = f" ({job.episode.record})"
        return super().decide(job, decision)

    def _note_ends(self) -> None:
        ended = sorted((job for job in self.jobs() if job.finish_time), key=_finish_time)
        self._ops.append((self._take, (ended,)))

    def jobs(self) -> Iterable[EpisodeJob]:
        """Return those that run."""
        with self._lock:
            return list(self._jobs)

    def _leave_all(self) -> None:
        for job in self._jobs:
            job.decision = job.decision or "cancelled"
            if not job.finish_time:
                job.end(time.monotonic_ns())
        self._take(list(self._jobs))
        self.core.abandon_episodes()  # a fault of ours may have kept some from becoming jobs

    def _take(self, jobs: Iterable[EpisodeJob]) -> None:
        for job in jobs:
            if job in self._jobs:
                self._jobs.discard(job)
                job.fill_in()
                self.core.episodes_ended([job.episode])
        if self.watch is not None and not self._jobs:
            self.watch.rest()


def _finish_time(job: Job) -> int:
    return job.finish_time
