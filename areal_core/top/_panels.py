"""What there is to see of a run, as lines of text: each part of the view is a function."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from areal_core._executor.snapshot import AGES_S, Snapshot, Wait
from areal_core._observe.lately import LATE_S
from areal_core._observe.rates import last_ones
from areal_core._observe.runs import Run, State
from areal_core.top._servers import servers, tokens
from areal_core.top._stragglers import stragglers
from areal_core.top._text import (
    Line,
    Piece,
    bar,
    clip,
    cut,
    fitting,
    length_of,
    milliseconds,
    padded,
    plain,
    seconds,
    size,
    stacked,
)
from areal_core.top._waiting import waiting

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
        *([("cancelled", "canc", done.cancelled, "")] if done.cancelled else []),
    )
    queues = (
        ("pending", "pend", done.pending, ""),
        ("running", "run", done.running, ""),
        ("ready", "ready", done.finished, ""),
        ("delivered", "out", seen.staleness.delivered, ""),
    )
    return [
        _counts(columns, *ends),
        _counts(columns, *queues),
        *_waits(run, columns),
        *_budgets(seen, columns),
        _staleness(seen),
        _explained(_lags(seen), "what runs, by versions since its start", columns),
        *_wasted(seen, columns),
        _explained(_insides(seen), "the event loop's delay, at worst", columns),
        *_evaluation(seen, columns),
    ]


def _explained(line: Line, words: str, columns: int) -> Line:
    """Return *line* with what it means, where there is room for that."""
    longer = [*line, Piece(f"  ({words})", "dim")]
    return longer if length_of(longer) <= columns else line


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
    words = "held" if wait.is_held else _left(seen, wait, left.get(wait), columns)
    yield _gauge(_label_of(wait), wait.there, wait.count, columns, words)


def _left(seen: Snapshot, wait: Wait, left_s: float | None, columns: int) -> str:
    """Say when all will be there, or what it waits for where fewer run than are missing."""
    if left_s is not None:
        return f"{seconds(left_s)} left"
    last = last_ones(seen, wait)
    if last is None or last >= wait.count - wait.there:
        return ""
    if not last:
        return "nothing runs"
    if columns < _WIDE:
        return f"last {last} run"
    ends = "one that runs" if last == 1 else f"{last} that run"
    return f"{wait.there} there, waits for the last {ends}"


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
        words = f"{seen.units_running} run + {seen.units_waiting} ready + {seen.units_consumed} delivered"
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
    return [*line, Piece(f"{over} over {seen.max_staleness}", "warn")] if over else line


def _wasted(seen: Snapshot, columns: int) -> Iterator[Line]:
    """Say what was run in vain, where anything was."""
    again = seen.training.requeued
    vain_s = seen.staleness.wasted_seconds
    if again or vain_s:
        words = f"{again} run again, {seconds(vain_s)}"
        line = [Piece(padded("in vain", _LABEL), "dim"), Piece(words, "warn")]
        yield fitting([*line, Piece(" of episodes too old", "warn")], columns)


def _insides(seen: Snapshot) -> Line:
    lag = seen.loop_lag_s
    slow = lag is not None and lag >= LATE_S
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
    return [*lines, *_legend(legend, columns)]


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


def _within(panel: Panel) -> Panel:
    """Return *panel*, held to the columns and rows that there are, also where its fixed words need more."""

    def lines(run: Run, columns: int, rows: int) -> list[Line]:
        return [clip(line, columns) for line in panel(run, columns, rows)[:rows]]

    return lines


PANELS: dict[str, tuple[str, Panel]] = {
    "waiting": ("Who waits for what", _within(waiting)),
    "progress": ("Progress", _within(progress)),
    "in-flight": ("In flight, by age and stage", _within(in_flight)),
    "servers": ("Servers: tokens/s, load, weights", _within(servers)),
    "tokens": ("Tokens", _within(tokens)),
    "stragglers": ("Oldest rollouts", _within(stragglers)),
}
"""By name: the title, and what there is to see."""
