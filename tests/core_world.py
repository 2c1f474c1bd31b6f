"""A world for the executor's core: one thread, a clock whose time passes at once, episodes by script.

The core, the books, the player and the handover in it are the library's own. The world is what is left: the
loop (`World.work` does what the desk does in one turn), the runner (`Stage`), the policy version, and those
who wait.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from areal_core._executor.books import BothBooks, RolloutLedger
from areal_core._executor.core import Core
from areal_core._executor.desk import Desk
from areal_core._executor.events import Log, Reporter
from areal_core._executor.handover import Feed, Handover
from areal_core._executor.ids import Ids
from areal_core._executor.outcome import RolloutOutcome
from areal_core._executor.report import Tally
from areal_core._executor.requests import Request, Want
from areal_core._executor.rollout import Lane, Plan, Rollout, State
from areal_core._executor.rules import Rules
from areal_core._executor.versions import Versions
from areal_core.staleness_manager import StalenessManager
from core_stage import SCRIPTED, Ending, Play, Script, Stage, VirtualClock, VirtualTimer, accept_good

R = TypeVar("R")


class Silence:
    """A logger that says nothing."""

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class Told(Reporter):
    """Reports to a manager as the executor does, and keeps what it was told."""

    def __init__(self, manager: StalenessManager) -> None:
        super().__init__(Log(Silence()), manager, traces=False)
        self.began_in_order: list[Rollout] = []
        self.ends: list[Rollout] = []
        self.stalls: list[str] = []
        self.t10s: list[float] = []
        self.in_vain = 0
        self.went_stale_for_good = 0
        self.on_began: Callable[[Rollout], None] = lambda rollout: None

    def began(self, rollout: Rollout) -> None:
        super().began(rollout)
        self.began_in_order.append(rollout)
        self.on_began(rollout)

    def ended(self, rollout: Rollout) -> None:
        super().ended(rollout)
        self.ends.append(rollout)

    def ran_in_vain(self, rollout: Rollout) -> None:
        super().ran_in_vain(rollout)
        self.in_vain += not rollout.plan.is_eval  # as a manager is told

    def went_stale(self, rollout: Rollout, runs_again: bool) -> None:
        super().went_stale(rollout, runs_again)
        self.went_stale_for_good += not runs_again

    def stalled(self, why: str) -> None:
        super().stalled(why)
        self.stalls.append(why)

    def unfair(self, t10: float) -> None:
        super().unfair(t10)
        self.t10s.append(t10)


class _OneThread(Handover):
    """The handover of a caller for whom the world goes on while he waits."""

    world: World

    def _wait(self, request: Request, deadline: float | None) -> None:
        self.world.go_on_until(lambda: request.gate.is_open)

    def hunger_of(self, request: Request) -> int:
        return self._hunger_of(request)

    def hand_out(self, request: Request) -> list[RolloutOutcome]:
        return self._hand_out(request, lambda outcomes: outcomes)

    def _hand_out(self, request: Request, shape: Callable[[list[RolloutOutcome]], R]) -> R:
        def audited(outcomes: list[RolloutOutcome]) -> R:
            self.world.on_delivery(request, outcomes)
            return shape(outcomes)

        return super()._hand_out(request, audited)


class StandstillError(AssertionError):
    """Somebody waits, and nothing will ever happen."""


class World:
    """Where a core lives: its loop, its clock, its version provider, and whoever waits."""

    def __init__(self, rules: Rules, *, version: int = 0) -> None:
        self.rules = rules
        self.version = version
        """What the version provider says; the core may not know it yet."""
        self.moves_at_reads: deque[int] = deque()
        """By how much it rises (or falls) the next times that somebody reads it, just before he does."""
        self.last_read = version
        """What was read last."""
        self.gone: set[tuple[int, int]] = set()
        """Rollouts, with how often they ran in vain, whose start the trainer went back behind."""
        self.is_busy = False
        """Whether the loop has no time for what is on the desk."""
        self.returned: deque[Request] = deque()
        self.on_event: Callable[[], None] = lambda: None
        """Called after every turn of the loop."""
        self.on_delivery: Callable[[Request, list[RolloutOutcome]], None] = lambda request, outcomes: None
        self.rollouts: list[Rollout] = []
        """All that were ever submitted."""
        self.clock = VirtualClock()
        self.stage = Stage(self)
        self.manager = StalenessManager(self, rules.most_samples, rules.batch, rules.max_staleness)
        self.told = Told(self.manager)
        books = BothBooks(RolloutLedger(), RolloutLedger())
        self.core = Core(rules, self.stage, self, books, Tally(), self.told)
        ids = Ids(is_submitted=lambda rollout: True)
        self.versions = Versions(cast(Desk, self), self.read_version)
        self.handover = _OneThread(cast(Desk, self), rules, self.versions, ids, None)
        self.handover.world = self
        self._ids = itertools.count()
        self._ops: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_working = False
        self.post(self.core.set_version, version)

    # -- the loop, as the desk runs it -------------------------------------------------------------

    def post(self, op: Callable[..., object], *args: Any) -> None:
        """Have ``op(*args)`` done, now unless the loop is busy."""
        self._ops.append((op, args))
        self.wake()

    def wake(self) -> None:
        if not self.is_busy and not self._is_working:
            self.work()

    def work(self) -> None:
        """Do what is on the desk, and what follows from it."""
        self._is_working = True
        while self._ops or self.returned:
            while self.returned:
                self.core.take_back(self.returned.popleft())
            if self._ops:
                op, args = self._ops.popleft()
                op(*args)
        self.core.go_on()
        self._is_working = False
        self.on_event()

    def set_busy(self, is_busy: bool) -> None:
        """Let what is posted pile up, or see to it."""
        self.is_busy = is_busy
        self.wake()

    def read(self, look: Callable[[Core], R]) -> R:
        return look(self.core)

    def time(self) -> float:
        return self.clock.time()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> VirtualTimer:
        return self.clock.call_later(delay_s, lambda: self.post(callback))

    def go_on_until(self, is_enough: Callable[[], bool]) -> None:
        """Let time pass until something has happened. Raises StandstillError if it never will."""
        self.set_busy(False)
        while not is_enough():
            if not self.clock.step():
                raise StandstillError(f"nothing will ever happen: {self.ledger}")

    # -- the version -------------------------------------------------------------------------------

    def get_version(self) -> int:
        return self.version

    def read_version(self) -> int:
        if self.moves_at_reads:
            self.rise(self.moves_at_reads.popleft())
        self.last_read = self.version
        return self.version

    def rise(self, by: int = 1, *, is_told: bool = True) -> None:
        """Raise the version, or lower it; unless *is_told*, the core learns of it when somebody reads it."""
        self.version += by
        if by and is_told:
            self.post(self._take, self.version)

    def _take(self, version: int) -> None:
        if version < self.core.budget.version:
            started = [one for one in self.rollouts if one.state is not State.PENDING]
            self.gone.update((one.task_id, one.requeues) for one in started if one.start_version > version)
        self.core.set_version(version)

    # -- rollouts ----------------------------------------------------------------------------------

    def make(
        self,
        data: Script | None = None,
        lane: Lane = Lane.OPEN,
        *,
        group_size: int = 1,
        is_eval: bool = False,
        keep_rest: bool = False,
        is_filtered: bool = True,
    ) -> Rollout:
        """Return a rollout that is not submitted."""
        accept = accept_good if is_filtered else None
        data = data or Script()
        plan = Plan(SCRIPTED, accept, group_size, keep_rest, is_eval)
        rollout = plan.rollout(next(self._ids), data, lane)
        self.rollouts.append(rollout)
        return rollout

    def submit(self, data: Script | None = None, lane: Lane = Lane.OPEN, **options: Any) -> Rollout:
        """Submit one rollout; see `make`."""
        rollout = self.make(data, lane, **options)
        self.post(self.core.submit, [rollout])
        return rollout

    def submit_all(self, scripts: Iterable[Script], lane: Lane = Lane.OPEN, **options: Any) -> list[Rollout]:
        """Submit one for each of *scripts*, at once."""
        rollouts = [self.make(one, lane, **options) for one in scripts]
        self.post(self.core.submit, rollouts)
        return rollouts

    def play(self, rollout: Rollout, member: int = 0) -> Play:
        """Return the episode of *rollout* that is on."""
        return self.stage.play_of(rollout, member)

    def end(self, rollout: Rollout, ending: Ending = "tokens", member: int = 0, **act: Any) -> None:
        """Let an episode end now."""
        play = self.play(rollout, member)
        self.stage.end(play, replace(play.act, ending=ending, **act))

    # -- callers -----------------------------------------------------------------------------------

    def ask(self, want: Want = Want.ENDED, count: int = 1, **options: Any) -> Request:
        """Wait for something; return the request, which the core answers."""
        request = Request(want, count, **options)
        self.post(self.core.ask, request)
        return request

    def caller(self, want: Want = Want.ENDED, count: int = 1, **options: Any) -> Caller:
        """Wait for something as somebody who looks when he is told to."""
        return Caller(self, Request(want, count, **options))

    def claim(self, *rollouts: Rollout) -> Request:
        """Wait for these."""
        return self.ask(Want.CLAIMED, len(rollouts), claims=[one.task_id for one in rollouts])

    def row_caller(self, rows: Sequence[Rollout]) -> Caller:
        """Submit *rows* and wait for them, as `rollout_batch` does."""
        return Caller(self, Request(Want.CLAIMED, len(rows), claims=[row.task_id for row in rows]), rows)

    def batch_request(
        self, count: int | None = None, *, dynamic: bool = False, group_size: int = 1
    ) -> Request:
        """Return the request that `prepare_batch` makes."""
        size = self.rules.batch if count is None else count
        keep_pending = self.rules.pending_for(size, group_size)
        return Request(Want.BATCH, size, dynamic=dynamic, keep_pending=keep_pending)

    def ask_for_batch(self, count: int | None = None, *, dynamic: bool = False) -> Request:
        """Wait for a batch of what was submitted for batches, never hungry."""
        size = self.rules.batch if count is None else count
        return self.ask(Want.BATCH, size, dynamic=dynamic, keep_pending=-1)

    def feeder(self, next_script: Callable[[], Script], **options: Any) -> Feed:
        """Return what submits as many rollouts for batches as it is called with."""

        def feed(wanted: int, is_last: bool) -> bool:
            assert not is_last, "it was fed all that it wanted"
            self.submit_all([next_script() for _ in range(wanted)], Lane.BATCH, **options)
            return True

        return feed

    def prepare_batch(
        self,
        next_script: Callable[[], Script],
        count: int | None = None,
        *,
        dynamic: bool = False,
        **options: Any,
    ) -> list[RolloutOutcome]:
        """Do what `prepare_batch` does, and let time pass until the batch is there."""
        group_size = options.get("group_size", 1)
        request = self.batch_request(count, dynamic=dynamic, group_size=group_size)
        feed = self.feeder(next_script, **options)
        return self.handover.obtain(request, feed=feed, shape=lambda outcomes: outcomes)

    # -- what is to be seen ------------------------------------------------------------------------

    @property
    def ledger(self) -> RolloutLedger:
        return self.core.books.training.snapshot()

    @property
    def eval_ledger(self) -> RolloutLedger:
        return self.core.books.evaluation.snapshot()


class Caller:
    """One who waits as `Handover.obtain` does, but looks only when he is told to."""

    def __init__(
        self,
        world: World,
        request: Request,
        rollouts: Sequence[Rollout] = (),
        feed: Feed | None = None,
    ) -> None:
        self._world = world
        self._feed = feed
        self.request = request
        self.outcomes: list[RolloutOutcome] | None = None
        self.error: BaseException | None = None
        op = world.core.submit_and_ask if rollouts else world.core.ask
        world.post(op, *([rollouts] if rollouts else []), request)

    @property
    def is_done(self) -> bool:
        """Whether he has what he wanted, or an error."""
        return self.outcomes is not None or self.error is not None

    def take(self) -> list[RolloutOutcome]:
        """Take what is there."""
        while self.look():
            pass
        assert self.outcomes is not None, self.error or "it is not there"
        return self.outcomes

    def look(self) -> bool:
        """See whether there is something; return whether there was."""
        world, request = self._world, self.request
        if self.is_done or not request.gate.is_open:
            return False
        if request.error is not None:
            self.give_up(request.error)
            return True
        if self._feed is not None and (hunger := world.handover.hunger_of(request)):
            is_fed = self._feed(hunger, request.is_starved)
            if request.hunger:
                self.request = request.again(is_starved=not is_fed)
                world.post(world.core.ask, self.request)
                return True
        if request.is_eval or not world.versions.has_moved(request):
            self.outcomes = world.handover.hand_out(request)
        else:
            self.request = request.anew()
            world.post(world.core.ask_again, request, self.request)
        return True

    def give_up(self, error: BaseException) -> None:
        """Wait no more, because of *error*."""
        self.error = error
        self._world.returned.append(self.request)
        self._world.wake()


def batch_caller(world: World, count: int | None = None, *, dynamic: bool = False) -> Caller:
    """Return one who waits for a batch of what there is, and is never hungry."""
    request = world.batch_request(count, dynamic=dynamic)
    request.keep_pending = -1
    return Caller(world, request)


def status_of(rollout: Rollout) -> str:
    """Return how *rollout* ended."""
    assert rollout.outcome is not None
    return rollout.outcome.status


def waits(rollout: Rollout) -> bool:
    """Return whether *rollout* has not begun."""
    return rollout.state is State.PENDING


def runs(rollout: Rollout) -> bool:
    """Return whether *rollout* has begun, and not ended."""
    return rollout.state is State.RUNNING


def is_answered(request: Request) -> bool:
    """Return whether whoever made *request* may go on."""
    return request.gate.is_open


def running(world: World) -> list[int]:
    """Return the ids of those that run, in the order they began."""
    return list(world.core.scheduler.running)
