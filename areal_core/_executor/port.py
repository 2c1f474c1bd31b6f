"""What the core needs of the world: somebody who runs episodes, a clock, and somebody to tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from areal_core._executor.rollout import Episode, Rollout

EARLY_S = 0.005
"""How much too early a timer may come: uvloop rounds to milliseconds."""


class Timer(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """Let it not come."""


class Clock(Protocol):
    """The time, in seconds."""

    def time(self) -> float:
        """Return the time."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call *callback* when *delay_s* seconds have passed, as the thread that owns the core."""


class Port(Protocol):
    """Runs episodes.

    Each one that was started ends once: its fields are filled in, and it is among those of a call of
    `Core.episodes_ended`, which comes after `start` has returned.
    """

    def start(self, episodes: Sequence[Episode]) -> None:
        """Begin to run *episodes*, in this order."""

    def cancel(self, episode: Episode) -> None:
        """Tell *episode* to end; it may clean up for as long as the port allows."""


class Show(Protocol):
    """Shows what an executor does, from the beginning of one life of it to its end."""

    def begin(self) -> None:
        """Show from now on."""

    def end(self) -> None:
        """Show how it ended, and nothing more; from any thread, without waiting for that."""

    def close(self, timeout_s: float | None) -> None:
        """Wait for that, so many seconds at most; None: however long it takes."""


class Tracer(Protocol):
    """Follows episodes through their stages."""

    def starting(self, episode: Episode) -> None:
        """*episode* is about to start; its record takes a trace."""


class Witness:
    """Is told what happens, for logs and counters that are others'. This one keeps it to itself."""

    def enqueued(self, rollout: Rollout) -> None:
        """*rollout* waits to be started, perhaps not for the first time."""

    def began(self, rollout: Rollout) -> None:
        """*rollout* has begun: its first member was started."""

    def member_failed(self, member: Episode) -> None:
        """*member* has failed, or timed out, of a group that goes on without."""

    def ended(self, rollout: Rollout) -> None:
        """*rollout* has an outcome. One that was cancelled may never have begun."""

    def ran_in_vain(self, rollout: Rollout) -> None:
        """*rollout* ended, was too old, and is to run again."""

    def was_lost(self, rollout: Rollout) -> None:
        """*rollout* was lost with the worker that ran it, and is to run again."""

    def went_stale(self, rollout: Rollout, runs_again: bool) -> None:
        """*rollout*, which was accepted, became too old before anybody took it."""

    def stalled(self, why: str) -> None:
        """Nothing can go on until the version changes."""

    def unfair(self, t10: float) -> None:
        """Long rollouts are hardly trained on; see `StalenessReport.t10`."""

    def recovered(self, rollout: Rollout, is_young: bool) -> None:
        """*rollout* was finished by an earlier run, and can be delivered; or is too old, and will not be."""

    def delivered(self, rollouts: Iterable[Rollout]) -> None:
        """*rollouts* have reached their caller."""

    def came_back(self, rollouts: Iterable[Rollout]) -> None:
        """*rollouts* that were told of as delivered have not reached their caller: they wait again."""

    def ending(self) -> None:
        """All is to end: what is cancelled from here on is so for that."""


class Witnesses(Witness):
    """Tells *others*, one after the other."""

    def __init__(self, *others: Witness) -> None:
        self._others = others

    def add(self, other: Witness) -> None:
        """Tell *other*, too, from now on."""
        self._others = (*self._others, other)

    def enqueued(self, rollout: Rollout) -> None:
        for other in self._others:
            other.enqueued(rollout)

    def began(self, rollout: Rollout) -> None:
        for other in self._others:
            other.began(rollout)

    def member_failed(self, member: Episode) -> None:
        for other in self._others:
            other.member_failed(member)

    def ended(self, rollout: Rollout) -> None:
        for other in self._others:
            other.ended(rollout)

    def ran_in_vain(self, rollout: Rollout) -> None:
        for other in self._others:
            other.ran_in_vain(rollout)

    def was_lost(self, rollout: Rollout) -> None:
        for other in self._others:
            other.was_lost(rollout)

    def went_stale(self, rollout: Rollout, runs_again: bool) -> None:
        for other in self._others:
            other.went_stale(rollout, runs_again)

    def stalled(self, why: str) -> None:
        for other in self._others:
            other.stalled(why)

    def unfair(self, t10: float) -> None:
        for other in self._others:
            other.unfair(t10)

    def recovered(self, rollout: Rollout, is_young: bool) -> None:
        for other in self._others:
            other.recovered(rollout, is_young)

    def delivered(self, rollouts: Iterable[Rollout]) -> None:
        for other in self._others:
            other.delivered(rollouts)

    def came_back(self, rollouts: Iterable[Rollout]) -> None:
        for other in self._others:
            other.came_back(rollouts)

    def ending(self) -> None:
        for other in self._others:
            other.ending()
