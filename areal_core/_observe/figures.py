"""Every figure, once: its name, its unit, what it says, and where it is read.

Names are OpenTelemetry's, with dots; `prometheus_name` makes Prometheus' of them. Labels have few values:
statuses, stages, servers, kinds, and never an id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, get_args

from areal_core import _record
from areal_core._engine.stats import EngineStats, ServerStats
from areal_core._executor.books import RolloutLedger
from areal_core._executor.outcome import Status
from areal_core._observe.snapshot import Journal, Snapshot

KINDS = ("training", "evaluation")
STATUSES: tuple[Status, ...] = get_args(Status)
REASONS = ("ended", "paused", "failures", "nothing pending", "queue", "concurrency", "staleness")
"""The kinds of reasons why no more rollouts start."""

SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0)
VERSIONS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0)
"""Bounds of buckets, which are part of them."""

Labels = tuple[str, ...]
Samples = Iterator[tuple[Labels, float]]


class Seen(NamedTuple):
    """What figures are read from."""

    snapshot: Snapshot
    ended: Counter[Labels]
    """How many rollouts have ended, by kind and status: also those that became too old afterwards."""
    expired: Counter[str]
    """Of those that were accepted, how many became too old before anybody took them, by kind."""


class Figure(NamedTuple):
    """One gauge, or one counter. *labels* are the names of what `read` gives values of."""

    name: str
    unit: str
    """As UCUM writes it: "s", "By", "1" for a share, "{rollout}" for things that are counted; "" for none."""
    help: str
    read: Callable[[Seen], Samples]
    labels: Labels = ()
    is_counter: bool = False
    life: Literal["executor", "engine", "alone"] = "executor"
    """Of a counter: with whose life it begins at 0 again; "executor": never, "alone": unknown."""


class HistogramFigure(NamedTuple):
    """One distribution, which is counted when things happen."""

    name: str
    unit: str
    help: str
    bounds: tuple[float, ...]
    labels: Labels = ()


ROLLOUT_SECONDS = HistogramFigure(
    "areal.rollout.duration",
    "s",
    "How long rollouts ran, by how they ended.",
    SECONDS,
    ("kind", "status"),
)
STALENESS = HistogramFigure(
    "areal.trajectory.staleness",
    "{version}",
    "Policy versions between the oldest trained token of a trajectory and its delivery.",
    VERSIONS,
)
HISTOGRAMS = (ROLLOUT_SECONDS, STALENESS)


def prometheus_name(figure: Figure | HistogramFigure) -> str:
    """Return the name with its unit at its end, without the ``_total`` that counters are shown with."""
    name = figure.name.replace(".", "_")
    return f"{name}{_ENDINGS.get(figure.unit, '')}"


_ENDINGS = {"s": "_seconds", "By": "_bytes", "1": "_ratio", "{version}": "_versions"}


def _one(read: Callable[[Snapshot], float | None]) -> Callable[[Seen], Samples]:
    """Return what reads a figure without labels; None: there is none now."""

    def samples(seen: Seen) -> Samples:
        value = read(seen.snapshot)
        if value is not None:
            yield (), int(value) if isinstance(value, bool) else value

    return samples


def _by_kind(read: Callable[[RolloutLedger], float]) -> Callable[[Seen], Samples]:
    def samples(seen: Seen) -> Samples:
        for kind, counts in _counts(seen.snapshot):
            yield (kind,), read(counts)

    return samples


def _counts(snapshot: Snapshot) -> Iterator[tuple[str, RolloutLedger]]:
    yield from zip(KINDS, (snapshot.training, snapshot.evaluation), strict=True)


def _of_generations(read: Callable[[EngineStats], float]) -> Callable[[Seen], Samples]:
    def of(snapshot: Snapshot) -> float | None:
        return None if snapshot.engine is None else read(snapshot.engine)

    return _one(of)


def _of_journal(read: Callable[[Journal], float | None]) -> Callable[[Seen], Samples]:
    return _one(lambda snapshot: None if snapshot.journal is None else read(snapshot.journal))


def _by_server(read: Callable[[ServerStats], float | None]) -> Callable[[Seen], Samples]:
    def samples(seen: Seen) -> Samples:
        for server in seen.snapshot.servers:
            value = read(server)
            if value is not None:
                yield (server.name,), value

    return samples


def _states(seen: Seen) -> Samples:
    for kind, counts in _counts(seen.snapshot):
        for state in ("pending", "running", "finished"):
            yield (kind, state), getattr(counts, state)


def _ended(seen: Seen) -> Samples:
    for kind in KINDS:
        for status in STATUSES:
            yield (kind, status), seen.ended[kind, status]


def _expired(seen: Seen) -> Samples:
    for kind in KINDS:
        yield (kind,), seen.expired[kind]


def _stages(seen: Seen) -> Samples:
    found: Counter[str] = Counter()
    for stage, count in seen.snapshot.stages.items():
        found[_record.short_name(stage)] += count
    for stage in _record.STAGES:
        yield (stage,), found[stage]


def _reasons(seen: Seen) -> Samples:
    kinds = {reason.kind for reason in seen.snapshot.reasons}
    for kind in REASONS:
        yield (kind.replace(" ", "_"),), int(kind in kinds)


def _units(seen: Seen) -> Samples:
    snapshot = seen.snapshot
    yield ("running",), snapshot.units_running
    yield ("waiting",), snapshot.units_waiting
    yield ("consumed",), snapshot.units_consumed


def _generations_ended(seen: Seen) -> Samples:
    made = seen.snapshot.engine
    if made is not None:
        yield ("completed",), made.ended - made.failed
        yield ("failed",), made.failed


FIGURES = (
    # The executor.
    Figure("areal.executor.running", "", "1 until the executor has ended.", _one(lambda s: not s.has_ended)),
    Figure("areal.executor.uptime", "s", "Since initialize.", _one(lambda s: s.uptime_s)),
    Figure("areal.policy.version", "", "The policy version.", _one(lambda s: s.version)),
    Figure("areal.executor.paused", "", "1 while no rollout may start.", _one(lambda s: s.is_paused)),
    Figure(
        "areal.admission.blocked",
        "",
        "1 for each reason why no more rollouts start.",
        _reasons,
        ("reason",),
    ),
    Figure("areal.callers.waiting", "{caller}", "Callers that wait.", _one(lambda s: len(s.callers))),
    Figure("areal.loop.lag", "s", "The greatest delay of a callback lately.", _one(lambda s: s.loop_lag_s)),
    # Rollouts.
    Figure(
        "areal.rollouts.submitted",
        "{rollout}",
        "Rollouts that were submitted.",
        _by_kind(lambda c: c.submitted),
        ("kind",),
        is_counter=True,
    ),
    Figure(
        "areal.rollouts.ended",
        "{rollout}",
        "Endings of rollouts, by how.",
        _ended,
        ("kind", "status"),
        is_counter=True,
    ),
    Figure(
        "areal.rollouts.expired",
        "{rollout}",
        "Accepted rollouts that became too old before anybody took them.",
        _expired,
        ("kind",),
        is_counter=True,
    ),
    Figure(
        "areal.rollouts.requeued",
        "{rollout}",
        "Rollouts that were too old and were run again.",
        _by_kind(lambda c: c.requeued),
        ("kind",),
        is_counter=True,
    ),
    Figure(
        "areal.rollouts.discarded",
        "{rollout}",
        "Finished rollouts that initialize dropped.",
        _by_kind(lambda c: c.discarded),
        ("kind",),
        is_counter=True,
    ),
    Figure(
        "areal.rollouts",
        "{rollout}",
        "Rollouts that wait to start, run, or have ended and were not collected.",
        _states,
        ("kind", "state"),
    ),
    Figure("areal.rollouts.stage", "{rollout}", "Running rollouts by stage.", _stages, ("stage",)),
    Figure("areal.rollouts.age.median", "s", "Median age of what runs.", _one(lambda s: s.age_p50_s)),
    Figure("areal.rollouts.age.max", "s", "Age of the oldest that runs.", _one(lambda s: s.age_max_s)),
    Figure(
        "areal.rollouts.since_end",
        "s",
        "Since a rollout ended; 0 while there is none.",
        _one(lambda s: s.since_end_s),
    ),
    Figure("areal.samples.running", "{sample}", "Training samples that run.", _one(lambda s: s.samples)),
    Figure("areal.samples.limit", "{sample}", "How many may run.", _one(lambda s: s.most_samples)),
    # Staleness.
    Figure("areal.budget.used", "{rollout}", "Staleness budget in use, by what uses it.", _units, ("state",)),
    Figure("areal.budget.limit", "{rollout}", "Staleness budget.", _one(lambda s: s.most_units)),
    Figure(
        "areal.trajectories.delivered",
        "{trajectory}",
        "Trajectories that were delivered for training.",
        _one(lambda s: s.staleness.delivered),
        is_counter=True,
    ),
    Figure(
        "areal.trajectory.staleness.max",
        "{version}",
        "The most that a delivered trajectory was stale.",
        _one(lambda s: s.staleness.staleness_max),
    ),
    Figure(
        "areal.tokens.trained",
        "{token}",
        "Delivered tokens that are trained on.",
        _one(lambda s: s.staleness.tokens_trained),
        is_counter=True,
    ),
    Figure(
        "areal.tokens.masked",
        "{token}",
        "Delivered tokens that were too old to be trained on.",
        _one(lambda s: s.staleness.tokens_masked),
        is_counter=True,
    ),
    Figure(
        "areal.rollouts.wasted",
        "s",
        "How long episodes ran whose rollouts were then too old.",
        _one(lambda s: s.staleness.wasted_seconds),
        is_counter=True,
    ),
    Figure(
        "areal.rollouts.longest_tenth.trained",
        "1",
        "How much of the longest tenth is trained on, by how much of all is.",
        _one(lambda s: s.staleness.t10),
    ),
    # EngineStats.
    Figure(
        "areal.generations.ended",
        "{generation}",
        "EngineStats that have ended.",
        _generations_ended,
        ("status",),
        is_counter=True,
        life="engine",
    ),
    Figure(
        "areal.generations.attempts",
        "{request}",
        "Requests to servers, of generations that have ended.",
        _of_generations(lambda g: g.attempts),
        is_counter=True,
        life="engine",
    ),
    Figure(
        "areal.tokens.generated",
        "{token}",
        "Tokens that came from servers.",
        _of_generations(lambda g: g.tokens),
        is_counter=True,
        life="engine",
    ),
    Figure("areal.generations.running", "{generation}", "Under way.", _of_generations(lambda g: g.running)),
    Figure(
        "areal.generations.waiting",
        "{generation}",
        "EngineStats that wait for any server to have a slot.",
        _of_generations(lambda g: g.waiting),
    ),
    Figure(
        "areal.generations.paused",
        "",
        "1 while generation is paused, as for new weights.",
        _of_generations(lambda g: g.is_paused),
    ),
    # Servers.
    Figure(
        "areal.server.in_rotation",
        "",
        "1 for a server that is given generations.",
        _by_server(lambda server: int(server.why_out is None)),
        ("server",),
    ),
    Figure(
        "areal.server.departures",
        "{departure}",
        "How often it has left rotation.",
        _by_server(lambda server: server.departures),
        ("server",),
        is_counter=True,
        life="alone",
    ),
    Figure(
        "areal.server.in_flight",
        "{request}",
        "EngineStats that it has.",
        _by_server(lambda server: server.in_flight),
        ("server",),
    ),
    Figure(
        "areal.server.waiting",
        "{generation}",
        "EngineStats that wait for this server to have a slot.",
        _by_server(lambda server: server.waiting),
        ("server",),
    ),
    Figure(
        "areal.server.weights.version",
        "",
        "The policy version of the weights that it was given.",
        _by_server(lambda server: server.version),
        ("server",),
    ),
    # The journal.
    Figure("areal.journal.step", "", "The last step committed.", _of_journal(lambda j: j.step)),
    Figure("areal.journal.waiting", "By", "Bytes to be written.", _of_journal(lambda j: j.waiting_bytes)),
    Figure(
        "areal.journal.left_out",
        "{record}",
        "What the journal left out.",
        _of_journal(lambda j: j.left_out),
        is_counter=True,
        life="alone",
    ),
    Figure(
        "areal.journal.failures",
        "{write}",
        "Attempts to write that failed.",
        _of_journal(lambda j: j.failed),
        is_counter=True,
        life="alone",
    ),
)
