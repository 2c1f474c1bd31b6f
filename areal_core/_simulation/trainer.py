"""The trainer: the library's own handover, in whose waits virtual time passes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from areal_core._executor.handover import Handover, accepted
from areal_core._executor.ids import Ids
from areal_core._executor.prompts import Prompts
from areal_core._executor.requests import Request, Want
from areal_core._executor.rollout import Plan
from areal_core._executor.rules import Rules
from areal_core._executor.versions import Versions
from areal_core._simulation.clock import VirtualClock, VirtualThread
from areal_core._simulation.driver import VirtualDesk
from areal_core._simulation.items import Items
from areal_core._simulation.scenario import Scenario
from areal_core.types import RolloutWorkflow


class OverError(Exception):
    """The time that is simulated has passed."""


class _Drawn(RolloutWorkflow):
    async def arun_episode(self, engine: Any, data: Any) -> None:
        """Do nothing: it is drawn what comes of it."""


class _VirtualHandover(Handover):
    """The handover of a caller who waits in virtual time."""

    pass_until: Callable[[Callable[[], bool]], None]

    def _wait(self, request: Request, deadline: float | None) -> None:
        self.pass_until(lambda: request.gate.is_open)


class Policy:
    """Knows the version."""

    def __init__(self) -> None:
        self.version = 0

    def get_version(self) -> int:
        """Return the policy version."""
        return self.version


class Trainer:
    """Takes batches, trains on them, and raises the version.

    *on_update* is called with True when generation is to stop for an update, and with False when that is
    over; *on_version* with each new version.
    """

    def __init__(
        self,
        scenario: Scenario,
        rules: Rules,
        clock: VirtualClock,
        loop: VirtualThread,
        desk: VirtualDesk,
        policy: Policy,
        on_update: Callable[[bool], None],
        on_version: Callable[[int], None],
    ) -> None:
        self._scenario = scenario
        self._rules = rules
        self._clock = clock
        self._loop = loop  # which the trainer's thread shares a processor with
        self._desk = desk
        self._policy = policy
        self._on_update = on_update
        self._on_version = on_version
        self._until = scenario.warm_up_s + scenario.measured_s
        versions = Versions(desk, policy.get_version)
        self._handover = _VirtualHandover(desk, rules, versions, Ids(lambda _: True), None)
        self._handover.pass_until = self._pass_until
        self._prompts = Prompts(itertools.count())
        self._items = Items(scenario)
        keep_rest = scenario.config.on_member_failure == "keep_rest"
        self._plan = Plan(_Drawn(), None, scenario.group_size, keep_rest, False)
        self._began_at: float | None = None
        self._busy_s = 0.0
        self.batches = 0
        """How many it has trained on."""
        self.trajectories = 0
        """How many it was given."""
        self.taken_at = 0.0
        """When it was given the last of them."""
        self.first: tuple[float, int] | None = None
        """When it was given the first, and how many with them."""

    def busy_s(self) -> float:
        """Return for how long it has trained, or updated weights."""
        return self._busy_s + (0.0 if self._began_at is None else self._clock.time() - self._began_at)

    def run(self) -> None:
        """Train until the time has passed."""
        try:
            while True:
                self._take()
                self._began_at = self._clock.time()
                self._pass(self._scenario.train_s)
                self._update()
                self._busy_s, self._began_at = self.busy_s(), None
                self.batches += 1
        except OverError:
            self._clock.run_until(self._until)

    def _take(self) -> None:
        rules, count = self._rules, self._rules.batch
        keep_pending = rules.pending_for(count, self._plan.group_size)
        request = Request(Want.BATCH, count, keep_pending=keep_pending)
        batch = self._handover.obtain(request, feed=self._feed, shape=accepted)
        self.trajectories += len(batch)
        self.taken_at = self._clock.time()
        self.first = self.first or (self.taken_at, len(batch))
        self._work(len(batch))

    def _feed(self, wanted: int, is_last: bool) -> bool:
        return self._prompts.feed(self._desk, self._items, self._plan, wanted, is_last)

    def _update(self) -> None:
        if self._scenario.update_s:
            self._on_update(True)
            self._pass(self._scenario.update_s)
        self._policy.version += 1
        self._on_version(self._policy.version)
        self._desk.post(self._desk.core.set_version, self._policy.version)
        if self._scenario.update_s:
            self._on_update(False)

    # -- time --------------------------------------------------------------------------------------

    def _work(self, rollouts: int) -> None:
        """Take the processor for what *rollouts* cost in the trainer's thread."""
        is_done = [False]
        self._loop.put(rollouts * self._scenario.costs.driver_rollout_s, is_done.__setitem__, 0, True)
        self._pass_until(lambda: is_done[0])

    def _pass(self, seconds: float) -> None:
        until = self._clock.time() + seconds
        if until >= self._until:
            raise OverError
        self._clock.run_until(until)

    def _pass_until(self, is_there: Callable[[], bool]) -> None:
        while not is_there():
            if self._clock.next_at() > self._until:
                raise OverError
            self._clock.step()
