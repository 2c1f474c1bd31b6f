"""Which rollouts may be lent together: one that kills workers is not to take innocent ones along for ever.

Whatever began at a worker that died is a suspect afterwards. Each loss lets it have less company of suspects,
and with the last loss it may have it is lent to a worker that plays nothing else. A loss that makes it fail
counts only there: so only that fails which was alone when its worker died. What the losses before that are
worth is that few have to be alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Set as AbstractSet

from areal_core._distributed.leases import LeaseRules, Parcel, WorkerState
from areal_core._executor.rollout import Rollout


def is_to_be_alone(rollout: Rollout, rules: LeaseRules) -> bool:
    """Return whether one more loss of *rollout* is too many, and it is played alone for that."""
    return rules.max_losses > 0 and rollout.losses >= rules.max_losses


def may_join(parcel: Parcel, worker: WorkerState, rules: LeaseRules) -> bool:
    """Return whether a suspect may be lent to *worker*, as far as the suspects there are concerned.

    Each loss divides by the same factor how many there may be: from all slots at first to one in the end.
    """
    most_losses = max([parcel.rollout.losses, *worker.suspects.values()])
    left: float = max(0.0, 1.0 - most_losses / max(1, rules.max_losses))
    company: float = rules.slots**left
    return len(worker.suspects) < round(company)


def excused(begun: AbstractSet[Rollout], rules: LeaseRules) -> set[Rollout]:
    """Return those of *begun*, what a worker that is gone had begun, for which that loss does not count."""
    return set() if len(begun) == 1 else {one for one in begun if is_to_be_alone(one, rules)}


def begun_at(worker: WorkerState, slots: int) -> set[Rollout]:
    """Return the rollouts of which something may have begun there: one of them may be why it is gone.

    It begins them in the order in which it has them: as many as it has slots, and all before one of which it
    said so. What it held beyond that had not begun, unless the end of another was still on its way.
    """
    told = [place for place, has_begun in enumerate(worker.out.values(), 1) if has_begun]
    most = max(slots, *told, 0)
    begun = {episode.rollout for episode in itertools.islice(worker.out, most)}
    for parcel in worker.parcels.values():  # groups of which somebody has ended
        if len(parcel.rollout.members()) > len(parcel.out) + len(parcel.unsent):
            begun.add(parcel.rollout)
    return begun
