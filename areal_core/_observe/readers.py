"""What reads figures from a snapshot: functions that give the values of one, with their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple, get_args

from areal_core import _record
from areal_core._engine.stats import EngineStats, ServerStats
from areal_core._executor.books import RolloutLedger
from areal_core._executor.outcome import Status
from areal_core._executor.snapshot import Journal, Snapshot
from areal_core._offload.stats import OffloadStats

KINDS = ("training", "evaluation")
STATUSES: tuple[Status, ...] = get_args(Status)
REASONS = ("ended", "paused", "failures", "nothing pending", "queue", "concurrency", "staleness")
"""The kinds of reasons why no more rollouts start."""

Labels = tuple[str, ...]
Samples = Iterator[tuple[Labels, float]]


class Seen(NamedTuple):
    """What figures are read from."""

    snapshot: Snapshot
    ended: Counter[Labels]
    """How many rollouts have ended, by kind and status: also those that became too old afterwards."""
    expired: Counter[str]
    """Of those that were accepted, how many became too old before anybody took them, by kind."""


def one(read: Callable[[Snapshot], float | None]) -> Callable[[Seen], Samples]:
    """Return what reads a figure without labels; None: there is none now."""

    def samples(seen: Seen) -> Samples:
        value = read(seen.snapshot)
        if value is not None:
            yield (), int(value) if isinstance(value, bool) else value

    return samples


def by_kind(read: Callable[[RolloutLedger], float]) -> Callable[[Seen], Samples]:
    """Return what reads a figure of training and of evaluation."""

    def samples(seen: Seen) -> Samples:
        for kind, counts in _counts(seen.snapshot):
            yield (kind,), read(counts)

    return samples


def _counts(snapshot: Snapshot) -> Iterator[tuple[str, RolloutLedger]]:
    yield from zip(KINDS, (snapshot.training, snapshot.evaluation), strict=True)


def of_generations(read: Callable[[EngineStats], float]) -> Callable[[Seen], Samples]:
    """Return what reads a figure of the engine."""

    def of(snapshot: Snapshot) -> float | None:
        return None if snapshot.engine is None else read(snapshot.engine)

    return one(of)


def of_journal(read: Callable[[Journal], float | None]) -> Callable[[Seen], Samples]:
    """Return what reads a figure of the journal."""
    return one(lambda snapshot: None if snapshot.journal is None else read(snapshot.journal))


def by_server(read: Callable[[ServerStats], float | None]) -> Callable[[Seen], Samples]:
    """Return what reads a figure of each server; None: it has none now."""

    def samples(seen: Seen) -> Samples:
        for server in seen.snapshot.servers:
            value = read(server)
            if value is not None:
                yield (server.name,), value

    return samples


def states(seen: Seen) -> Samples:
    """Give how many rollouts are where."""
    for kind, counts in _counts(seen.snapshot):
        for state in ("pending", "running", "finished"):
            yield (kind, state), getattr(counts, state)


def ended(seen: Seen) -> Samples:
    """Give how rollouts have ended."""
    for kind in KINDS:
        for status in STATUSES:
            yield (kind, status), seen.ended[kind, status]


def expired(seen: Seen) -> Samples:
    """Give how many became too old."""
    for kind in KINDS:
        yield (kind,), seen.expired[kind]


def stages(seen: Seen) -> Samples:
    """Give how many rollouts are in which stage."""
    found: Counter[str] = Counter()
    for stage, count in seen.snapshot.stages.items():
        found[_record.short_name(stage)] += count
    for stage in _record.STAGES:
        yield (stage,), found[stage]


def reasons(seen: Seen) -> Samples:
    """Give for each reason whether it keeps rollouts from starting."""
    kinds = {reason.kind for reason in seen.snapshot.reasons}
    for kind in REASONS:
        yield (kind.replace(" ", "_"),), int(kind in kinds)


def units(seen: Seen) -> Samples:
    """Give what uses the staleness budget."""
    snapshot = seen.snapshot
    yield ("running",), snapshot.units_running
    yield ("waiting",), snapshot.units_waiting
    yield ("consumed",), snapshot.units_consumed


def by_place(read: Callable[[OffloadStats], float]) -> Callable[[Seen], Samples]:
    """Return what reads a figure of threads and of processes."""

    def samples(seen: Seen) -> Samples:
        for stats in seen.snapshot.offloaded:
            yield (stats.place,), read(stats)

    return samples


def generations_ended(seen: Seen) -> Samples:
    """Give how generations have ended."""
    made = seen.snapshot.engine
    if made is not None:
        yield ("completed",), made.ended - made.failed - made.cancelled
        yield ("failed",), made.failed
        yield ("cancelled",), made.cancelled


def requests_ended(seen: Seen) -> Samples:
    """Give how the requests to each server have ended."""
    for server in seen.snapshot.servers:
        yield (server.name, "completed"), server.completed
        yield (server.name, "failed"), server.failed
        yield (server.name, "cancelled"), server.cancelled
