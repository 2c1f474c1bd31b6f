"""What a caller waits for. The caller makes it, the core fills it, and the caller may take it back."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from areal_core._executor.port import Timer
from areal_core._executor.report import Trained
from areal_core._executor.rollout import Claim, Rollout
from areal_core._runner.gate import Gate


class Want(enum.Enum):
    """Which outcomes."""

    ENDED = enum.auto()
    """Any *count* that nobody has claimed."""
    CLAIMED = enum.auto()
    """All of those it has claimed."""
    BATCH = enum.auto()
    """A batch of *count* trajectories that were submitted for batches."""


@dataclass(slots=True, eq=False)
class Receipt:
    """Whether a caller has what he was given. It refers to nothing of that."""

    is_delivered: bool = False
    """Set by him, where no Ctrl-C can come before his return."""


@dataclass(slots=True, eq=False)
class Request:
    """One caller who waits. Only the thread that owns the core changes it, before the gate is open."""

    want: Want
    count: int
    is_eval: bool = False
    dynamic: bool = False
    """Whether a batch counts attempts rather than trajectories."""
    drops_last: bool = True
    """Whether less than *count* at the end of all data is no batch."""
    keep_pending: int = 0
    """How many rollouts its caller keeps pending for batches to come."""
    is_starved: bool = False
    """Whether its caller has nothing to keep pending: it is hungry only when it cannot be served any more."""
    claims: Sequence[int] = ()
    """The ids that are to be claimed by it."""
    looked: Gate = field(default_factory=Gate)
    """Opened once the core has looked at it."""
    gate: Gate = field(default_factory=Gate)
    """Opened when it is answered."""
    # The answer.
    rollouts: Sequence[Rollout] = ()
    """What it was given: the oldest first, or in the order they ended, or in that of its claims."""
    version: int = 0
    """The policy version when it was."""
    changes: int = 0
    """How often that had changed by then."""
    hunger: int = 0
    """How many rollouts are to be submitted for batches before it can be answered; then ask again."""
    error: BaseException | None = None
    """Why it was given nothing."""
    # What the core notes.
    there: int = 0
    """How many of the outcomes it waits for are there."""
    is_withdrawn: bool = False
    """Whether its caller waits no more."""
    receipt: Receipt = field(default_factory=Receipt)
    """What its caller says of what it was given."""
    charged: frozenset[Rollout] = frozenset()
    """Those it was given that cost a unit of the budget."""
    is_noted: bool = False
    """Whether the core has taken note that its caller got what it was given."""
    trained: Sequence[Trained] = ()
    """What was counted of it then."""
    is_in_hand: bool = False
    """Whether it was given them, and its caller has not got them yet."""
    claim: Claim = field(default_factory=Claim)
    """What it has claimed so far."""
    held_until: float | None = None
    """How long a batch that is there waits for stragglers; None: there is no reason to."""
    timer: Timer | None = None
    gives_up_at: float | None = None
    """Until when it waits for a version, without which it cannot be served; None: it does not need one."""

    def again(self, *, is_starved: bool = False) -> Request:
        """Make the same request once more, after what it asked for was done, unless it *is_starved*.

        It has waited meanwhile.
        """
        return replace(self.anew(), held_until=self.held_until, is_starved=is_starved)

    def anew(self) -> Request:
        """Make the same request once more, as if for the first time."""
        return Request(
            self.want,
            self.count,
            self.is_eval,
            self.dynamic,
            self.drops_last,
            self.keep_pending,
            claims=self.claims,
        )

    def shortened(self) -> Request:
        """Make the same request once more, for what is there."""
        return replace(self.anew(), count=self.there)
