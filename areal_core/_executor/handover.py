"""How outcomes get from the core to a caller's thread, and back when they do not arrive."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace

from areal_core._executor.desk import Desk
from areal_core._executor.freshness import masked, with_mask
from areal_core._executor.ids import Ids
from areal_core._executor.outcome import RolloutOutcome
from areal_core._executor.report import Trained
from areal_core._executor.requests import Request, Want
from areal_core._executor.rollout import Rollout
from areal_core._executor.rules import Rules
from areal_core._executor.versions import Versions
from areal_core._runner import exit_hook
from areal_core.errors import DataExhaustedError

if TYPE_CHECKING:
    from areal_core.trajectory import TrajectoryDump

R = TypeVar("R")

Feed = Callable[[int, bool], bool]
"""Submits so many rollouts for batches, and returns whether it could; raises where told that it is the last
hope, as nothing else can serve the request."""

_ENDS = (
    ("rejected", "rejected"),
    ("stale", "too old in the end"),
    ("failed", "failed"),
    ("timed_out", "timed out"),
    ("cancelled", "cancelled"),
)

_MOST_CUTS = 100  # for a caller whose version provider never says the same twice

_LOOK_S = 1.0  # that a caller who does not want to wait gives the loop to look at all


class Handover:
    """Takes callers' requests to the desk. It runs in the callers' threads, where a Ctrl-C may come.

    *versions* asks the version provider. *ids* are those that callers chose.
    """

    def __init__(
        self,
        desk: Desk,
        rules: Rules,
        versions: Versions,
        ids: Ids,
        dump: TrajectoryDump | None,
    ) -> None:
        self._desk = desk
        self._rules = rules
        self._versions = versions
        self._ids = ids
        self._dump = dump

    def obtain(
        self,
        request: Request,
        deadline: float | None = None,
        rollouts: Sequence[Rollout] = (),
        feed: Feed | None = None,
        *,
        shape: Callable[[list[RolloutOutcome]], R],
    ) -> R:
        """Return what *request* wants, in the *shape* it has to have: in here a Ctrl-C loses nothing.

        *rollouts* are submitted with the request; *feed* is called when it is hungry.
        One that *feed* has nothing for is hungry again only when it cannot be served any more.
        Raises TimeoutError, what *feed* raises, and what the core answers instead. Then nothing is consumed.
        At the end of all data a request that does not drop its last batch takes what there is.
        """
        desk, core = self._desk, self._desk.core
        earlier, cuts = request, 1
        try:
            if rollouts:
                desk.post(core.submit_and_ask, rollouts, request)
            else:
                desk.post(core.ask, request)
            while True:
                self._wait(request, deadline)
                if request.error is not None:
                    raise request.error
                if feed is not None and (hunger := self._hunger_of(request)):
                    again = self._fed(request, feed, hunger)
                    if request.hunger:
                        request = again
                        desk.post(core.ask, request)
                        continue
                # A version that changed while the batch was cut makes it older than it was tested for, or
                # of versions that are no more. It does not change with every look at it.
                if request.is_eval or not self._versions.has_moved(request) or cuts == _MOST_CUTS:
                    break
                cuts += 1
                earlier, request = request, request.anew()
                desk.post(core.ask_again, earlier, request)
            result = self._hand_out(request, shape)
            request.receipt.is_delivered = True  # nothing is called from here to the return
            return result
        except BaseException:
            # One C call, so that a second Ctrl-C cannot come before it. The earlier one may not have been
            # taken back yet, and a second time is no harm.
            self._desk.returned.extend((earlier, request))
            self._desk.wake()
            raise

    def _fed(self, request: Request, feed: Feed, hunger: int) -> Request:
        """Have *feed* submit what *request* is hungry for; return that request once more."""
        try:
            return request.again(is_starved=not feed(hunger, request.is_starved))
        except DataExhaustedError as end:
            if request.there and not request.drops_last:
                return request.shortened()
            raise DataExhaustedError(f"{end}; {self._balance(request)}") from None

    def _balance(self, request: Request) -> str:
        """Say what became of all the data, and how to go on."""
        ledger, _ = self._desk.ledgers()
        others = [f", {count} {word}" for name, word in _ENDS if (count := getattr(ledger, name))]
        left = f"; {request.there} are left, fewer than a batch, which drop_last=False gives as the last one"
        return (
            f"of {ledger.submitted} training rollouts so far {ledger.accepted} were accepted{''.join(others)}"
            f"{left if request.there else ''}; to go on, give a dataloader that can be iterated again, such "
            "as a list, or another one"
        )

    def _hunger_of(self, request: Request) -> int:
        """Return how many rollouts are to be submitted now, for *request* or for the batches after it."""
        if request.hunger or request.is_starved:
            return request.hunger
        # Its batch is there. Until the next call nobody else feeds those to come.
        return self._desk.read(lambda core: core.hunger_of(request))

    def _wait(self, request: Request, deadline: float | None) -> None:
        if request.gate.wait(None if deadline is None else deadline - time.monotonic()):
            exit_hook.stay_if_over()
            return
        request.looked.wait(_LOOK_S)
        if not request.gate.is_open:
            raise TimeoutError(
                f"Timed out waiting for {request.count} results, only received {request.there}."
                + (self._elsewhere() if request.want is Want.ENDED else "")
            )

    def _elsewhere(self) -> str:
        count = self._desk.read(lambda core: core.delivery.for_batches)
        return f" {count} of prepare_batch are there, and come out of that alone." if count else ""

    def _hand_out(self, request: Request, shape: Callable[[list[RolloutOutcome]], R]) -> R:
        given: list[Trained] = []
        outcomes = [self._finished(rollout, request.version, given) for rollout in request.rollouts]
        if any(rollout.is_recovered for rollout in request.rollouts):
            outcomes = _with_the_same_keys(outcomes)
        shaped = shape(outcomes)
        if self._dump is not None:
            _write(self._dump, request.rollouts, outcomes, request.version)
        self._desk.post(self._desk.core.delivered, request, given)
        self._ids.hand_out(request)
        return shaped

    def _finished(self, rollout: Rollout, version: int, given: list[Trained]) -> RolloutOutcome:
        """Return the outcome as of *version*: what is too old in it is masked. Add it to *given*."""
        outcome = rollout.outcome
        assert outcome is not None
        trajectory, masks = outcome.trajectory, self._rules.on_stale == "mask"
        if trajectory is None or outcome.is_eval:
            return outcome
        if masks and rollout.is_recovered:  # the run that made it may have had another setting
            trajectory = with_mask(trajectory)
            outcome = replace(outcome, trajectory=trajectory)
        ages, blanked, least = rollout.ages, 0, version - self._rules.max_staleness
        if masks and ages.oldest is not None and ages.oldest < least:
            trajectory, ages = masked(trajectory, least)
            blanked = rollout.ages.trained - ages.trained
            outcome = replace(outcome, trajectory=trajectory, origin=ages.oldest, tokens_masked=blanked)
        oldest = rollout.start_version if ages.oldest is None else ages.oldest
        staleness = max(0, version - oldest)
        given.append(Trained(rollout.task_id, outcome.seconds, staleness, ages.trained, blanked))
        return outcome


def _with_the_same_keys(outcomes: list[RolloutOutcome]) -> list[RolloutOutcome]:
    """Give each a mask if one has one, which only those of an earlier run may have, by its ``on_stale``."""
    if all(one.trajectory is None or one.trajectory.get("loss_mask") is None for one in outcomes):
        return outcomes
    return [
        one if one.trajectory is None else replace(one, trajectory=with_mask(one.trajectory))
        for one in outcomes
    ]


def _write(
    dump: TrajectoryDump, rollouts: Iterable[Rollout], outcomes: Iterable[RolloutOutcome], version: int
) -> None:
    for rollout, outcome in zip(rollouts, outcomes, strict=True):
        if outcome.trajectory is not None and rollout.dumped_at != version:
            record: dict[str, Any] = {
                "task_id": outcome.task_id,
                "data_id": outcome.data_id,
                "version": version,
                "start_version": outcome.start_version,
                "origin": outcome.origin,
                "is_eval": outcome.is_eval,
                "seconds": round(outcome.seconds, 6),
                "trajectory": outcome.trajectory,
            }
            dump.write(version, record)
            rollout.dumped_at = version


def trajectories(outcomes: list[RolloutOutcome]) -> list[dict[str, Any] | None]:
    """Return the trajectory of each; None for one that was not accepted."""
    return [outcome.trajectory for outcome in outcomes]


def accepted(outcomes: list[RolloutOutcome]) -> list[dict[str, Any]]:
    """Return the trajectories of those that were accepted."""
    return [outcome.trajectory for outcome in outcomes if outcome.trajectory is not None]
