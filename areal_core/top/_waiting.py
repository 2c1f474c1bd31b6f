"""What there is to see of who waits for whom, and of why no more rollouts start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from areal_core._executor.snapshot import Reason, Snapshot
from areal_core._observe.lately import Held, held_at, is_late
from areal_core._observe.runs import Run
from areal_core._record import WAITING_FOR_WORKER
from areal_core.top._servers import short_address
from areal_core.top._text import Line, Piece, clip, number, seconds, wrapped
from areal_core.top._verdict import HALF, verdict

_SHORT = 0.25
"""The share of the rollouts that wait for a worker from which on there are too few, fewer calls than that are
made or not."""

_STYLES = {"paused": "warn", "failures": "bad", "ended": "dim"}
_NAMES = {"concurrency": "slots full", "queue": "queue full"}


def waiting(run: Run, columns: int, rows: int) -> list[Line]:
    """Say whether the trainer waits, what is amiss, and why no more rollouts start."""
    lines: list[Line] = []
    for kind, text, style in _said(run):
        first, *rest = wrapped(f"{kind}: {text}", columns)
        lines.append([Piece(first[: len(kind)], style), Piece(first[len(kind) :])])
        lines += [[Piece(one)] for one in rest]
    if len(lines) > rows > 0:
        lines = [*lines[: rows - 1], [*clip(lines[rows - 1], columns - 2), Piece(" …", "dim")]]
    return lines[:rows]


def _said(run: Run) -> Iterator[tuple[str, str, str]]:
    """Give a few words, what they are about, and the style of those: what is amiss comes first."""
    seen = run.status.snapshot
    held = run.status.held or held_at(seen)
    if not seen.has_ended:
        yield from _loop(seen)
    if seen.servers and all(one.why_out is not None for one in seen.servers):
        yield "no server in rotation", f"all {len(seen.servers)} are out, see there", "bad"
    if seen.engine is not None and seen.engine.is_paused:
        text = f"{seen.engine.running} wait; continue_generation() lets them go on"
        yield "generation paused", text, "warn"
    if not seen.has_ended:
        if held.late < HALF:
            yield from _slow(run)
        yield from _workers(seen, held)
        yield "trainer", _trainer(run, held), "strong"
    for reason in seen.reasons:
        if reason.kind != "staleness" or not _is_held_by_another(seen):
            yield _start(seen, reason)
    if not seen.reasons:
        yield "starts", "what is pending starts in a moment", "dim"


def _loop(seen: Snapshot) -> Iterator[tuple[str, str, str]]:
    """Say that the loop is late, or was in the last minute, and which function is to blame."""
    blame = seen.loop_blame
    place = "" if blame is None else f"{blame.function} ({PurePath(blame.where).name})"
    if is_late(seen):
        late = seconds(seen.loop_lag_s)
        if blame is None:
            yield "loop late", f"{late}; who is to blame is found within some seconds", "bad"
        elif blame.share >= HALF:
            yield "loop late", f"{late}, mostly in {place}", "bad"
        else:
            yield "loop late", f"{late}, more in {place} than elsewhere ({100 * blame.share:.0f} %)", "bad"
    elif blame is not None:
        yield "loop was late", f"{seconds(blame.seconds)}, {seconds(blame.ago_s)} ago, in {place}", "warn"


def _slow(run: Run) -> Iterator[tuple[str, str, str]]:
    speeds = run.status.servers
    slow = [name for name, speed in speeds.items() if speed.is_slow]
    if slow:
        each = ", ".join(f"{short_address(name)} {number(speeds[name].each)}" for name in slow[:3])
        rest = f" and {len(slow) - 3} more" if len(slow) > 3 else ""
        usual = number(max(speed.each or 0.0 for speed in speeds.values()))
        yield "slow server", f"{each}{rest} tokens/s a request; the fastest gives {usual}", "warn"


def _workers(seen: Snapshot, held: Held) -> Iterator[tuple[str, str, str]]:
    """Say where calls wait for a worker, by what was so in the last seconds, not by a moment's luck."""
    running = sum(held.stages.values())
    for workers in seen.offloaded:
        calls = held.calls.get(workers.place)
        if calls is None or not calls.waiting:
            continue
        waiting = held.stages.get(f"{WAITING_FOR_WORKER}{workers.place}", 0.0)
        if calls.waiting > calls.busy or waiting > _SHORT * running:
            text = str(workers) if workers.waiting else f"{workers} now; {workers.advice()}"
            yield "too few workers", text, "warn"


def _trainer(run: Run, held: Held) -> str:
    busy_s, share = run.status.trainer_busy_s, run.status.trainer_waits
    callers = [*run.status.snapshot.callers]
    if callers:
        first = callers[0].removeprefix("a caller ")
        said = f"{first}; {len(callers) - 1} more wait" if len(callers) > 1 else first
    elif busy_s is None:
        return "has asked for nothing yet"
    else:
        said = f"has not asked for a batch for {seconds(busy_s)}"
    if share is None:
        return said
    return f"{said}. It waits {100 * share:.0f} % of the time{verdict(share, held)}"


def _is_held_by_another(seen: Snapshot) -> bool:
    """Return whether training rollouts would not start with more of a budget either."""
    kinds = {reason.kind for reason in seen.reasons}
    if seen.most_samples is not None and seen.samples < seen.most_samples:
        kinds.discard("concurrency")  # it is of evaluation
    return bool(kinds - {"staleness"})


def _start(seen: Snapshot, reason: Reason) -> tuple[str, str, str]:
    """Say why no more start. That the budget is full is no fault, but how a trainer is kept busy."""
    if reason.kind != "staleness":
        return _NAMES.get(reason.kind, reason.kind), reason.text, _STYLES.get(reason.kind, "strong")
    if not any(not wait.is_eval for wait in seen.waits):
        return "budget full", "as it should be while the trainer is at work", "good"
    if not seen.units_running:
        return "budget full", "nothing can start before the version rises", "warn"
    return "budget full", "more start as what runs is delivered and the version rises", "strong"
