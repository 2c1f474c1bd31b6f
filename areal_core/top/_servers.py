"""What there is to see of servers, and of what comes from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from areal_core._engine.speeds import Speed
from areal_core._engine.stats import ServerStats
from areal_core._observe.runs import Run
from areal_core.top._text import (
    Line,
    Piece,
    chart,
    clip,
    cut_middle,
    fitting,
    length_of,
    number,
    padded,
    stacked,
)

_WIDE = 70


def servers(run: Run, columns: int, rows: int) -> list[Line]:
    """Show each server's speed, load and weights: first those that are out of rotation, then the slow."""
    seen, speeds = run.status.snapshot, run.status.servers
    if not seen.servers:
        return [[Piece("the engine tells of none", "dim")]]
    order = sorted(seen.servers, key=lambda one: (one.why_out is None, not _is_slow(speeds.get(one.name))))
    fit = rows if len(order) <= rows else max(0, rows - 1)
    shown, more = order[:fit], order[fit:]
    lines = [_out(one, columns) for one in shown if one.why_out is not None]
    lines += _in([one for one in shown if one.why_out is None], run, columns)
    if more:
        lines.append(
            [Piece(f"and {len(more)} more, with {sum(one.in_flight for one in more)} in flight", "dim")]
        )
    return lines


def _is_slow(speed: Speed | None) -> bool:
    return speed is not None and speed.is_slow


def _name(one: ServerStats, columns: int) -> str:
    room = max(15, min(28, columns // 3))
    return padded(cut_middle(short_address(one.name), room), room)


def _out(one: ServerStats, columns: int) -> Line:
    why = (one.why_out or "").removeprefix(f"{one.name} ")
    return clip([Piece(f"{_name(one, columns)} out: {why}", "bad")], columns)


def _in(found: Sequence[ServerStats], run: Run, columns: int) -> Iterator[Line]:
    """Show servers in rotation, with bars that can be compared."""
    most = max(1, *(one.in_flight + one.waiting for one in run.status.snapshot.servers))
    speeds = [run.status.servers.get(one.name) for one in found]
    befores = [
        [Piece(f"{_name(one, columns)} "), *_speed(speed, columns), Piece(" ")]
        for one, speed in zip(found, speeds, strict=True)
    ]
    afters = [
        _load_and_weights(one, run.status.snapshot.version, _is_slow(speed))
        for one, speed in zip(found, speeds, strict=True)
    ]
    used = [1 + length_of(before) + length_of(after) for before, after in zip(befores, afters, strict=True)]
    room = max(1, min(40, columns - max(used, default=0)))
    for one, before, after in zip(found, befores, afters, strict=True):
        parts = [(one.in_flight, "bar"), (0, ""), (one.waiting, "warn")]
        yield clip([*before, *stacked(parts, most, room), *after], columns)


def _load_and_weights(one: ServerStats, version: int, is_slow: bool) -> Line:
    behind = 0 if one.version is None else max(0, version - one.version)
    return [
        Piece(f" {one.in_flight}" + (f"+{one.waiting}" if one.waiting else "")),
        Piece(" SLOW" if is_slow else "", "bad"),
        Piece("" if one.version is None else f"  v{one.version}", "warn" if behind else "dim"),
        Piece(f" ({behind} behind)" if behind else "", "warn"),
        Piece(f"  left {one.departures} x" if one.departures else "", "warn"),
    ]


def _speed(speed: Speed | None, columns: int) -> Line:
    """Say how many tokens come per second, of all requests and of each."""
    style = "bad" if _is_slow(speed) else ""
    total = number(None if speed is None else speed.tokens_per_s)
    line = [Piece(padded(total, 5, right=True), style or "strong")]
    if columns >= _WIDE:
        each = "" if speed is None or speed.each is None else f"{number(speed.each)} each"
        line.append(Piece(f" {padded(each, 10)}", style or "dim"))
    return line


def short_address(name: str) -> str:
    """Return the address *name* without what all have."""
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
         Piece(f", {found.cancelled} cancelled"), Piece(f", {found.attempts} requests")],
    ]  # fmt: skip
    return [fitting(line, columns) for line in lines[:rows]]
