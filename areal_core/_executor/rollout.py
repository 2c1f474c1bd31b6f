"""A rollout: one unit of work, from submit to its outcome. A group of episodes counts as one.

Structs, since they are made several for each rollout: to make a frozen dataclass takes five times as long.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context, copy_context
from typing import Any

from msgspec import Struct

from areal_core._executor.freshness import UNKNOWN, Ages
from areal_core._executor.outcome import RolloutOutcome
from areal_core._record import EpisodeRecord
from areal_core.types import RolloutWorkflow

Accept = Callable[[dict[str, Any]], Awaitable[bool]]

_MAPPINGS = (dict, Mapping)  # dict first: an abstract class takes its time

LOST: Any = object()
"""Stands for data that a journal could not keep."""


class Lane(enum.Enum):
    """Who is to get the outcome."""

    OPEN = enum.auto()
    """Whoever waits."""
    BATCH = enum.auto()
    """`prepare_batch`, which submitted it."""
    ROW = enum.auto()
    """The call of `rollout_batch` that submitted it; whoever waits, once that has given up."""


class State(enum.Enum):
    """Where a rollout is in its life."""

    PENDING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()
    COLLECTED = enum.auto()


class Plan(Struct, frozen=True, eq=False):
    """How items of data are to be rolled out: what thousands of rollouts have in common."""

    workflow: RolloutWorkflow
    accept: Accept | None
    """None: all is accepted."""
    group_size: int
    keep_rest: bool
    """Whether a group goes on without the members that failed."""
    is_eval: bool

    def rollout(
        self,
        task_id: int,
        data: Any,
        lane: Lane,
        *,
        data_id: Any = None,
        key: str | None = None,
        is_journaled: bool = False,
    ) -> Rollout:
        """Return a rollout of one item, in a copy of the caller's context variables.

        Without a *data_id* it has the item's own.
        """
        own = data_id_of(data) if data_id is None else data_id
        return Rollout(task_id, self, data, lane, copy_context(), own, key, is_journaled)


def data_id_of(data: Any) -> Any:
    """Return the item's own ``data_id``; None where it has none."""
    return data.get("data_id") if isinstance(data, _MAPPINGS) else None


class Verdict(Struct, frozen=True, eq=False):
    """What a workflow, and whoever judges its result, made of an item of data."""

    trajectory: dict[str, Any] | None
    """None: it was rejected."""
    reason: str | None = None
    """Why it was, in words."""
    ages: Ages = UNKNOWN
    packed: bytes | None = None
    """The trajectory, as the journal takes it; None: nobody has packed it so far."""


class Episode(Struct, eq=False):
    """One run of a workflow: a member of a group, or the whole of a plain rollout."""

    rollout: Rollout
    sample_idx: int
    """Its place in its group; -1 for what judges the group when its members have ended."""
    record: EpisodeRecord
    job: Any = None
    """What the port made of it."""
    told_to_end: bool = False
    is_over: bool = False
    # How it ended, filled in by the port; one of the first two.
    verdict: Verdict | None = None
    error: BaseException | None = None
    timed_out: bool = False
    seconds: float = 0.0

    @property
    def is_judge(self) -> bool:
        """Whether it plays nothing, but joins and judges what the members brought."""
        return self.sample_idx < 0


class Claim(Struct, eq=False):
    """The rollouts whose outcomes belong to one caller."""

    rollouts: list[Rollout] = []
    there: int = 0
    """How many of them have ended."""


class Rollout(Struct, eq=False):
    """One unit. Only the thread that owns the core touches it, but for what the caller gave."""

    task_id: int
    plan: Plan
    data: Any
    """The item, as the caller gave it."""
    lane: Lane
    context: Context
    """A copy of the caller's context variables."""
    data_id: Any = None
    """What names the item; None: nothing does."""
    key: str | None = None
    """What the journal calls it; None: it is in none."""
    is_journaled: bool = False
    """Whether the journal has its data already, from an earlier run."""
    state: State = State.PENDING
    is_submitted: bool = False
    """Whether a core has taken it."""
    is_abandoned: bool = False
    """Whether its caller was interrupted, so that no core is to take it any more."""
    is_recovered: bool = False
    """Whether an earlier run finished it, and this one has not played it."""
    claim: Claim | None = None
    """That of the caller to whom alone its outcome belongs; None: any."""
    episodes: tuple[Episode, ...] = ()
    """The members that have started. A tuple: most of the time, and for most rollouts, there is none."""
    judge: Episode | None = None
    alive: int = 0
    """How many of these run."""
    start_order: int = -1
    start_version: int = -1
    """The policy version when its first member started."""
    started_at: float = 0.0
    is_charged: bool = False
    """Whether it counts as a unit that runs, or waits."""
    doom: str | None = None
    """Why all it can still bring is too old; None: not all of it is."""
    is_cancelled: bool = False
    failure: Episode | None = None
    """The one whose failure ended all of it."""
    requeues: int = 0
    """How often it was too old, and was run again."""
    losses: int = 0
    """How often it was lost with the worker that ran it."""
    ages: Ages = UNKNOWN
    busy_s: float = 0.0
    """How long its episodes ran, together; known once it has ended."""
    phases: tuple[float, float, float] | None = None
    """How long they generated, were rewarded and were judged, in seconds; None: not known so far."""
    outcome: RolloutOutcome | None = None
    dumped_at: int | None = None
    """At which version a caller to whom it was given wrote it to the dump, and was perhaps interrupted then;
    None: nobody did."""
    packed: bytes | None = None
    """What the journal is told next, the item or the trajectory; None: nobody has packed it so far."""

    @property
    def has_more_members(self) -> bool:
        """Whether members of it are still to be started."""
        return len(self.episodes) < self.plan.group_size and not self.is_ending

    @property
    def is_doomed(self) -> bool:
        """Whether all it can still bring is too old."""
        return self.doom is not None

    @property
    def is_ending(self) -> bool:
        """Whether it is decided that it ends without a result."""
        return self.is_cancelled or self.is_doomed or self.failure is not None

    @property
    def origin(self) -> int:
        """The oldest version that made a token of it which is trained on, as far as is known."""
        return self.start_version if self.ages.oldest is None else self.ages.oldest

    @property
    def age(self) -> tuple[int, int]:
        """What comes first in a batch: what an earlier run left, the oldest tokens, what started first."""
        return -1 if self.is_recovered else self.origin, self.start_order

    @property
    def is_accepted(self) -> bool:
        """Whether it ended, and has a trajectory."""
        return self.outcome is not None and self.outcome.status == "accepted"

    def members(self) -> tuple[Episode, ...]:
        """Return all that has started: the members, and what judges them."""
        return self.episodes if self.judge is None else (*self.episodes, self.judge)

    def forget_episodes(self) -> None:
        """Keep of the episodes only how long they ran: what they brought is in the outcome."""
        self.busy_s, self.phases = 0.0, (0.0, 0.0, 0.0)
        for one in self.members():
            generate, reward, accept = self.phases
            record = one.record
            self.phases = generate + record.generate_s, reward + record.reward_s, accept + record.accept_s
            self.busy_s += 0.0 if one.is_judge else one.seconds
        self.episodes = ()
        self.judge = self.failure = None

    def restart(self, *, requeued: bool = True) -> None:
        """Make it what it was before its start; *requeued* because it was too old."""
        self.state = State.PENDING
        self.outcome = self.dumped_at = self.doom = None
        self.is_recovered = False
        self.ages = UNKNOWN
        self.requeues += requeued
