"""Arrays of many trajectories as few: Ray hands a large one on without a copy, but takes its time for each.

All arrays of one type lie one behind the other in a flat one, and come out as views of it. What Ray brings is
read-only, since other processes may see the same memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Layout = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Of one trajectory: for each array its name, its type, its shape."""

Packed = tuple[list[Layout], list[int], dict[str, Any]]
"""The layouts there are, which one each trajectory has, and the flat arrays by type."""


def is_packed(value: Any) -> bool:
    """Return whether *value* is an array of numbers, which `pack` takes along."""
    return type(value) is np.ndarray and value.dtype.kind in "biufc" and value.dtype.isnative


def pack(trajectories: Sequence[dict[str, Any]]) -> Packed:
    """Return the arrays of numbers of *trajectories*. What is none is left out."""
    places: dict[Layout, int] = {}
    which: list[int] = []
    pieces: dict[str, list[Any]] = {}
    for trajectory in trajectories:
        layout = []
        for name, value in trajectory.items():
            if is_packed(value):
                kind = value.dtype.str
                layout.append((name, kind, value.shape))
                pieces.setdefault(kind, []).append(value.reshape(-1))
        which.append(places.setdefault(tuple(layout), len(places)))
    flats = {kind: np.concatenate(arrays) for kind, arrays in pieces.items()}
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
