"""Whether the books of a soak run balance: the library's, the run's own, the servers', and the process's."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from _census import take_census
from _figures import resident_bytes
from _soak_books import STATUSES
from areal_core.embedded import ServerStats
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.staleness_manager import RolloutStat
from areal_core.workflow_executor import RolloutLedger

DESCRIPTORS_MORE = 4
THREADS_MORE = 0
RESIDENT_MORE = 24 * 2**20
"""How much more there may be at the end than after a quarter of the time. Connections that wait to be closed
differ by a few; allocators keep what an episode of a larger group took."""


@dataclass(frozen=True)
class Held:
    """What the process holds while the executor is stopped and the engine is not, garbage not counted."""

    descriptors: int
    threads: int
    resident: int
    """Bytes."""


def take_held() -> Held:
    """Collect garbage, give free memory back where the system can, and count."""
    census = take_census()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)
    return Held(census.descriptors, census.threads, resident_bytes())


def of_growth(quarter: Held, end: Held) -> Iterator[str]:
    """Say what grew by more than it may."""
    for name, most in (
        ("descriptors", DESCRIPTORS_MORE),
        ("threads", THREADS_MORE),
        ("resident", RESIDENT_MORE),
    ):
        was, now = getattr(quarter, name), getattr(end, name)
        if now - was > most:
            yield f"{name} went from {was:,} to {now:,}; at most {most:,} more are allowed"


@dataclass(frozen=True)
class Told:
    """What the run's own books say of training, or of evaluation."""

    submitted: int
    taken: int
    """Rollouts whose ending the trainer was given."""
    accepted_and_taken: int
    dropped: int = 0
    """Trajectories that waited for a batch when the executor was stopped."""
    endings: Mapping[str, int] = field(default_factory=dict)


def of_ledger(name: str, ledger: RolloutLedger, told: Told) -> Iterator[str]:
    """Say what does not balance when nothing runs any more."""
    ended = ledger.finished + ledger.collected + ledger.discarded
    if ledger.submitted != ledger.pending + ledger.running + ended:
        yield f"{name}: the ledger does not add up: {ledger}"
    if ledger.pending or ledger.running:
        yield f"{name}: something is pending or running in a stopped executor: {ledger}"
    if sum(getattr(ledger, status) for status in STATUSES) != ended:
        yield f"{name}: the endings in the ledger are not as many as ended: {ledger}"
    if ledger.submitted != told.submitted:
        yield f"{name}: {told.submitted} were submitted, and the ledger says {ledger.submitted}"
    for status in STATUSES:
        by_ledger, by_log = getattr(ledger, status), told.endings.get(status, 0)
        if by_ledger != by_log:
            yield f"{name}: {by_log} ended as {status} by the log, {by_ledger} by the ledger"
    if ledger.accepted != told.accepted_and_taken + told.dropped:
        yield (
            f"{name}: {ledger.accepted} were accepted; {told.accepted_and_taken} were handed out, and "
            f"{told.dropped} were left at a stop"
        )
    # What was submitted for batches and brought nothing is collected unseen.
    unseen = ledger.collected - told.taken
    if not 0 <= unseen <= ledger.submitted - told.taken - told.dropped:
        yield f"{name}: {ledger.collected} are called collected, and {told.taken} were"


def of_manager(stats: RolloutStat, ledger: RolloutLedger) -> Iterator[str]:
    """Say where the figures in AReaL's terms do not agree with the ledger of training."""
    if stats.enqueued or stats.running:
        yield f"the staleness manager has something that waits or runs: {stats}"
    if stats.accepted != ledger.accepted:
        yield f"the staleness manager counts {stats.accepted} accepted, the ledger {ledger.accepted}"


def of_engine(engine: RemoteInfEngine) -> Iterator[str]:
    """Say what an engine holds without any generation under way."""
    running = engine._state
    if running is None:
        yield "the engine does not run any more"
        return
    if running.generations:
        yield f"the engine knows {len(running.generations)} generations that have ended"
    router = running.router
    for server in router.servers:
        if server.in_flight or tuple(server.calls):
            calls = len(tuple(server.calls))
            yield f"{server.name} has {server.in_flight} in flight by the engine, and {calls} calls"
        if any(not waiter.gone for waiter in server.queue):
            yield f"somebody waits for {server.name}"
    if any(not waiter.gone for waiter in router._queue):
        yield "somebody waits for a server"
    if router._busy_pins:
        yield f"{len(router._busy_pins)} conversations are held at their servers"


def of_server(name: str, stats: ServerStats) -> Iterator[str]:
    """Say what of a server's own counters does not balance when nothing is asked of it."""
    ended = stats.completed + stats.aborted + stats.cancelled
    if stats.generations != ended + stats.in_flight:
        yield f"{name}: its generations do not add up: {stats}"
    if stats.in_flight:
        yield f"{name}: {stats.in_flight} generations run on"
