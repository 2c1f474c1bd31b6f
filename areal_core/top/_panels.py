"""What there is to see of a run, as lines of text: each part of the view is a function."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from areal_core._engine.stats import ServerStats
from areal_core._observe.runs import Run, State
from areal_core._observe.snapshot import AGES_S, Snapshot, Straggler, Wait
from areal_core.top._text import (
    Line,
    Piece,
    bar,
    chart,
    clip,
    cut,
    cut_middle,
    milliseconds,
    number,
    padded,
    plain,
    seconds,
    size,
    stacked,
    wrapped,
)

T = TypeVar("T")

Panel = Callable[[Run, int, int], list[Line]]
"""Given a run, columns and rows, it says what there is to see, in no more of either."""

_STATES = {State.LIVE: "good", State.SILENT: "warn", State.ENDED: "dim", State.DIED: "bad"}
_AGES = ("< 1 s", "< 10 s", "< 1 min", "< 5 min", "< 30 min", "older")
_STAGE_STYLES = ("stage0", "stage1", "stage2", "stage3")
_LABEL = 11
"""Columns of what stands before a bar."""
_WIDE = 70


# -- head ------------------------------------------------------------------------------------------


def head(run: Run, columns: int) -> Line:
    """Say which run it is, and how it is doing, in one line."""
    seen = run.status.snapshot
    pieces = [
        Piece(f"{seen.program or 'python'}", "strong"),
        Piece(f"  pid {seen.pid}"),
        Piece(f" on {run.status.host}", "dim"),
        Piece(f"  up {seconds(seen.uptime_s)}"),
        Piece(f"  version {seen.version}"),
        Piece("  "),
        Piece(f"{run.state.upper()}", _STATES[run.state]),
        *([Piece("  PAUSED", "warn")] if seen.is_paused else []),
    ]
    return clip(pieces, columns)


def banner(run: Run, columns: int) -> Line | None:
    """Say what became of a run that is not live any more; None: it is."""
    seen = run.status.snapshot
    ago = seconds(max(0.0, time.time() - seen.taken_at))
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen.taken_at))
    if run.state is State.DIED:
        words = f"DIED about {ago} ago: no such process. Last word: {at}"
    elif run.state is State.ENDED:
        words = f"Ended {ago} ago, at {at}"
    elif run.state is State.SILENT:
        words = f"No word for {ago}: the process is there, but stopped, or its disk hangs."
    else:
        return None
    return [Piece(padded(f" {words}", columns), f"banner-{_STATES[run.state]}")]


# -- progress --------------------------------------------------------------------------------------


def progress(run: Run, columns: int, rows: int) -> list[Line]:
    """Say what has come of the rollouts, how full queues and budget are, and how stale it is."""
    seen = run.status.snapshot
    done = seen.training
    ends = (
        ("accepted", "ok", done.accepted, "good"),
        ("rejected", "rej", done.rejected, ""),
        ("failed", "bad", done.failed + done.timed_out, "bad"),
        ("stale", "stale", done.stale, "warn"),
    )
    queues = (
        ("pending", "pend", done.pending, ""),
        ("running", "run", done.running, ""),
        ("not taken", "ready", done.finished, ""),
        ("delivered", "out", seen.staleness.delivered, ""),
    )
    lines = [
        _counts(columns, *ends),
        _counts(columns, *queues),
        *_waits(run, columns),
        *_budgets(seen, columns),
        _staleness(seen),
        _lags(seen),
        _insides(seen),
        *_evaluation(seen, columns),
    ]
    return [clip(line, columns) for line in lines[:rows]]


def _counts(columns: int, *counts: tuple[str, str, int, str]) -> Line:
    """Say *counts*, each of which has a name, a shorter one and a style, as words as there is room for."""
    lines = [
        [Piece(f"{names[place]} {count}{gap}", style if count else "dim") for *names, count, style in counts]
        for place, gap in ((0, "  "), (0, " "), (1, " "))
    ]
    return next((line for line in lines if len(plain(line)) <= columns), lines[-1])


def _gauge(label: str, value: int, most: int, columns: int, after: str = "", style: str = "") -> Line:
    words = f"{value}/{most}"
    tail = f" {words}  {after}".rstrip()
    room = max(4, min(40, columns - _LABEL - len(tail)))
    full = bar(value / most if most else 0.0, room)
    return [Piece(padded(label, _LABEL), "dim"), Piece(full, style or "bar"), Piece(tail)]


def _waits(run: Run, columns: int) -> Iterator[Line]:
    seen = run.status.snapshot
    if not seen.waits:
        yield _gauge("next batch", seen.units_waiting, seen.batch, columns, "", "idle")
        return
    left = dict(zip(seen.waits, run.status.left_s, strict=False))
    wait = next((one for one in seen.waits if one.want == "batch"), seen.waits[0])
    words = "held" if wait.is_held else "" if (s := left.get(wait)) is None else f"{seconds(s)} left"
    yield _gauge(_label_of(wait), wait.there, wait.count, columns, words)


def _label_of(wait: Wait) -> str:
    if wait.want == "batch":
        return "batch"
    return "evaluation" if wait.is_eval else "rollouts"


def _budgets(seen: Snapshot, columns: int) -> Iterator[Line]:
    if seen.most_samples is not None:
        yield _gauge("slots", seen.samples, seen.most_samples, columns)
    used = seen.units_running + seen.units_waiting + seen.units_consumed
    words = f"{seen.units_running}+{seen.units_waiting}+{seen.units_consumed}"
    if columns >= _WIDE:
        words = f"{seen.units_running} run + {seen.units_waiting} wait + {seen.units_consumed} delivered"
    yield _gauge("budget", used, seen.most_units, columns, words)


def _staleness(seen: Snapshot) -> Line:
    found = seen.staleness
    words = f"mean {found.staleness_mean:.1f}, max {found.staleness_max} of {seen.max_staleness}"
    return [Piece(padded("staleness", _LABEL), "dim"), Piece(words)]


def _lags(seen: Snapshot) -> Line:
    """Say how many of those that run have started how many versions ago."""
    line = [Piece(padded("lag now", _LABEL), "dim")]
    for lag in range(seen.max_staleness + 1):
        if lag in seen.lags:
            line += [Piece(f"{seen.lags[lag]}", "strong"), Piece(f" at {lag}  ")]
    over = sum(count for lag, count in seen.lags.items() if lag > seen.max_staleness)
    return [*line, Piece(f"{over} at more", "warn")] if over else line


def _insides(seen: Snapshot) -> Line:
    lag = seen.loop_lag_s
    slow = lag is not None and lag > 0.1
    line = [
        Piece(padded("loop lag", _LABEL), "dim"),
        Piece("at rest" if lag is None else milliseconds(lag), "warn" if slow else ""),
    ]
    if seen.journal is not None:
        bad = "bad" if seen.journal.failed else ""
        line += [Piece("  journal ", "dim"), Piece(f"{size(seen.journal.waiting_bytes)} waiting", bad)]
    return line


def _evaluation(seen: Snapshot, columns: int) -> Iterator[Line]:
    done = seen.evaluation
    if done.submitted:
        yield _counts(columns, ("evaluation: pending", "eval: pend", done.pending, ""),
                      ("running", "run", done.running, ""), ("accepted", "ok", done.accepted, "good"),
                      ("failed", "bad", done.failed + done.timed_out, "bad"))  # fmt: skip


# -- in flight -------------------------------------------------------------------------------------


def in_flight(run: Run, columns: int, rows: int) -> list[Line]:
    """Show the rollouts that run by their age, and each age by stage."""
    seen = run.status.snapshot
    stages = sorted(seen.ages, key=lambda stage: -sum(seen.ages[stage]))
    named, others = stages[:3], stages[3:]
    lines = []
    by_age = [_of_age(seen, named, others, place) for place in range(len(AGES_S) + 1)]
    most = max(map(sum, by_age))
    for label, counts in zip(_AGES, by_age, strict=True):
        words = f" {sum(counts)}" if sum(counts) else ""
        full = stacked(list(zip(counts, _STAGE_STYLES, strict=True)), most, columns - _LABEL - 5)
        lines.append([Piece(f"{label:>8}  ", "dim"), *full, Piece(words)])
    legend = [(stage, sum(seen.ages[stage])) for stage in named]
    if others:
        legend.append(("in other stages", sum(sum(seen.ages[stage]) for stage in others)))
    return [*lines, *_legend(legend, columns)][:rows]


def _of_age(seen: Snapshot, named: list[str], others: list[str], place: int) -> list[int]:
    first = [seen.ages[stage][place] for stage in named]
    return [*first, *[0] * (3 - len(first)), sum(seen.ages[stage][place] for stage in others)]


def _legend(stages: list[tuple[str, int]], columns: int) -> Iterator[Line]:
    """Give the stages, as many on a line as it has room for."""
    if not stages:
        yield [Piece("nothing runs", "dim")]
        return
    line: Line = []
    used = 0
    for place, (stage, count) in enumerate(stages):
        words = cut(f" {count} {stage}", columns - 4)
        style = _STAGE_STYLES[place]
        if line and used + len(words) + 4 > columns:
            yield line
            line, used = [], 0
        line += [Piece("  " if line else ""), Piece("█▓▒░"[place], style), Piece(words)]
        used += len(words) + 3
    yield line


# -- servers ---------------------------------------------------------------------------------------


def servers(run: Run, columns: int, rows: int) -> list[Line]:
    """Show each server's load and health, those that are out of rotation first."""
    seen = run.status.snapshot
    if not seen.servers:
        return [[Piece("the engine tells of none", "dim")]]
    order = sorted(seen.servers, key=lambda one: one.why_out is None)
    most = max(1, *(one.in_flight + one.waiting for one in seen.servers))
    shown, more = _as_many(order, rows)
    lines = [_server(one, seen, most, columns) for one in shown]
    if more:
        lines.append([Piece(f"and {len(more)} more, with {_load(more)}", "dim")])
    return lines


