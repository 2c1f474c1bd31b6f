"""Sets of keys that take little memory: of an epoch whose items are known by their index, two numbers."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

# Only what str(int) writes: "0:07" is another key than "0:7".
_numbered = re.compile(r"(0|[1-9][0-9]{0,17}):(0|[1-9][0-9]{0,17})", re.ASCII)
_of_epoch = re.compile(r"(-?[0-9]{1,18}):", re.ASCII)

NO_EPOCH = -1


def epoch_of(key: str) -> int:
    """Return the epoch that *key* begins with; -1 if with none."""
    found = _of_epoch.match(key)
    return int(found[1]) if found else NO_EPOCH


class Keys:
    """A set of keys. ``key in keys``, ``len(keys)``, and iteration, by epoch and then by index."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._bounds: dict[int, list[int]] = {}
        """Of each epoch the indices, as first, past the last, first, past the last, ..., ascending."""
        self._others: set[str] = set()
        self.update(keys)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        found = _numbered.fullmatch(key)
        if found is None:
            return key in self._others
        return bisect_right(self._bounds.get(int(found[1]), ()), int(found[2])) % 2 == 1

    def __len__(self) -> int:
        return len(self._others) + sum(
            past - first for bounds in self._bounds.values() for first, past in _pairs(bounds)
        )

    def __iter__(self) -> Iterator[str]:
        for epoch in sorted(self._bounds):
            for first, past in _pairs(self._bounds[epoch]):
                yield from (f"{epoch}:{index}" for index in range(first, past))
        yield from sorted(self._others)

    def __repr__(self) -> str:
        return f"<{len(self)} keys>"

    def update(self, keys: Iterable[str]) -> None:
        """Add *keys*."""
        indices: dict[int, list[int]] = {}
        for key in keys:
            found = _numbered.fullmatch(key)
            if found is None:
                self._others.add(key)
            else:
                indices.setdefault(int(found[1]), []).append(int(found[2]))
        for epoch, some in indices.items():
            self.add_bounds(epoch, [bound for index in some for bound in (index, index + 1)])

    def add_bounds(self, epoch: int, bounds: Sequence[int]) -> None:
        """Add the indices between pairs of *bounds*: first, past the last, first, past the last, ..."""
        pairs = sorted([*_pairs(self._bounds.get(epoch, ())), *_pairs(bounds)])
        merged: list[int] = []
        for first, past in pairs:
            if merged and first <= merged[-1]:
                merged[-1] = max(merged[-1], past)
            elif first < past:
                merged += (first, past)
        if merged:
            self._bounds[epoch] = merged

    def drop_before(self, epoch: int) -> None:
        """Forget the keys that begin with an earlier epoch. Those that begin with none stay."""
        self._bounds = {own: bounds for own, bounds in self._bounds.items() if own >= epoch}
        self._others = {key for key in self._others if not _is_before(key, epoch)}

    def last_epoch(self) -> int:
        """Return the greatest epoch that a key begins with; -1 if there is none."""
        return max(*self._bounds, *map(epoch_of, self._others), NO_EPOCH, NO_EPOCH)

    def bounds(self) -> dict[int, list[int]]:
        """Return what `add_bounds` takes, of each epoch."""
        return {epoch: list(bounds) for epoch, bounds in self._bounds.items()}

    def others(self) -> list[str]:
        """Return the keys that are no epoch and index, sorted."""
        return sorted(self._others)


def _is_before(key: str, epoch: int) -> bool:
    found = _of_epoch.match(key)
    return found is not None and int(found[1]) < epoch


def _pairs(bounds: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip(bounds[::2], bounds[1::2], strict=False)
