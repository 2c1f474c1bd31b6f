"""How much is measured, and what the sections of the table have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from _table import Absent, Figure, Measured

C = TypeVar("C")
P = ParamSpec("P")


COUNTED = 3
"""Rounds of what is counted, not timed, and comes out the same each time."""

PROFILED_S = 10.0
LONGER = 50
"""How long something is measured where it is profiled, or how many times as much of it."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    divisor: int = 1
    """What numbers of tasks, trips and requests are divided by."""
    seconds: float = 1.5
    """How long a stretch is in which something is watched."""
    most_rounds: int | None = None
    """None: as many as each row wants."""

    def of(self, count: int) -> int:
        """Return what *count* is at this scale."""
        return max(1, count // self.divisor)

    def rounds(self, wanted: int) -> int:
        """Return how many rounds a row that wants so many gets."""
        return wanted if self.most_rounds is None else min(wanted, self.most_rounds)


FULL = Scale()
QUICK = Scale(divisor=5, seconds=1.0, most_rounds=3)


def figure(
    function: Callable[Concatenate[C, P], Measured],
    contender: C | Absent,
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> Figure | Absent:
    """Return the figure that *function* takes of *contender*, if that is there."""
    return contender if isinstance(contender, Absent) else partial(function, contender, *args, **kwargs)