def _load(servers: Iterable[ServerStats]) -> str:
    return f"{sum(one.in_flight for one in servers)} in flight"


def _server(one: ServerStats, seen: Snapshot, most: int, columns: int) -> Line:
    name = padded(cut_middle(_short_address(one.name), room := max(15, min(28, columns // 3))), room)
    if one.why_out is not None:
        return clip([Piece(f"{name} out: {one.why_out.removeprefix(f'{one.name} ')}", "bad")], columns)
    behind = 0 if one.version is None else max(0, seen.version - one.version)
    words = f" {one.in_flight}" + (f"+{one.waiting}" if one.waiting else "")
    tail = [
        Piece("" if one.version is None else f"  v{one.version}", "warn" if behind else "dim"),
        Piece(f" ({behind} behind)" if behind else "", "warn"),
        Piece(f"  left {one.departures} x" if one.departures else "", "warn"),
    ]
    left = columns - len(name) - 1 - len(words) - sum(len(piece.text) for piece in tail)
    full = stacked([(one.in_flight, "bar"), (0, ""), (one.waiting, "warn")], most, max(1, min(40, left)))
    return clip([Piece(f"{name} "), *full, Piece(words), *tail], columns)


def _short_address(name: str) -> str:
    return name.removeprefix("http://")


# -- tokens ----------------------------------------------------------------------------------------


def tokens(run: Run, columns: int, rows: int) -> list[Line]:
    """Show how many tokens come per second, now and lately, and what the engine is doing."""
    status, seen = run.status, run.status.snapshot
    found = seen.engine
    if found is None:
        return [[Piece("the engine does not count them", "dim")]]
    lines: list[Line] = [
        [Piece(number(status.tokens_per_s), "strong"), Piece(" tokens/s  "),
         Piece(number(status.accepted_per_s), "strong"), Piece(" accepted/s  "),
         Piece(f"{number(found.tokens)} in all", "dim")],
        *([Piece(row, "bar")] for row in chart(status.tokens_history, columns, max(1, min(8, rows - 3)))),
        [Piece(f"{found.running} generations run, {found.waiting} wait for a slot"),
         Piece("  PAUSED" if found.is_paused else "", "warn")],
        [Piece(f"{found.ended} ended, "), Piece(f"{found.failed} failed", "bad" if found.failed else ""),
         Piece(f", {found.attempts} requests")],
    ]  # fmt: skip
    return [clip(line, columns) for line in lines[:rows]]


# -- stragglers ------------------------------------------------------------------------------------


def stragglers(run: Run, columns: int, rows: int) -> list[Line]:
    """Show the rollouts that have run for longest, and what each waits for."""
    found = run.status.snapshot.stragglers
    if not found:
        return [[Piece("nothing runs", "dim")]]
    name = max(12, min(32, columns // 5))
    heading = f"{'age':>8}  {padded('data', name)}  requests  what it does, and for how long"
    shown, _ = _as_many(list(found), rows - 1, with_more=False)
    return [[Piece(cut(heading, columns), "dim")], *(_straggler(one, name, columns) for one in shown)][:rows]


def _straggler(one: Straggler, name: int, columns: int) -> Line:
    data = one.data_id if one.data_id is not None else f"rollout {one.task_id}"
    doing = one.stage if one.server is None else f"generating on {_short_address(one.server)}"
    old = "warn" if one.age_s >= AGES_S[3] else ""
    line = [
        Piece(f"{seconds(one.age_s):>8}  ", old),
        Piece(f"{padded(data, name)}  "),
        Piece(f"{one.segments:>8}  ", "dim"),
        Piece(f"{doing}, {seconds(one.stage_s)}"),
        Piece(f"  {one.workflow}{' (evaluation)' if one.is_eval else ''}", "dim"),
    ]
    return clip(line, columns)


# -- why -------------------------------------------------------------------------------------------


def why(run: Run, columns: int, rows: int) -> list[Line]:
    """Say why no more rollouts start, and who waits for what."""
    lines: list[Line] = []
    for kind, text, style in _reasons(run.status.snapshot):
        first, *rest = wrapped(f"{kind}: {text}", columns)
        lines.append([Piece(first[: len(kind)], style), Piece(first[len(kind) :])])
        lines += [[Piece(one)] for one in rest]
    callers = run.status.snapshot.callers
    lines += [[Piece(cut(words, columns), "dim")] for words in callers]
    if not lines:
        lines = [[Piece("what is pending starts in a moment", "dim")]]
    if len(lines) > rows > 0:
        lines = [*lines[: rows - 1], [*clip(lines[rows - 1], columns - 2), Piece(" …", "dim")]]
    return lines[:rows]


def _reasons(seen: Snapshot) -> Iterator[tuple[str, str, str]]:
    if seen.servers and all(one.why_out is not None for one in seen.servers):
        yield "no server in rotation", f"all {len(seen.servers)} are out, see there", "bad"
    if seen.engine is not None and seen.engine.is_paused:
        text = f"{seen.engine.running} wait; continue_generation() lets them go on"
        yield "generation paused", text, "warn"
    styles = {"paused": "warn", "failures": "bad", "ended": "dim"}
    for reason in seen.reasons:
        yield reason.kind, reason.text, styles.get(reason.kind, "strong")


def _as_many(found: list[T], rows: int, *, with_more: bool = True) -> tuple[list[T], list[T]]:
    if len(found) <= rows:
        return found, []
    fit = max(0, rows - 1 if with_more else rows)
    return found[:fit], found[fit:]


PANELS: dict[str, tuple[str, Panel]] = {
    "progress": ("Progress", progress),
    "in-flight": ("In flight, by age and stage", in_flight),
    "servers": ("Servers", servers),
    "tokens": ("Tokens", tokens),
    "stragglers": ("Oldest rollouts", stragglers),
    "why": ("Why no more start", why),
}
"""By name: the title, and what there is to see."""
