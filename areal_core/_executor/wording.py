"""A snapshot in words, a line for each of its parts that there is something to say of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from areal_core._executor.books import RolloutLedger

if TYPE_CHECKING:
    from areal_core._executor.snapshot import Snapshot

_ENDS = ("accepted", "rejected", "failed", "timed_out", "cancelled", "stale")
_OLDEST = 3


def in_words(seen: Snapshot) -> str:
    """Return *seen* for people."""
    return "\n".join(_lines(seen))


def _lines(seen: Snapshot) -> Iterator[str]:
    state = "ended" if seen.has_ended else "paused" if seen.is_paused else "runs"
    program = f"{seen.program or 'python'} (pid {seen.pid})"
    yield f"{program} {state}, up {_time(seen.uptime_s)}, version {seen.version}"
    yield f"rollouts: {_counts(seen.training)}"
    if seen.evaluation.submitted:
        yield f"evaluation: {_counts(seen.evaluation)}"
    yield from _capacity(seen)
    yield from _running(seen)
    yield from (f"waits: {caller}" for caller in seen.callers)
    yield from (f"offloaded: {one}" for one in seen.offloaded if one.calls or one.waiting)
    yield from _delivered(seen)
    yield from _outside(seen)


def _counts(ledger: RolloutLedger) -> str:
    where = f"{ledger.pending} pending, {ledger.running} running, {ledger.finished} not collected"
    ends = [f"{count} {end.replace('_', ' ')}" for end in _ENDS if (count := getattr(ledger, end))]
    return f"{where}; {', '.join(ends) or 'none has ended'}"


def _capacity(seen: Snapshot) -> Iterator[str]:
    slots = "" if seen.most_samples is None else f"{seen.samples} of {seen.most_samples} samples run, "
    used = seen.units_running + seen.units_waiting + seen.units_consumed
    by = f"{seen.units_running} run, {seen.units_waiting} wait to be delivered"
    yield (
        f"capacity: {slots}{used} of {seen.most_units} of the staleness budget used "
        f"({by}, {seen.units_consumed} delivered at this version)"
    )
    yield from (f"no more start: {reason.kind}: {reason.text}" for reason in seen.reasons)


def _running(seen: Snapshot) -> Iterator[str]:
    if seen.stages:
        stages = sorted(seen.stages.items(), key=lambda item: -item[1])
        yield f"stages: {', '.join(f'{count} {stage}' for stage, count in stages)}"
    for one in seen.stragglers[:_OLDEST]:
        named = "" if one.data_id is None else f" (data_id {one.data_id!r})"
        doing = f"{one.stage} for {_time(one.stage_s)}"
        yield f"oldest: rollout {one.task_id}{named} {one.workflow}, {_time(one.age_s)} old, {doing}"
    if seen.loop_lag_s is not None:
        yield f"loop: {seen.loop_lag_s * 1000:.0f} ms late at worst lately"


def _delivered(seen: Snapshot) -> Iterator[str]:
    found = seen.staleness
    if found.delivered:
        masked = f", {found.tokens_masked} tokens too old" if found.tokens_masked else ""
        yield (
            f"delivered: {found.delivered} trajectories, stale by {found.staleness_mean:.1f} versions on "
            f"average and {found.staleness_max} at most{masked}"
        )


def _outside(seen: Snapshot) -> Iterator[str]:
    made = seen.engine
    if made is not None:
        waiting = f"{made.waiting} wait for a slot{', paused' if made.is_paused else ''}"
        yield f"generations: {made.running} running, {waiting}; {made.tokens} tokens so far"
    for server in seen.servers:
        is_in = f"{server.in_flight} in flight" if server.why_out is None else f"out: {server.why_out}"
        yield f"server {server.name}: {is_in}"
    if seen.journal is not None:
        step = "no step committed" if seen.journal.step is None else f"step {seen.journal.step} committed"
        yield f"journal: {step}, {seen.journal.waiting_bytes} bytes to be written"


def _time(seconds: float) -> str:
    """Return *seconds* as ``0.3 s``, ``45 s`` or ``1:02:03``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
