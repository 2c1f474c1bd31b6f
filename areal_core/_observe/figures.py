"""Every figure, once: its name, its unit, what it says, and where it is read.

Names are OpenTelemetry's, with dots; `prometheus_name` makes Prometheus' of them. Labels have few values:
statuses, stages, servers, kinds, and never an id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from areal_core._observe.readers import (
    KINDS,
    STATUSES,
    Labels,
    Samples,
    Seen,
    by_kind,
    by_place,
    by_server,
    ended,
    expired,
    generations_ended,
    of_generations,
    of_journal,
    one,
    reasons,
    requests_ended,
    stages,
    states,
    units,
)

__all__ = [
    "FIGURES",
    "HISTOGRAMS",
    "KINDS",
    "ROLLOUT_SECONDS",
    "STALENESS",
    "STATUSES",
    "Figure",
    "HistogramFigure",
    "Labels",
    "Seen",
    "prometheus_name",
]

SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0)
VERSIONS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0)
"""Bounds of buckets, which are part of them."""


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


FIGURES = (
    # The executor.
    Figure("areal.executor.running", "", "1 until the executor has ended.", one(lambda s: not s.has_ended)),
    Figure("areal.executor.uptime", "s", "Since initialize.", one(lambda s: s.uptime_s)),
    Figure("areal.policy.version", "", "The policy version.", one(lambda s: s.version)),
    Figure("areal.executor.paused", "", "1 while no rollout may start.", one(lambda s: s.is_paused)),
    Figure(
        "areal.admission.blocked",
        "",
        "1 for each reason why no more rollouts start.",
        reasons,
        ("reason",),
    ),
    Figure("areal.callers.waiting", "{caller}", "Callers that wait.", one(lambda s: len(s.callers))),
    Figure("areal.loop.lag", "s", "The greatest delay of a callback lately.", one(lambda s: s.loop_lag_s)),
    # Rollouts.
    Figure(
        "areal.rollouts.submitted",
        "{rollout}",
        "Rollouts that were submitted.",
        by_kind(lambda c: c.submitted),
        ("kind",),
        is_counter=True,
    ),
    Figure(
        "areal.rollouts.ended",
        "{rollout}",
        "Endings of rollouts, by how.",
        ended,
        ("kind", "status"),
        is_counter=True,
    ),
    Figure(
        "areal.rollouts.expired",
        "{rollout}",
        "Accepted rollouts that became too old before anybody took them.",
        expired,
        ("kind",),
        is_counter=True,
    ),
    Figure(
        "areal.rollouts.requeued",
        "{rollout}",
        "Rollouts that were too old and were run again.",
        by_kind(lambda c: c.requeued),
        ("kind",),
        is_counter=True,
    ),
    Figure(
        "areal.rollouts.discarded",
        "{rollout}",
        "Finished rollouts that initialize dropped.",
        by_kind(lambda c: c.discarded),
        ("kind",),
        is_counter=True,
    ),
    Figure(
        "areal.rollouts",
        "{rollout}",
        "Rollouts that wait to start, run, or have ended and were not collected.",
        states,
        ("kind", "state"),
    ),
    Figure("areal.rollouts.stage", "{rollout}", "Running rollouts by stage.", stages, ("stage",)),
    Figure("areal.rollouts.age.median", "s", "Median age of what runs.", one(lambda s: s.age_p50_s)),
    Figure("areal.rollouts.age.max", "s", "Age of the oldest that runs.", one(lambda s: s.age_max_s)),
    Figure(
        "areal.rollouts.since_end",
        "s",
        "Since a rollout ended; 0 while there is none.",
        one(lambda s: s.since_end_s),
    ),
    Figure("areal.samples.running", "{sample}", "Training samples that run.", one(lambda s: s.samples)),
    Figure("areal.samples.limit", "{sample}", "How many may run.", one(lambda s: s.most_samples)),
    # Offloaded functions.
    Figure(
        "areal.offload.workers",
        "{worker}",
        "Calls of offloaded functions that can be made at once.",
        by_place(lambda o: o.workers),
        ("place",),
    ),
    Figure(
        "areal.offload.busy",
        "{worker}",
        "Calls of offloaded functions that are made.",
        by_place(lambda o: o.busy),
        ("place",),
    ),
    Figure(
        "areal.offload.waiting",
        "{call}",
        "Calls of offloaded functions that wait for a worker.",
        by_place(lambda o: o.waiting),
        ("place",),
    ),
    Figure(
        "areal.offload.wait.max",
        "s",
        "For how long the first of those has waited.",
        by_place(lambda o: o.longest_wait_s),
        ("place",),
    ),
    Figure(
        "areal.offload.calls",
        "{call}",
        "Calls of offloaded functions that have begun.",
        by_place(lambda o: o.calls),
        ("place",),
        is_counter=True,
        life="alone",
    ),
    Figure(
        "areal.offload.waited",
        "s",
        "How long these waited for a worker, together.",
        by_place(lambda o: o.waited_s),
        ("place",),
        is_counter=True,
        life="alone",
    ),
    # Staleness.
    Figure("areal.budget.used", "{rollout}", "Staleness budget in use, by what uses it.", units, ("state",)),
    Figure("areal.budget.limit", "{rollout}", "Staleness budget.", one(lambda s: s.most_units)),
    Figure(
        "areal.trajectories.delivered",
        "{trajectory}",
        "Trajectories that were delivered for training.",
        one(lambda s: s.staleness.delivered),
        is_counter=True,
    ),
    Figure(
        "areal.trajectory.staleness.max",
        "{version}",
        "The most that a delivered trajectory was stale.",
        one(lambda s: s.staleness.staleness_max),
    ),
    Figure(
        "areal.tokens.trained",
        "{token}",
        "Delivered tokens that are trained on.",
        one(lambda s: s.staleness.tokens_trained),
        is_counter=True,
    ),
    Figure(
        "areal.tokens.masked",
        "{token}",
        "Delivered tokens that were too old to be trained on.",
        one(lambda s: s.staleness.tokens_masked),
        is_counter=True,
    ),
    Figure(
        "areal.rollouts.wasted",
        "s",
        "How long episodes ran whose rollouts were then too old.",
        one(lambda s: s.staleness.wasted_seconds),
        is_counter=True,
    ),
    Figure(
        "areal.rollouts.longest_tenth.trained",
        "1",
        "How much of the longest tenth is trained on, by how much of all is.",
        one(lambda s: s.staleness.t10),
    ),
    # Generations.
    Figure(
        "areal.generations.ended",
        "{generation}",
        "Generations that have ended.",
        generations_ended,
        ("status",),
        is_counter=True,
        life="engine",
    ),
    Figure(
        "areal.generations.attempts",
        "{request}",
        "Requests to servers, of generations that have ended.",
        of_generations(lambda g: g.attempts),
        is_counter=True,
        life="engine",
    ),
    Figure(
        "areal.tokens.generated",
        "{token}",
        "Tokens that came from servers.",
        of_generations(lambda g: g.tokens),
        is_counter=True,
        life="engine",
    ),
    Figure("areal.generations.running", "{generation}", "Under way.", of_generations(lambda g: g.running)),
    Figure(
        "areal.generations.waiting",
        "{generation}",
        "Generations that wait for any server to have a slot.",
        of_generations(lambda g: g.waiting),
    ),
    Figure(
        "areal.generations.paused",
        "",
        "1 while generation is paused, as for new weights.",
        of_generations(lambda g: g.is_paused),
    ),
    # Servers.
    Figure(
        "areal.server.in_rotation",
        "",
        "1 for a server that is given generations.",
        by_server(lambda server: int(server.why_out is None)),
        ("server",),
    ),
    Figure(
        "areal.server.departures",
        "{departure}",
        "How often it has left rotation.",
        by_server(lambda server: server.departures),
        ("server",),
        is_counter=True,
        life="alone",
    ),
    Figure(
        "areal.server.in_flight",
        "{request}",
        "Generations that it has.",
        by_server(lambda server: server.in_flight),
        ("server",),
    ),
    Figure(
        "areal.server.waiting",
        "{generation}",
        "Generations that wait for this server to have a slot.",
        by_server(lambda server: server.waiting),
        ("server",),
    ),
    Figure(
        "areal.server.weights.version",
        "",
        "The policy version of the weights that it was given.",
        by_server(lambda server: server.version),
        ("server",),
    ),
    Figure(
        "areal.server.tokens",
        "{token}",
        "Tokens that came from it.",
        by_server(lambda server: server.tokens),
        ("server",),
        is_counter=True,
        life="alone",
    ),
    Figure(
        "areal.server.busy",
        "s",
        "How long it had requests for tokens, added up: two for a second each are two.",
        by_server(lambda server: server.seconds),
        ("server",),
        is_counter=True,
        life="alone",
    ),
    Figure(
        "areal.server.requests",
        "{request}",
        "Requests for tokens that are over, by how they ended.",
        requests_ended,
        ("server", "status"),
        is_counter=True,
        life="alone",
    ),
    # The journal.
    Figure("areal.journal.step", "", "The last step committed.", of_journal(lambda j: j.step)),
    Figure("areal.journal.waiting", "By", "Bytes to be written.", of_journal(lambda j: j.waiting_bytes)),
    Figure(
        "areal.journal.left_out",
        "{record}",
        "What the journal left out.",
        of_journal(lambda j: j.left_out),
        is_counter=True,
        life="alone",
    ),
    Figure(
        "areal.journal.failures",
        "{write}",
        "Attempts to write that failed.",
        of_journal(lambda j: j.failed),
        is_counter=True,
        life="alone",
    ),
)
