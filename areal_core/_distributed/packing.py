"""Arrays of many trajectories as few: Ray hands a large one on without a copy, but takes its time for each.

All arrays of one type lie one behind the other in a flat one, and come out as views of it. What Ray brings is
read-only, since other processes may see the same memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

Layout = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Of one trajectory: for each array its name, its type, its shape."""

Packed = tuple[list[Layout], list[int], dict[str, Any]]
"""The layouts there are, which one each trajectory has, and the flat arrays by type."""


class Parts(NamedTuple):
    """A trajectory, taken apart."""

    layout: Layout
    arrays: list[Any]
    """Those of numbers, in the order of the layout."""
    rest: dict[Any, Any]
    """What is none; and what has a name that is not just a str, and may not be one at the other end."""


def apart(trajectory: dict[str, Any]) -> Parts:
    """Tell the arrays of numbers of *trajectory* from what else it has."""
    layout: list[tuple[str, str, tuple[int, ...]]] = []
    arrays: list[Any] = []
    rest: dict[Any, Any] = {}
    for name, value in trajectory.items():
        if (
            type(value) is np.ndarray
            and (kind := _kind_of(value.dtype)) is not None
            and type(name) is str  # it is sent with those of others
        ):
            layout.append((name, kind, value.shape))
            arrays.append(value)
        else:
            rest[name] = value
    return Parts(tuple(layout), arrays, rest)


@lru_cache(maxsize=100)
def _kind_of(dtype: np.dtype[Any]) -> str | None:
    """Return the name of a type of numbers; None for any other type."""
    return dtype.str if dtype.kind in "biufc" and dtype.isnative else None


def pack(trajectories: Sequence[Parts]) -> Packed:
    """Return the arrays of numbers of *trajectories*."""
    places: dict[Layout, int] = {}
    which: list[int] = []
    pieces: defaultdict[str, list[Any]] = defaultdict(list)
    for layout, arrays, _ in trajectories:
        which.append(places.setdefault(layout, len(places)))
        for (_, kind, _), array in zip(layout, arrays, strict=True):
            pieces[kind].append(array)
    flats = {kind: np.concatenate(arrays, axis=None) for kind, arrays in pieces.items()}
    return list(places), which, flats


def unpack(packed: Packed) -> Iterator[dict[str, Any]]:
    """Yield what `pack` took of each trajectory."""
    layouts, which, flats = packed
    sized = [
        [(name, kind, shape, int(np.prod(shape, dtype=np.int64))) for name, kind, shape in layout]
        for layout in layouts
    ]
    at = dict.fromkeys(flats, 0)
    for place in which:
        trajectory = {}
        for name, kind, shape, size in sized[place]:
            start = at[kind]
            at[kind] = end = start + size
            trajectory[name] = flats[kind][start:end].reshape(shape)
        yield trajectory
