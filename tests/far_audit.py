"""What has to be true of a core and its dispatcher at every moment."""

from __future__ import annotations

from typing import Any

from areal_core._distributed.leases import LeaseRules
from areal_core._executor.rules import Rules
from core_audit import Audit
from far_world import FarWorld


class FarAudit(Audit):
    """Watches a world with workers, too."""

    def __init__(self, world: FarWorld) -> None:
        self._far = world
        super().__init__(world)

    def check(self) -> None:
        super().check()
        self._check_leases()

    def _check_leases(self) -> None:
        dispatcher, lent = self._far.dispatcher, []
        for worker in dispatcher.workers.values():
            out = [one for parcel in worker.parcels.values() for one in parcel.out.values()]
            assert worker.load == len(out)
            assert all(parcel.worker is worker for parcel in worker.parcels.values())
            assert all(number == parcel.number for number, parcel in worker.parcels.items())
            assert not any(parcel.unsent for parcel in worker.parcels.values())
            lent += out
        for parcel in dispatcher._backlog:
            assert parcel.worker is None and parcel.unsent and not parcel.out
            assert not any(one.told_to_end for one in parcel.unsent), "what ends is not to be lent"
            assert [one.sample_idx for one in parcel.unsent] == list(range(len(parcel.unsent)))
            lent += parcel.unsent
        assert len(lent) == len(set(lent)), "it is lent twice"
        assert set(lent) == set(self._far.stage.plays)
        assert set(dispatcher._resting) <= {
            number for worker in dispatcher.workers.values() for number in worker.parcels
        }
        assert not any(parcel.out or parcel.unsent for parcel in dispatcher._resting.values())
        assert not dispatcher._to_send and not dispatcher._to_cancel

    def check_all_collected(self) -> None:
        super().check_all_collected()
        self.check_nothing_left()

    def check_nothing_left(self) -> None:
        """Check that neither the dispatcher nor any floor remembers what is over."""
        dispatcher = self._far.dispatcher
        assert not dispatcher._backlog and not dispatcher._resting
        for state in dispatcher.workers.values():
            assert not state.parcels and not state.load
        for worker in self._far.alive:
            floor = worker.floor
            assert not floor._rollouts and not floor._pending and not floor._jobs and not floor._said
            assert not worker.plays and not floor._to_cancel


def a_far_world(
    *, workers: int = 2, slots: int = 2, most_ahead: int = 0, version: int = 0, **rules: Any
) -> FarWorld:
    """Return an audited world: a batch is 8, and may be 1 version old, unless *rules* say otherwise."""
    fields = {"batch": 8, "max_staleness": 1, "most_samples": None, "most_started": 100, **rules}
    world = FarWorld(Rules(**fields), LeaseRules(slots=slots, most_ahead=most_ahead), version=version)
    FarAudit(world)
    world.join(workers)
    return world
