"""Count what a process holds, and compare two counts."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

OBJECTS_AT_MOST = 50
TYPE_AT_MOST = 5


@dataclass(frozen=True)
class Census:
    """What one process holds at one moment, garbage not counted."""

    types: Counter[str]
    """Objects known to the collector, by the name of their type."""
    descriptors: int
    threads: int

    @property
    def objects(self) -> int:
        """How many objects there are in all."""
        return self.types.total()

    @property
    def things(self) -> int:
        """How many objects, descriptors and threads there are together."""
        return self.objects + self.descriptors + self.threads


def take_census() -> Census:
    """Return what this process holds after a collection."""
    for _ in range(3):  # a finalizer may leave garbage for the next collection
        gc.collect()
    types: Counter[str] = Counter()
    for thing in gc.get_objects():  # Counter(...) asks isinstance, which fills caches of abstract classes
        types[_name(type(thing))] += 1
    return Census(types, _descriptors(), threading.active_count())


def cycle_twice(cycle: Callable[[], object], first: int, second: int) -> tuple[Census, Census]:
    """Return the census after *first* and the one after *second* calls of *cycle* in all."""
    for _ in range(first):
        cycle()
    before = take_census()
    for _ in range(second - first):
        cycle()
    return before, take_census()


def complaints(before: Census, after: Census) -> Iterator[str]:
    """Say what grew by more than may be: descriptors and threads not at all."""
    for what in ("descriptors", "threads"):
        was, now = getattr(before, what), getattr(after, what)
        if was != now:
            yield f"{what} went from {was} to {now}; they must be equal"
    if after.objects - before.objects > OBJECTS_AT_MOST:
        yield f"objects grew by {after.objects - before.objects}; at most {OBJECTS_AT_MOST} are allowed"
    for name, more in (after.types - before.types).most_common():
        if more > TYPE_AT_MOST:
            yield f"{name} grew by {more}; at most {TYPE_AT_MOST} of a type are allowed"


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _descriptors() -> int:
    directory = Path("/proc/self/fd")  # /dev/fd where there is no /proc: macOS
    return len(list((directory if directory.is_dir() else Path("/dev/fd")).iterdir()))
