"""The oldest rollouts: those that are at the same together."""

from __future__ import annotations

from collections.abc import Sequence

from areal_core._executor.snapshot import AGES_S, Straggler
from areal_core._observe.runs import Run
from areal_core.top._servers import short_address
from areal_core.top._text import Line, Piece, clip, cut, fitting, length_of, padded, seconds

_OTHERS = 16  # columns, for the names of those behind the first to be worth it


def stragglers(run: Run, columns: int, rows: int) -> list[Line]:
    """Show the rollouts that have run for longest, and what each waits for: a line for those of one stage."""
    found = run.status.snapshot.stragglers
    if not found:
        return [[Piece("nothing runs", "dim")]]
    groups: dict[tuple[str, bool, str], list[Straggler]] = {}
    for one in found:
        groups.setdefault((_doing(one), one.is_eval, one.workflow), []).append(one)
    name = max(12, min(32, columns // 5))
    heading = f"{'age':>8}  {'':>4}  {padded('data', name)}  requests  what they do, and for how long"
    shown = [*groups.values()][: max(0, rows - 1)]
    lines = [_line(group, name, columns) for group in shown]
    return [[Piece(cut(heading, columns), "dim")], *lines][:rows]


def _doing(one: Straggler) -> str:
    return one.stage if one.server is None else f"generating on {short_address(one.server)}"


def _data(one: Straggler) -> str:
    return str(one.data_id) if one.data_id is not None else f"rollout {one.task_id}"


def _line(group: Sequence[Straggler], name: int, columns: int) -> Line:
    """Say of *group*, the oldest of which is the first, what its oldest is, and name the others."""
    first = group[0]
    most = max(one.segments for one in group)
    longest = seconds(max(one.stage_s for one in group))
    line = [
        Piece(f"{seconds(first.age_s):>8}  ", "warn" if first.age_s >= AGES_S[3] else ""),
        Piece(f"{f'{len(group)} x' if len(group) > 1 else '':>4}  ", "strong"),
        Piece(f"{padded(_data(first), name)}  "),
        Piece(f"{most:>8}  ", "dim"),
        Piece(f"{_doing(first)}, {'up to ' if len(group) > 1 else ''}{longest}"),
    ]
    line = clip(line, columns)
    for more in ("  (evaluation)" if first.is_eval else "", f"  {first.workflow}"):
        line = fitting([*line, Piece(more, "dim")], columns)
    others = f"  also {', '.join(map(_data, group[1:]))}" if len(group) > 1 else ""
    return clip([*line, Piece(others, "dim")], columns) if columns - length_of(line) >= _OTHERS else line
