"""What an executor says of itself when nothing goes on: texts for people, fields for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from areal_core._offload.stats import OffloadStats

MOST_ROLLOUTS = 20
"""How many rollouts are described; of the rest it is said how many there are."""


class Reason(NamedTuple):
    """One thing that keeps rollouts from starting."""

    kind: str
    """``"paused"``, ``"concurrency"``, ``"queue"``, ``"staleness"``, ``"failures"``, ``"nothing pending"``,
    ``"ended"``; and of what has started, but gets no tokens, ``"generation paused"`` and ``"no server in
    rotation"``."""

    text: str
    """What there is of it, and what ends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckRollout:
    """A rollout that runs, and what it waits for. Of a group it is the member that has waited longest."""

    task_id: int
    data_id: Any
    """What names its item of data: a number or a text, shortened; None: nothing does."""
    workflow: str
    is_eval: bool
    age_s: float
    """Seconds since it started."""
    stage: str
    """What it does, or waits for, in words."""
    stage_s: float
    """For how many seconds."""
    server: str | None
    """The server that generates for it; None: none does."""
    segments: int
    """How many requests for tokens it has sent."""
    members: str | None
    """How many of its group run; None: it is no group."""
    stack: str
    """Where it is, a line for each frame, through all that its task awaits, innermost last."""

    def fields(self) -> dict[str, Any]:
        """Return what a log line says of it."""
        shown: dict[str, Any] = {"rollout": self.task_id, "workflow": self.workflow}
        for name in ("data_id", "members", "server"):
            value = getattr(self, name)
            shown |= {} if value is None else {name: value}
        if self.is_eval:
            shown["is_eval"] = True
        shown |= {"age_s": round(self.age_s, 1), "stage": self.stage, "stage_s": round(self.stage_s, 1)}
        return {**shown, "segments": self.segments, "stack": f"\n{_indented(self.stack)}"}

    def __str__(self) -> str:
        named = "" if self.data_id is None else f" (data_id {self.data_id!r})"
        kind = "evaluation rollout" if self.is_eval else "rollout"
        group = "" if self.members is None else f", {self.members}"
        return (
            f"{kind} {self.task_id}{named} {self.workflow}, {self.age_s:.1f} s old{group}: "
            f"{self.stage} for {self.stage_s:.1f} s, {self.segments} requests for tokens sent\n"
            f"{_indented(self.stack)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityExplanation:
    """Why no more rollouts start, and the numbers behind it. A sample is a member of a group."""

    reasons: tuple[Reason, ...]
    """Empty: what is pending starts in a moment."""
    version: int
    """The policy version, as the executor knows it."""
    pending: int
    """Training rollouts that wait to start."""
    eval_pending: int
    running: int
    """Rollouts that run, those of evaluation too."""
    samples: int
    """Samples of training that run."""
    eval_samples: int
    most_samples: int | None
    """How many of either may; None: the staleness budget alone decides."""
    most_started: int
    """How many of both together may, ``queue_size``."""
    units_running: int
    """Trajectories under way that count against the staleness budget."""
    units_waiting: int
    """Those that have ended and are not delivered."""
    units_consumed: int
    """Those delivered at this version."""
    most_units: int
    """The staleness budget of one version."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the reasons."""
        return tuple(reason.kind for reason in self.reasons)

    def fields(self) -> dict[str, Any]:
        """Return what a log line says of it."""
        return {
            "version": self.version,
            "pending": self.pending + self.eval_pending,
            "running": self.running,
            "reasons": "; ".join(f"{kind}: {text}" for kind, text in self.reasons) or "none",
        }

    def __str__(self) -> str:
        pending = self.pending + self.eval_pending
        numbers = f"{pending} pending, {self.running} running, version {self.version}"
        if not self.reasons:
            return f"{numbers}; nothing keeps more from starting"
        reasons = [f"  {kind}: {text}" for kind, text in self.reasons]
        return "\n".join([f"{numbers}; no more start:", *reasons])


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What an executor does and waits for, at one moment. Its ``str`` is for people."""

    rollouts: tuple[StuckRollout, ...]
    """Those that run, the oldest first, 20 at most."""
    more: int
    """How many more run."""
    capacity: CapacityExplanation
    stuck_for_s: float
    """Seconds since a rollout ended, or since there are any; 0: there are none."""
    callers: tuple[str, ...]
    """Who waits for outcomes, in words, 20 at most."""
    loop_is_in: str | None
    """Where the user's code is that keeps the loop from turning just now; None: nothing was seen to."""
    offloaded: tuple[OffloadStats, ...] = ()
    """Calls of offloaded functions, in threads and in processes: how many are made, and how many wait."""

    def __str__(self) -> str:
        lines = [f"no rollout has ended for {self.stuck_for_s:.1f} s" if self.stuck_for_s else "nothing runs"]
        lines += [str(self.capacity), *self.callers, *map(str, filter(OffloadStats.is_short, self.offloaded))]
        if self.loop_is_in is not None:
            lines += ["the loop is in the user's code at this moment:", _indented(self.loop_is_in)]
        lines += [str(rollout) for rollout in self.rollouts]
        return "\n".join([*lines, *more_lines(self.more)])


def more_lines(count: int) -> Iterable[str]:
    """Say how many are not described, if there are any."""
    return [f"and {count} more that run"] if count else []


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
