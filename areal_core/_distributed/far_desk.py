"""The desk of an executor whose episodes are played by workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet

from areal_core._distributed.dispatcher import Dispatcher
from areal_core._distributed.leases import Ended, LeaseRules, Link, Report
from areal_core._executor.desk import Desk, Whereabouts
from areal_core._executor.rollout import Episode, Rollout
from areal_core._log import get_logger, log
from areal_core._runner.job import Job
from areal_core._runner.life import Life
from areal_core.errors import WorkerLostError


class FarLink(Link):
    """What the desk needs of a link beside what its dispatcher does."""

    def flush(self) -> None:
        """Send what was said since the last time; on the loop thread, without the desk's lock."""

    def tell(self, version: int, is_paused: bool) -> None:
        """Tell all workers, those that join later too, of the policy version, and whether they may begin."""

    def hold_generation(self, holds: bool) -> None:
        """Tell all workers, those that join later too, whether requests for tokens are to wait."""

    def gone(self, worker: int, why: str | None) -> None:
        """Take note that a worker is no more; None: it was to go."""


class FarDesk(Desk):
    """A desk whose core's port is a dispatcher beside it."""

    connects_here = False

    def __init__(self, life: Life, rules: LeaseRules, link: FarLink) -> None:
        super().__init__(life)
        self._link = link
        self.dispatcher = Dispatcher(rules, link, self, self._take, self._lose, link.gone)
        self._told: tuple[int, bool] | None = None
        self._unfollow: Callable[[], object] = _nothing
        self._is_watched = False

    def follow(self, subscribe: Callable[[Callable[[bool], None]], Callable[[], object]]) -> None:
        """Have workers told, until the end, when the engine to which *subscribe* belongs closes and opens."""
        self._unfollow = subscribe(lambda is_open: self.post(self._link.hold_generation, not is_open))

    # -- port --------------------------------------------------------------------------------------

    def start(self, episodes: Sequence[Episode]) -> None:
        """Have *episodes* played, when this piece of work is done."""
        if self.tracer is not None:
            for episode in episodes:
                self.tracer.starting(episode)
        self.dispatcher.start(episodes)

    def cancel(self, episode: Episode) -> None:
        """Tell *episode* to end; its worker gives it the grace."""
        self.dispatcher.cancel(episode)

    def whereabouts(self, episode: Episode) -> Whereabouts:
        """Return which worker has it, and whether it was told to end. Only the worker knows more."""
        worker = episode.record.worker
        return Whereabouts(
            place=None if worker is None else f"worker {worker}",
            decision="cancelled" if episode.told_to_end else None,
        )

    def _gathered(self) -> Callable[[], None]:
        core = self.core
        self._watch_while(bool(core.scheduler.running))
        told = core.budget.version, core.scheduler.is_paused
        if told != self._told:
            self._told = told
            self._link.tell(*told)
        self.dispatcher.go_on()
        return self._link.flush

    def _watch_while(self, anything_runs: bool) -> None:
        """Have this loop watched as long as there is anything to pickle for workers, or to read of them."""
        if self.watch is not None and anything_runs != self._is_watched:
            self._is_watched = anything_runs
            if anything_runs:
                self._begin_watch()
            else:
                self.watch.rest()

    # -- what the link brings, from any thread -----------------------------------------------------

    def joined(self, worker: int) -> None:
        """Take note that a worker has started."""
        self.post(self.let_in, worker)

    def reported(self, worker: int, report: Report) -> None:
        """Take a sign of life of a worker; on the loop thread."""
        self._found.append((self.dispatcher.reported, (worker, report)))
        self._work_a_while()

    def not_sent(self, worker: int, ended: Sequence[Ended]) -> None:
        """Take the ends of what could not be sent to a worker."""
        self.post(self.dispatcher.not_sent, worker, ended)

    def died(self, worker: int, why: str) -> None:
        """Take note that a worker is gone."""
        self.post(self.dispatcher.died, worker, why)

    def let_in(self, worker: int) -> None:
        """Lend to a worker from now on; only as what was posted."""
        if not self._is_closed:
            self.dispatcher.joined(worker)

    # -- what the dispatcher finds -----------------------------------------------------------------

    def _take(self, episodes: Sequence[Episode]) -> None:
        self._found.append((self.core.episodes_ended, (episodes,)))

    def _lose(self, rollouts: Sequence[Rollout], unbegun: AbstractSet[Rollout], why: str) -> None:
        error = WorkerLostError(f"the worker that played it died, again and again; the last time, {why}")
        self._found.append((self.core.rollouts_lost, (rollouts, error, unbegun)))

    # -- what the runner tells ---------------------------------------------------------------------

    def publish(self, jobs: Sequence[Job]) -> None:
        """No job is launched here."""

    def jobs(self) -> Iterable[Job]:
        """Return none: nothing of this is a task of the loop."""
        return ()

    def finish_end(self) -> None:
        """Let everything be over, and follow no engine any more."""
        super().finish_end()
        unfollow, self._unfollow = self._unfollow, _nothing
        try:
            unfollow()
        except Exception as error:  # of an engine that is not ours
            log(get_logger(), "error", "unsubscribe_raised", {"exc_info": error})

    def _leave_all(self) -> None:
        self.core.abandon_episodes()


def _nothing() -> None:
    """Leave no engine: none was followed."""
