"""The words of the dispatcher: what is lent to a worker, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import Context
from typing import Any, Protocol

from msgspec import Struct

from areal_core._executor.rollout import Episode, Rollout, Verdict


class LeaseRules(Struct, frozen=True, kw_only=True):
    """How work is lent."""

    slots: int
    """How many episodes a worker plays at once."""
    most_ahead: int
    """How many more it may hold that it has not begun."""
    exchange_s: float = 0.2
    """How long it takes at most from an end at a worker until what takes its place arrives there, beside what
    it waits there for company."""
    lease_s: float = 30.0
    """How long a worker may give no sign of life before it is taken for dead."""
    hang_s: float = 300.0
    """How long its loop, a call of its engine, or reading what it was given may stand still before it is lent
    nothing, and what it has not begun is taken back."""
    drain_s: float = 30.0
    """How much longer it keeps the rest, for what it still brings, before it is killed."""
    max_losses: int = 3
    """How often a rollout may be lost with its worker; with one more it has failed."""


class Parcel(Struct, eq=False):
    """One attempt at a rollout, lent as a whole: all members of a group, and their judge, go to one worker.

    Its number is never used again, so that what comes of an earlier attempt is known for that. One that is
    handed back before anything of it began gets another.
    """

    number: int
    rollout: Rollout
    worker: WorkerState | None = None
    """Who has it; None: nobody so far."""
    unsent: list[Episode] = []
    out: dict[int, Episode] = {}
    """Those that are lent, by their place in the group, -1 for the judge."""
    contexts: dict[int, Context] | None = None
    """Of those that are traced, by their place: what is current for each. None: none is."""

    def __repr__(self) -> str:  # not of all that it leads to: its worker, and so all other parcels there
        return f"<parcel {self.number}, of rollout {self.rollout.task_id}>"

    @property
    def is_current(self) -> bool:
        """Whether its rollout still is at this attempt."""
        episodes = self.rollout.episodes
        return bool(episodes) and episodes[0].job is self


class WorkerState(Struct, eq=False):
    """What the dispatcher knows of one worker. One that is started anew has another number."""

    number: int
    seen_at: float
    """When it gave its last sign of life."""
    parcels: dict[int, Parcel] = {}
    suspects: dict[int, int] = {}
    """Of those that were lost before, how often, by parcel."""
    out: dict[Episode, bool] = {}
    """The episodes that are lent to it, in the order in which they were; whether it said that it began."""
    ended: int = 0
    """How many it has brought to an end."""
    rate: float = 0.0
    """How many end there per second, of late."""
    counted: int = 0
    """How many have ended since *counted_at*, which the rate does not know yet."""
    counted_at: float = 0.0
    turn: int = 0
    """Of those that have as much, the next is lent to whose turn was first."""
    looks: int = 0
    """How often it was looked at since its last sign of life."""
    stalled_s: float = 0.0
    """For how long its loop, a call of its engine, or reading what it was given has stood still."""
    is_draining: bool = False
    """Whether it is to finish what it has, and go."""
    is_hung: bool = False
    """Whether that is so long that it is lent nothing before it does."""

    @property
    def load(self) -> int:
        """How many episodes are lent to it."""
        return len(self.out)

    def __repr__(self) -> str:
        return f"<worker {self.number}, with {self.load} episodes of {len(self.parcels)} rollouts>"


class Ended(Struct):
    """How an episode ended at its worker: a verdict or an error."""

    parcel: int
    sample_idx: int
    verdict: Verdict | None
    error: BaseException | None
    timed_out: bool
    seconds: float
    figures: tuple[int, int | None, float, float, float]
    """Of its record: segments, newest version, seconds of generation, reward and filter."""


class Report(Struct):
    """A sign of life of a worker, and what it brings."""

    ended: Sequence[Ended] = ()
    returned: Sequence[tuple[int, int]] = ()
    """Parcel and place of those that it hands back, not begun."""
    stages: Sequence[tuple[int, int, tuple[Any, ...]]] = ()
    """Parcel and place of those whose stage is another than before; the stage, server, its age in seconds,
    segments and newest version."""
    stalled_s: float = 0.0
    """For how long its loop, a call of its engine, or reading what it was given has stood still."""
    number: int = 0
    """How many it gave before."""


class Order(Struct):
    """What a worker is to do with a parcel."""

    parcel: Parcel
    is_first: bool
    """Whether it has nothing of the parcel so far."""
    episodes: list[Episode] = []


class Link(Protocol):
    """Takes what was decided to the workers, later and in this order. It never blocks, and never raises.

    What it brings back is for the methods of the `Dispatcher`.
    """

    def give(self, worker: int, orders: Sequence[Order]) -> None:
        """Have episodes played."""

    def cancel(self, worker: int, episodes: Sequence[tuple[int, int]]) -> None:
        """Cancel episodes, by parcel and place."""

    def forget(self, worker: int, parcels: Sequence[int]) -> None:
        """Have parcels forgotten of which nothing is played any more."""

    def take_back(self, worker: int) -> None:
        """Have it hand back what it has not begun."""

    def retire(self, worker: int) -> None:
        """End a worker that has nothing any more."""

    def kill(self, worker: int, why: str) -> None:
        """End a worker at once."""
